"""Unpacking what was fetched."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from coding_agent.toolchain import installation


def _archive(path: Path, *members: tuple[str, bytes | None, int]) -> Path:
    """Write an archive: of each member the name, the content (None: a link to /etc/passwd) and the mode."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, mode in members:
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def test_an_archive_is_unpacked_with_its_programs_executable(tmp_path: Path) -> None:
    """Files arrive below the folder with their content; what was executable is, and nothing is more than that."""
    archive = _archive(tmp_path / "a.tar.gz", ("p/bin/tool", b"#!", 0o6755), ("./p/text", b"words", 0o666))

    installation.unpack(archive, tmp_path / "into")

    tool, text = tmp_path / "into" / "p" / "bin" / "tool", tmp_path / "into" / "p" / "text"
    assert (tool.read_bytes(), text.read_bytes()) == (b"#!", b"words")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (tool, text)] == [0o755, 0o644]


def test_only_the_wanted_members_are_unpacked(tmp_path: Path) -> None:
    """Where members are named, the others stay in the archive; one that is missing is an error."""
    archive = _archive(tmp_path / "a.tar.gz", ("one", b"1", 0o644), ("two", b"2", 0o644))

    installation.unpack(archive, tmp_path / "into", only=["two"])

    assert [path.name for path in (tmp_path / "into").iterdir()] == ["two"]
    with pytest.raises(tarfile.TarError, match="three"):
        installation.unpack(archive, tmp_path / "other", only=["three"])


@pytest.mark.parametrize(
    "member", [("../out", b"x", 0o644), ("/tmp/out", b"x", 0o644), ("a/../../out", b"x", 0o644), ("link", None, 0o777)]
)
def test_what_leaves_the_folder_is_refused(tmp_path: Path, member: tuple[str, bytes | None, int]) -> None:
    """A member that would be written elsewhere, or that is a link, is refused by its name."""
    archive = _archive(tmp_path / "a.tar.gz", member)

    with pytest.raises(tarfile.TarError, match="is no plain file"):
        installation.unpack(archive, tmp_path / "folder" / "into")
    assert list(tmp_path.iterdir()) == [archive]


def test_half_an_archive_is_refused(tmp_path: Path) -> None:
    """An archive that ends too early is an error, not a part of the files."""
    whole = _archive(tmp_path / "a.tar.gz", ("file", bytes(range(256)) * 1000, 0o644)).read_bytes()
    half = tmp_path / "half.tar.gz"
    half.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(tarfile.TarError):
        installation.unpack(half, tmp_path / "into")
