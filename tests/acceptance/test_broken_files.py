"""Broken task and executors files: each is refused with what is wrong, where, and what would be right.

The files are in broken_files/, what is said of them in broken_files/expected.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coding_agent import task
from coding_agent.document import InvalidFile
from coding_agent.settings import Settings

HERE = Path(__file__).parent / "broken_files"
LIMIT = 60.0  # seconds


def expected() -> dict[str, list[str]]:
    """Return the lines of each file."""
    lines: dict[str, list[str]] = {}
    for line in (HERE / "expected.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            lines.setdefault(line.partition(":")[0], []).append(line)
    return lines


EXPECTED = expected()
TASKS = [name for name in EXPECTED if name.startswith("tasks/")]
EXECUTORS = [name for name in EXPECTED if name.startswith("executors/")]


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the files, which is the current folder."""
    root = tmp_path / "project"
    shutil.copytree(HERE, root)
    monkeypatch.chdir(root)
    return root


def said(name: str) -> list[str]:
    """Return the lines about one file, read as what it is."""
    if name.startswith("executors/"):
        with pytest.raises(InvalidFile) as caught:
            Settings.load(Path(name))
        return [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in task.validate([Path(name)], Settings.load(Path("config.yaml")))]


def validate(*arguments: str, config: str) -> subprocess.CompletedProcess[str]:
    """Run `coding-agent validate`."""
    argv = [sys.executable, "-m", "coding_agent", "--config", config, "validate", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)


def problem_lines(shown: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines that name a place in one of the files."""
    places = tuple(f"{name}:" for name in EXPECTED)
    return [line for line in shown.stdout.splitlines() if line.startswith(places)]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file is refused with all its problems, each with line, column, field, and what would be right."""
    monkeypatch.chdir(HERE)
    assert said(name) == EXPECTED[name]


def test_every_file_is_in_the_table() -> None:
    """No file is left out: every broken file has its lines in the table, and there are at least 60."""
    files = {str(path.relative_to(HERE)) for kind in ("tasks", "executors") for path in (HERE / kind).iterdir()}
    assert files == set(EXPECTED)
    assert len(files) >= 60


def test_all_files_at_once(folder: Path) -> None:
    """One call reports all problems of all task files, in the files' order."""
    problems = task.validate([Path(name) for name in TASKS], Settings.load(Path("config.yaml")))
    assert [str(problem) for problem in problems] == [line for name in TASKS for line in EXPECTED[name]]


def test_the_command_line_says_the_same_of_all_tasks(folder: Path) -> None:
    """`coding-agent validate FILE...` prints the problems of all files in one call, runs nothing and ends with 2."""
    before = sorted(folder.rglob("*"))
    shown = validate(*TASKS, config="config.yaml")
    assert shown.returncode == 2, shown.stderr
    assert problem_lines(shown) == [line for name in TASKS for line in EXPECTED[name]]
    assert "Traceback" not in shown.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_the_command_line_says_the_same_of_executors_files(folder: Path, tmp_path: Path) -> None:
    """`coding-agent --config FILE validate` prints the problems of an executors file and ends with 2."""
    (folder / "tasks").rename(tmp_path / "elsewhere")
    with ThreadPoolExecutor(2) as pool:
        for name, shown in zip(EXECUTORS, pool.map(lambda name: validate(config=name), EXECUTORS), strict=True):
            assert shown.returncode == 2, name
            assert problem_lines(shown) == EXPECTED[name]
            assert "Traceback" not in shown.stderr


def large_prompt(folder: Path) -> str:
    (folder / "x.yaml").write_text(f"prompt: {'ä' * 5_000_001}\n", encoding="utf-8")
    return "1:9: prompt: is 10000002 bytes long; at most 10000000 are possible, put what is large into `files`"


def large_prompt_file(folder: Path) -> str:
    (folder / "prompt.txt").write_bytes(b"a" * 10_000_001)
    (folder / "x.yaml").write_text("prompt_file: prompt.txt\n")
    return '1:14: prompt_file: "prompt.txt" has 10000001 bytes; at most 10000000 are possible'


def large_source(folder: Path) -> str:
    with (folder / "big").open("wb") as file:
        file.truncate(100_000_001)
    (folder / "x.yaml").write_text("prompt: a\nfiles: [{path: a, source: big}]\n")
    return '2:27: files[0].source: "big" has 100000001 bytes; at most 100000000 are possible'


def large_file(folder: Path) -> str:
    with (folder / "x.yaml").open("wb") as file:
        file.truncate(16_000_001)
    return "1:1: file: the file is larger than 16 MB; put a long prompt into a prompt_file"


def no_file(folder: Path) -> str:
    return "1:1: file: there is no such file; name one that exists"


def a_folder(folder: Path) -> str:
    (folder / "x.yaml").mkdir()
    return "1:1: file: this is a folder; name a file in it"


def a_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    (folder / "x.yaml").write_text("prompt_file: pipe\n")
    return '1:14: prompt_file: "pipe" is no ordinary file; name a file'


def a_link_out_of_the_project(folder: Path) -> str:
    (folder.parent / "secret").write_text("x")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "x.yaml").write_text("prompt_file: link\n")
    advice = "leads out of the project (the folder with Pulumi.yaml, or the repository); copy it in"
    return f'1:14: prompt_file: "link" {advice}'


def a_loop_of_links(folder: Path) -> str:
    (folder / "link").symlink_to("link")
    (folder / "x.yaml").write_text("prompt_file: link\n")
    return '1:14: prompt_file: "link" can\'t be read: Too many levels of symbolic links'


@pytest.mark.parametrize(
    "make",
    [
        large_prompt,
        large_prompt_file,
        large_source,
        large_file,
        no_file,
        a_folder,
        a_pipe,
        a_link_out_of_the_project,
        a_loop_of_links,
    ],
)
def test_a_file_that_cannot_be_kept_here(make: Callable[[Path], str], folder: Path) -> None:
    """What is too large, not there, no ordinary file, or outside of the project is refused with its place."""
    message = make(folder)
    assert [str(problem) for problem in task.validate([Path("x.yaml")], None)] == [f"x.yaml:{message}"]
