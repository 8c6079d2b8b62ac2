"""What a Connection has to do, whatever is behind it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from coding_agent.errors import CommandTimeout, ConnectionBroken
from places import Place
from processes import processes_with_text
from waiting import until

ODD = ["a b", "-dash", "'quote\"", "new\nline", "ünï", "$(touch x)", "*", "semi;colon"]


def test_exit_code_and_both_streams(place: Place) -> None:
    """A command's exit code, stdout and stderr come back apart and byte for byte."""
    done = place.run("bash", "-c", r"printf 'out\0\377\n'; printf 'err\r\n' >&2; exit 41")
    assert (done.exit_code, done.stdout, done.stderr) == (41, b"out\0\xff\n", b"err\r\n")


def test_arguments_reach_the_command_as_they_are(place: Place) -> None:
    """Arguments meet no shell: quotes, newlines, dashes and substitutions arrive as they were given."""
    done = place.run("printf", r"%s\0", "--", *ODD)
    assert done.stdout.decode().split("\0") == ["--", *ODD, ""]


def test_input_is_whole(place: Place) -> None:
    """What goes to a command's stdin arrives whole, while as much comes back: neither side waits for the other."""
    data = bytes(range(256)) * 40_000
    assert place.run("cat", stdin=data).stdout == data


def test_input_can_be_ignored(place: Place) -> None:
    """A command that does not read its input ends as it does without one."""
    assert place.run("bash", "-c", "exec <&-; exit 7", stdin=b"x" * 5_000_000).exit_code == 7


def test_environment_is_added(place: Place) -> None:
    """Variables given with a command are in its environment, beside a PATH and a HOME."""
    said = place.run("bash", "-c", 'printf %s "$ONE|${PATH:+path}|${HOME:+home}"', env={"ONE": "a b\n'"}).stdout
    assert said == b"a b\n'|path|home"


def test_time_limit_ends_children(place: Place) -> None:
    """A command that exceeds its time limit is ended with the children it started; neither would end by itself."""
    mark = {"TEST_MARK": place.token}
    with pytest.raises(CommandTimeout, match=r"bash did not end within 1 second"):
        place.run("bash", "-c", "sleep 4321 & sleep 4321", timeout=1, env=mark)
    until(lambda: not processes_with_text(f"TEST_MARK={place.token}"))


def test_program_that_does_not_exist(place: Place) -> None:
    """A command that can't be started is said to be so, not an exit code of its own."""
    with pytest.raises(ConnectionBroken, match="can't be started"):
        place.run("no-such-program")


def test_files_come_back_as_they_were_put(place: Place) -> None:
    """A file holds what was put into it, nothing, text or bytes; its name can hold whatever a name can hold."""
    connection = place.executor.connection
    for data in (b"", b"text\n", bytes(range(256)), "ünï\r\n".encode()):
        connection.put(f"{place.folder}/file", data)
        assert connection.get(f"{place.folder}/file", limit=10_000) == data
    names = [*ODD, ".hidden", "x" * 200]
    for name in names:
        connection.put(f"{place.folder}/{name}", name.encode())
    for name in names:
        assert connection.get(f"{place.folder}/{name}", limit=10_000) == name.encode()
    listed = place.run("find", place.folder, "-mindepth", "1", "-printf", r"%f\0").stdout.decode()
    assert set(listed.rstrip("\0").split("\0")) == {"file", *names}


def test_large_file(place: Place, tmp_path: Path) -> None:
    """A file of 100 MB is put from disk and fetched in pieces, without a byte changed."""
    import hashlib

    source = tmp_path / "large"
    block = bytes(range(256)) * 4096
    with source.open("wb") as file:
        for number in range(100):
            file.write(number.to_bytes(4, "big") + block[4:])
    place.executor.connection.put(f"{place.folder}/large", source, timeout=120)
    digest, offset = hashlib.sha256(), 0
    while chunk := place.executor.connection.get(f"{place.folder}/large", offset=offset, limit=16 * 1024 * 1024):
        digest.update(chunk)
        offset += len(chunk)
    with source.open("rb") as file:
        assert digest.hexdigest() == hashlib.file_digest(file, "sha256").hexdigest()
    assert place.bash('sha256sum <"$1"', f"{place.folder}/large").split()[0] == digest.hexdigest()


def test_mode_and_ownership(place: Place) -> None:
    """A file that was put has the mode asked for and belongs to the run's user."""
    for mode in (0o600, 0o644, 0o755):
        place.executor.connection.put(f"{place.folder}/file", b"x", mode=mode)
        assert place.bash('stat -c "%a %u %g" "$1"', f"{place.folder}/file") == f"{mode:o} {place.owner}"


def test_put_is_all_or_nothing(place: Place) -> None:
    """A reader sees the old file or the new one, and nothing else is left in the folder."""
    connection, path = place.executor.connection, f"{place.folder}/file"
    connection.put(path, b"a" * 100_000)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(
                (connection.get(path, limit=300_000) or b"gone")[:1]
                + str(len(connection.get(path, limit=300_000) or b"")).encode()
            )

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        connection.put(path, b"b" * 200_000)
        connection.put(path, b"a" * 100_000)
    stop.set()
    reader.join()
    assert seen <= {b"a100000", b"b200000", b"a200000", b"b100000"}
    assert place.bash('ls -A "$1"', place.folder) == "file"


def test_put_where_there_is_no_folder(place: Place) -> None:
    """A file that can't be written is an error that names it."""
    with pytest.raises(ConnectionBroken, match=r"/nowhere/file can't be written"):
        place.executor.connection.put(f"{place.folder}/nowhere/file", b"x")


def test_only_plain_files_are_read(place: Place) -> None:
    """What is no plain file, or lies behind a link, is not there; nothing waits for it."""
    make = (
        'cd "$1" && ln -s /etc/passwd link && mkfifo pipe && mkdir folder real && echo x >real/file && '
        "ln -s real behind"
    )
    place.bash(make, place.folder)
    assert place.executor.connection.get(f"{place.folder}/real/file", limit=100) == b"x\n"
    for name in ("missing", "link", "pipe", "folder", "behind/file"):
        assert place.executor.connection.get(f"{place.folder}/{name}", limit=100, timeout=10) is None, name


def test_offsets(place: Place) -> None:
    """A part of a file is read from its offset; past its end, as after it was cut, there is nothing, not an error."""
    connection, path = place.executor.connection, f"{place.folder}/log"
    connection.put(path, b"0123456789")
    assert connection.get(path, offset=3, limit=4) == b"3456"
    assert connection.get(path, offset=8, limit=4) == b"89"
    place.bash('printf 01 >"$1"', path)
    assert connection.get(path, offset=10, limit=4) == b""
    assert connection.get(path, offset=0, limit=4) == b"01"


def test_close_can_be_repeated(place: Place) -> None:
    """A connection can be closed twice."""
    place.executor.close()
    place.executor.close()
