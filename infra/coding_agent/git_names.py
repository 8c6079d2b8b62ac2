"""What git accepts as a name of a branch or a repository's address, as far as we let it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SCHEMES = ("https", "http", "ssh", "git", "file")
_SHORT = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9\[][\w.:\[\]-]*:[^-:].*")


def wrong_ref(name: str) -> str | None:
    """Return why git would not take `name` for a branch or a tag; None where it would.

    >>> wrong_ref("fix/build"), wrong_ref("a b")
    (None, "has ' ' in it")
    """
    found = re.search(r"[\x00-\x20\x7f~^:?*\[\\]", name)
    if found:
        return f"has {found[0]!r} in it"
    for part in ("..", "@{", "//"):
        if part in name:
            return f"has {part!r} in it"
    if name.startswith(("-", "/", "+")) or name.endswith(("/", ".")) or name == "@":
        return f"begins or ends with {(name[0] if name[0] in '-/+@' else name[-1])!r}"
    for component in name.split("/"):
        if component.startswith("."):
            return "has a part that begins with '.'"
        if component.endswith(".lock"):
            return "has a part that ends with '.lock'"
    return None if len(name.encode()) <= 200 else "is longer than 200 bytes"


def wrong_address(address: str) -> str | None:
    """Return what is wrong with a repository's address and what would be right; None where nothing is.

    Addresses that make git run a program (`ext::`), or that could pass for an option, are refused.

    >>> wrong_address("https://example.com/a.git"), wrong_address("git@example.com:a/b.git"), wrong_address("/srv/a")
    (None, None, None)
    """
    scheme, separator, rest = address.partition("://")
    short = address.startswith("/") or _SHORT.fullmatch(address)
    if not short and (not separator or scheme not in _SCHEMES):
        return "is no address; begin it with https://, ssh://, git:// or file://, or write user@host:path"
    if re.search(r"[\x00-\x20\x7f]", address):
        return "holds a space or a control character; write it as %20"
    if short:
        return None
    try:
        parts = urlsplit(address)
        host, user, password = parts.hostname, parts.username, parts.password
    except ValueError as error:
        return f"is no address: {error}"
    if password or (user and scheme in ("https", "http")):
        return "holds a credential; leave it out, git's credential helper on the executor provides it"
    if scheme != "file" and (not host or rest.startswith("-") or host.startswith("-")):
        return "has no host; write for instance https://example.com/me/shop.git"
    return None
