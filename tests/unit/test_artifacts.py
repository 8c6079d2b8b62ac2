"""Artifacts: whatever a target puts into the archive, what comes out are plain files in one folder."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from coding_agent import artifacts
from coding_agent.errors import Untrusted
from coding_agent.redaction import Redactor
from costs import bytes_written

SECRET = "Kp5Rt9WqLm2XzB"
REDACTOR = Redactor({"TOKEN": SECRET})


def _entry(name: str, content: bytes = b"content\n", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return _entry(name, b"", type=kind, linkname=target)


def _archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    file.seek(0)
    return file


def _unpack(tmp_path: Path, archive: io.BytesIO) -> tuple[dict[str, bytes], artifacts.Unpacked]:
    into = tmp_path / "record" / "artifacts"
    into.parent.mkdir()
    (tmp_path / "outside").mkdir()
    unpacked = artifacts.unpack(archive, into, REDACTOR)
    assert [*(tmp_path / "outside").iterdir()] == []
    assert [each.name for each in into.parent.iterdir()] == ["artifacts"]
    found = [each for each in into.rglob("*") if not each.is_dir()]
    assert all(each.is_file() and not each.is_symlink() for each in found)
    return {str(each.relative_to(into)): each.read_bytes() for each in found}, unpacked


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    """Files come out with their folders, contents and executable bit, also twice named and hard linked ones."""
    archive = _archive(
        _entry("./out", b"", type=tarfile.DIRTYPE),
        _entry("./out/a.txt", b"a"),
        _entry("./out/deep/er/run.sh", b"#!/bin/sh\n", mode=0o6777),
        _entry("./out/a.txt", b"a"),
        _link("./out/b.txt", "./out/a.txt", tarfile.LNKTYPE),
        _entry("./empty", b""),
    )
    files, unpacked = _unpack(tmp_path, archive)
    assert files == {"out/a.txt": b"a", "out/b.txt": b"a", "out/deep/er/run.sh": b"#!/bin/sh\n", "empty": b""}
    assert (unpacked.refused, unpacked.kept_back) == ([], [])
    into = tmp_path / "record" / "artifacts" / "out"
    assert [(into / name).stat().st_mode & 0o7777 for name in ("a.txt", "deep/er/run.sh")] == [0o600, 0o700]


STRANGE = {
    "parent": _entry("../outside/x"),
    "parent_inside": _entry("out/../../outside/x"),
    "absolute": _entry("/tmp/x"),
    "symbolic_link": _link("out/x", "../../outside"),
    "hard_link_to_nothing": _link("out/x", "/etc/passwd", tarfile.LNKTYPE),
    "hard_link_to_itself": _link("out/x", "out/x", tarfile.LNKTYPE),
    "device": _entry("out/x", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block_device": _entry("out/x", b"", type=tarfile.BLKTYPE, devmajor=8),
    "pipe": _entry("out/x", b"", type=tarfile.FIFOTYPE),
    "name_without_end": _entry("x" * 5000),
    "name_too_long_for_a_file": _entry("out/" + "x" * 300),
    "nothing_but_dots": _entry("././."),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_no_plain_file_in_the_folder_is_left_out(tmp_path: Path, what: str) -> None:
    """Links, devices, pipes and names that leave the folder or can't be made are left out and said; others come."""
    archive = _archive(_entry("before"), STRANGE[what])
    files, unpacked = _unpack(tmp_path, archive)
    assert files == {"before": b"content\n"}
    assert len(unpacked.refused) == 1


def test_a_file_behind_a_link_of_the_archive_does_not_follow_it(tmp_path: Path) -> None:
    """A file whose folder is a link in the same archive becomes a file in a plain folder of that name."""
    outside = str(tmp_path / "outside")
    files, unpacked = _unpack(tmp_path, _archive(_link("out", outside), _entry("out/x"), _link("y", "out/x")))
    assert files == {"out/x": b"content\n"}
    assert len(unpacked.refused) == 2


def test_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    """Where an entry needs a folder that another one made a file, the first one stays and that is said."""
    files, unpacked = _unpack(tmp_path, _archive(_entry("x"), _entry("x/y"), _entry("z/y"), _entry("z")))
    assert files == {"x": b"content\n", "z/y": b"content\n"}
    assert len(unpacked.refused) == 2


def test_what_holds_a_secret_is_not_written(tmp_path: Path) -> None:
    """A file with a secret in its content or name is not written, and its secret is named."""
    archive = _archive(_entry("a", f"x{SECRET}y".encode()), _entry(f"b-{SECRET}"), _entry("c"))
    files, unpacked = _unpack(tmp_path, archive)
    assert files == {"c": b"content\n"}
    assert [notice.endswith("holds TOKEN: kept back on the target") for notice in unpacked.kept_back] == [True, True]
    assert unpacked.refused == []


def _sparse() -> io.BytesIO:
    """Return an archive of a few KB with a file that seems to have 50 GB, as GNU tar writes sparse ones."""
    info = tarfile.TarInfo("big")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 49_999_999_000, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % 50_000_000_000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return io.BytesIO(bytes(header) + b"\0" * 1024)


REFUSED: dict[str, Callable[[], io.BytesIO]] = {
    "no_archive": lambda: io.BytesIO(b"\x1b]0;x\x07" * 1000),
    "empty": lambda: io.BytesIO(b""),
    "cut": lambda: io.BytesIO(_archive(_entry("a", b"x" * 5000)).getvalue()[:2000]),
    "compressed": lambda: io.BytesIO(gzip.compress(_archive(_entry("a")).getvalue())),
    "too_many": lambda: io.BytesIO(_entry("a", b"")[0].tobuf() * (artifacts.MOST + 1) + b"\0" * 1024),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_archive_of_ours_is_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no archive, is compressed, damaged or endless is refused as a whole, with an error of our own."""
    monkeypatch.setattr(artifacts, "MOST", 100)
    with pytest.raises(Untrusted):
        _unpack(tmp_path, REFUSED[what]())


def test_a_sparse_file_costs_nothing(tmp_path: Path) -> None:
    """A file that only seems to have 50 GB is left out, and none of it is written on the way."""
    before = bytes_written()
    files, unpacked = _unpack(tmp_path, _sparse())
    assert (files, len(unpacked.refused)) == ({}, 1)
    assert bytes_written() - before < 1_000_000


def test_more_than_what_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that together are larger than what is taken are refused before they are written."""
    monkeypatch.setattr(artifacts, "LARGEST", 1_000_000)
    content = os.urandom(400_000)
    with pytest.raises(Untrusted, match="more than 1 MB"):
        _unpack(tmp_path, _archive(*(_entry(name, content) for name in "abc")))
