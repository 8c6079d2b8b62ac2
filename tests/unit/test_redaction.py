"""Secret values are found and taken out in the forms in which they travel."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from collections.abc import Callable

import pytest

from coding_agent.redaction import Redactor
from costs import growth

VALUES = {
    "plain": "sk-ant-canary-0123456789",
    "special": "p\"a\\s/s+w&o<r>d%='x $1",
    "unicode": "pässwörd-🦊-中文",
    "six": "a1b2c3",
    "long": "0123456789abcdef" * 20,
    "pem": "-----BEGIN KEY-----\nMIIabc/def+ghi==\nMIIjkl\n-----END KEY-----",
}


def _wrapped(data: bytes, width: int = 76) -> str:
    text = base64.b64encode(data).decode()
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


FORMS: dict[str, Callable[[str], str]] = {
    "raw": lambda value: value,
    "json": json.dumps,
    "json-unicode": lambda value: json.dumps(value, ensure_ascii=False),
    "json-in-json": lambda value: json.dumps(json.dumps({"v": value})),
    "json-thrice": lambda value: json.dumps(json.dumps(json.dumps(value))),
    "json-all-escaped": lambda value: "".join(f"\\u{unit:04X}" for unit in _units(value)),
    "url": lambda value: urllib.parse.quote(value, safe=""),
    "url-slash": urllib.parse.quote,
    "url-plus": urllib.parse.quote_plus,
    "url-lower": lambda value: urllib.parse.quote(value, safe="").lower() if value.islower() else value,
    "url-all": lambda value: "".join(f"%{byte:02x}" for byte in value.encode()),
    "url-twice": lambda value: urllib.parse.quote(urllib.parse.quote(value, safe="")),
    "html": html.escape,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64-url": lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
    "base64-unpadded": lambda value: base64.b64encode(value.encode()).decode().rstrip("="),
    "base64-1": lambda value: base64.b64encode(b"x" + value.encode() + b"y").decode(),
    "base64-2": lambda value: base64.urlsafe_b64encode(b"xx" + value.encode() + b"yy").decode(),
    "base64-header": lambda value: base64.b64encode(b"user:" + value.encode()).decode(),
    "base64-wrapped": lambda value: _wrapped(b"x" * 40 + value.encode()),
    "base64-wrapped-json": lambda value: json.dumps(_wrapped(b"x" * 40 + value.encode())),
    "base64-in-url": lambda value: urllib.parse.quote(base64.b64encode(value.encode()).decode(), safe=""),
    "base64-json-slash": lambda value: base64.b64encode(value.encode()).decode().replace("/", "\\/"),
    "one-line": lambda value: " ".join(value.split()),
}


def _units(value: str) -> list[int]:
    raw = value.encode("utf-16-be")
    return [int.from_bytes(raw[start : start + 2]) for start in range(0, len(raw), 2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VALUES)
def test_every_form_is_found_and_taken_out(name: str, form: str) -> None:
    """A value in any of the usual forms is named by find, and nothing of it is found after redaction."""
    redactor = Redactor({name: VALUES[name]})
    text = f"before {FORMS[form](VALUES[name])} after"
    assert redactor.find(text.encode()) == {name}
    redacted = redactor.text(text)
    assert f"[redacted {name}]" in redacted
    assert redacted.startswith("before")
    assert redacted.endswith("after")
    assert redactor.find(redacted.encode()) == set()


def test_a_line_of_the_stream_stays_json() -> None:
    """Redacting a line of JSON leaves JSON."""
    redactor = Redactor(VALUES)
    line = json.dumps({"text": f"a {VALUES['special']} b", "n": [VALUES["pem"], 'x"y']})
    assert json.loads(redactor.text(line)) == {"text": "a [redacted special] b", "n": ["[redacted pem]", 'x"y']}


def test_other_text_stays() -> None:
    """Text without a value stays as it is, byte for byte, invalid UTF-8 and half surrogates included."""
    redactor = Redactor(VALUES)
    assert redactor.bytes(b"\xff\x00 sk-ant-canary-012345678") == b"\xff\x00 sk-ant-canary-012345678"
    assert redactor.text("half \ud800 \\ \\u00e4 %41") == "half \ud800 \\ \\u00e4 %41"
    assert Redactor({}).find(b"anything") == set()


def test_values_that_overlap_leave_nothing() -> None:
    """A value within another one, and two that share an end, go as a whole."""
    redactor = Redactor({"A": "secret-one", "B": "secret-one-and-two", "C": "two-three"})
    assert redactor.text("x secret-one-and-two y") == "x [redacted A, B] y"
    assert redactor.text("x secret-one-and-two-three y") == "x [redacted A, B, C] y"
    assert redactor.find(b"secret-one-and") == {"A"}


def test_short_values() -> None:
    """Under four bytes nothing is looked for, and that is said; four and five only as they are."""
    redactor = Redactor({"TINY": "abc", "EMPTY": "", "SHORT": "abcd"})
    assert redactor.ignored == ("TINY", "EMPTY")
    assert redactor.text("abc abcd") == "abc [redacted SHORT]"
    assert redactor.find(base64.b64encode(b"abcd")) == set()


@pytest.mark.parametrize(
    "piece", [b"\\", b"%25", b"%", b" ", b"\n", b"a", b"c2", b"+", b"\\n", b"-----BEGIN KEY-----\n", b"s&amp;"]
)
def test_hostile_text_takes_no_long_time(piece: bytes) -> None:
    """Text made to be slow to search takes time in proportion to its length: eight times as much, not sixty-four."""
    redactor = Redactor({**VALUES, "slash": "\\\\x\\y", "space": "  a \n b  "})

    assert growth(lambda size: redactor.bytes(piece * (size // len(piece))), 2500) < 32
