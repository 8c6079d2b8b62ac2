"""Files that a task file names: they lie in its project, and reading them neither blocks nor leads elsewhere."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from coding_agent.document import Document, FieldPath, decode, place_of, quoted


def project_root(file: Path) -> Path:
    """Return the project of a task file: where the nearest Pulumi.yaml is, else its repository, else its folder.

    Links on the way are resolved, so that "inside" means the same for every path.
    """
    folder = file.parent.resolve()
    around = (folder, *folder.parents)
    for mark in ("Pulumi.yaml", ".git"):
        for each in around:
            if (each / mark).exists():
                return each
    return folder


def leaving(path: str) -> str | None:
    """Return why a path could lead out of the folder that it is relative to; None where it can't.

    >>> leaving("a/../../b"), leaving("a/b")
    ('leaves its folder by `..`', None)
    """
    if any(ord(letter) < 32 or letter == "\x7f" for letter in path):
        return "holds a control character"
    if path.startswith("/"):
        return "is absolute"
    if path.startswith("~"):
        return "begins with `~`"
    if ".." in path.split("/"):
        return "leaves its folder by `..`"
    return None


def normal(path: str) -> str:
    """Return a relative path without what means nothing in it.

    >>> normal("./a//b/"), normal(".")
    ('a/b', '')
    """
    return "/".join(part for part in path.split("/") if part not in ("", "."))


class NearFiles:
    """The files around one document."""

    def __init__(self, document: Document, root: Path) -> None:
        self.document = document
        self.folder = document.path.parent
        self.root = root

    def read(self, path: FieldPath, name: str, *, limit: int) -> bytes | None:
        """Return a file's content, at most `limit` bytes; None where that was reported as a problem of `path`."""
        reason = leaving(name)
        if reason and reason.startswith("leaves"):
            reason = None  # it may leave the task file's folder, not the project
        if reason:
            self.document.report(path, f"{quoted(name)} {reason}; name a file relative to this one")
            return None
        target = Path(os.path.realpath(self.folder / name))  # which, unlike resolve(), takes a loop of links
        if not target.is_relative_to(self.root):
            message = (
                f"{quoted(name)} leads out of the project (the folder with Pulumi.yaml, or the repository); copy it in"
            )
            self.document.report(path, message)
            return None
        return self._content(path, name, target, limit)

    def read_text(self, path: FieldPath, name: str, *, limit: int) -> str | None:
        """Return a UTF-8 file's text, every byte of it; None where that was reported as a problem of `path`."""
        raw = self.read(path, name, limit=limit)
        if raw is None:
            return None
        text, complaint = decode(raw)
        if complaint:
            line, column = place_of(text)
            self.document.report(path, f"{quoted(name)}, line {line}, column {column}: {complaint}")
            return None
        return text

    def _content(self, path: FieldPath, name: str, target: Path, limit: int) -> bytes | None:
        try:
            # Not blocking: a pipe in the project would otherwise hold up whoever only validates.
            descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            self.document.report(path, f"there is no file {quoted(name)} here; {self._near(target)}")
            return None
        except OSError as error:
            self.document.report(path, f"{quoted(name)} can't be read: {error.strerror}")
            return None
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            what = "a folder" if stat.S_ISDIR(about.st_mode) else "no ordinary file"
            self.document.report(path, f"{quoted(name)} is {what}; name a file")
            return None
        with os.fdopen(descriptor, "rb") as file:
            if about.st_size > limit:
                self.document.report(path, f"{quoted(name)} has {about.st_size} bytes; at most {limit} are possible")
                return None
            return file.read(limit)

    def _near(self, target: Path) -> str:
        try:
            names = [each.name for each in target.parent.iterdir() if each.is_file()][:1000]
        except OSError:
            return "make it, or correct its name (it is relative to this file)"
        near = difflib.get_close_matches(target.name, names, n=1)
        return f"did you mean {near[0]}?" if near else "make it, or correct its name (it is relative to this file)"
