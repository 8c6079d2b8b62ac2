"""Make text that an agent, or a hostile target, wrote harmless for a terminal and for a CI's log."""

from __future__ import annotations

import re

# Sequences that a terminal obeys: CSI, then OSC/DCS/SOS/PM/APC up to their end (or the line's, where the end never
# comes), then the shorter escapes. They say nothing to a reader and are dropped whole.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls other than newline and tab; what overrides the direction of text; line separators that some programs obey;
# characters without width, which hide text; tags, which nobody sees; half surrogates, which can't be written.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
# Runners look for commands at a line's start behind white space (`::name::`), and GitHub's older `##[name]` and Azure's
# `##vso[name]` anywhere in a line.
_COLONS = re.compile(r"^([^\S\n]*):(?=:)", re.MULTILINE)
_HASHES = re.compile(r"##(?=\[|vso\[)", re.IGNORECASE)
_SUSPECT = re.compile(r"[^\t\n\x20-\x7e\u00a0-\u0600]|^[^\S\n]*::|##(?:\[|vso\[)", re.MULTILINE | re.IGNORECASE)


def neutralise(text: str) -> str:
    r"""Return `text` without anything a terminal or a CI's log would obey; newlines and tabs stay.

    Escape sequences are dropped, other controls and direction overrides become visible (`\x07`, `\u202e`), and a space
    breaks what a runner would take as a command. A second call changes nothing.

    >>> neutralise("\x1b[31mred\x1b[0m\a")
    'red\\x07'
    >>> neutralise("::set-output name=a::b")
    ': :set-output name=a::b'
    >>> neutralise("##vso[task.complete]")
    '# #vso[task.complete]'
    """
    if not _SUSPECT.search(text):
        return text
    text = _SEQUENCE.sub("", text.replace("\r\n", "\n"))
    text = _CONTROL.sub(_visible, text)
    return _HASHES.sub("# #", _COLONS.sub(r"\1: ", text))


def one_line(text: str, width: int | None = None) -> str:
    """Return `text` with every run of white space as one space, cut to `width` characters with an ellipsis.

    Cut only what is redacted already: half a secret is not recognised any more.
    """
    joined = " ".join(text.split())
    return joined if width is None or len(joined) <= width else joined[: max(0, width - 1)] + "…"


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
