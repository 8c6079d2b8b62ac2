"""The file of hashes that `init --github` writes: all that the workflow installs, coding-agent's own wheel too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from coding_agent import __version__
from distributions import LIMIT, REPOSITORY, build, install
from release import pins

HASHES = ".github/coding-agent-requirements.txt"
OURS = f"openclaw-coding-agent=={__version__}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def from_file(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of an environment that was given the wheel's file."""
    return install(tmp_path_factory.mktemp("file"), str(wheel))


@pytest.fixture(scope="module")
def from_index(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of an environment that was given the name: where from, pip does not write down."""
    return install(tmp_path_factory.mktemp("index"), "--find-links", str(wheel.parent), OURS)


def _init(programs: Path, root: Path, **environment: str) -> tuple[str, str]:
    """Run `init --github` in a new folder; return what it said, and what pip is to install of coding-agent itself."""
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    root.mkdir()
    done = subprocess.run(
        [str(programs / "coding-agent"), "init", "--github"],
        cwd=root,
        env={**given, "HOME": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (root / HASHES).read_text().splitlines() if line.startswith("openclaw-coding-agent")]
    return done.stdout + done.stderr, line


@contextmanager
def _index(files: dict[str, bytes], *, html: bool) -> Iterator[str]:
    """Serve files as an index of packages does, which speaks the newer of the two languages, or the older alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            kind = "application/octet-stream"
            if self.path == "/simple/openclaw-coding-agent/" and html:
                kind, content = (
                    "text/html",
                    "".join(f'<a href="../../files/{each}">{each}</a>' for each in files).encode(),
                )
            elif self.path == "/simple/openclaw-coding-agent/":
                listed = [{"filename": each, "url": f"../../files/{each}", "hashes": {}} for each in files]
                page = {"meta": {"api-version": "1.0"}, "name": "openclaw-coding-agent", "files": listed}
                kind, content = "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()
            elif self.path.startswith("/files/") and name in files:
                content = files[name]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        finally:
            server.shutdown()


def _digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_wheel_that_was_installed_from_its_file_is_pinned(from_file: Path, wheel: Path, tmp_path: Path) -> None:
    """Installed from the wheel's file, `init --github` pins that wheel, and each job installs from the hashes alone."""
    said, line = _init(from_file, tmp_path / "shop")

    assert line == f"{OURS} --hash=sha256:{_digest(wheel)}"
    assert f"made {HASHES}" in said
    assert "not known" not in said
    workflow = yaml.safe_load((tmp_path / "shop" / ".github" / "workflows" / "coding-agent.yml").read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if step.get("name") == "Install"]
    assert runs == [f"python -m pip install --require-hashes --only-binary :all: -r {HASHES}"] * len(workflow["jobs"])


def test_a_file_of_hashes_that_is_there_stays(from_file: Path, tmp_path: Path) -> None:
    """A second `init --github` leaves the file of hashes as it is, with what was changed in it."""
    _init(from_file, tmp_path / "shop")
    file = tmp_path / "shop" / HASHES
    file.write_text("changed")
    done = subprocess.run(
        [str(from_file / "coding-agent"), "init", "--github", "--json", str(tmp_path / "shop")],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert json.loads(done.stdout)["made"] == []
    assert file.read_text() == "changed"


@pytest.mark.parametrize("html", [False, True])
def test_the_wheel_of_the_index_is_pinned_where_it_is_the_installed_one(
    from_index: Path, wheel: Path, tmp_path: Path, html: bool
) -> None:
    """Installed by name, the index's wheel is pinned: it holds the very files that are installed here."""
    with _index({wheel.name: wheel.read_bytes()}, html=html) as address:
        said, line = _init(from_index, tmp_path / "shop", PIP_INDEX_URL=address)

    assert line == f"{OURS} --hash=sha256:{_digest(wheel)}"
    assert "not known" not in said


def test_another_wheel_of_the_same_name_is_not_pinned(from_index: Path, wheel: Path, tmp_path: Path) -> None:
    """An index whose wheel differs in one file from what is installed is not believed: pip is given no hash of it."""
    other = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            evil = b"import evil\n" if name == "coding_agent/api.py" else b""
            new.writestr(name, evil + old.read(name))
    with _index({wheel.name: other.read_bytes()}, html=False) as address:
        said, line = _init(from_index, tmp_path / "shop", PIP_INDEX_URL=address)

    assert line == OURS
    assert "the wheel there is another one: 1 of" in said
    assert _refused(tmp_path / "shop" / HASHES, wheel)


def test_without_an_index_the_file_says_what_to_add(from_index: Path, wheel: Path, tmp_path: Path) -> None:
    """Where the hash can't be known, `init --github` says so, writes the rest, and pip installs nothing of it; the
    address of an index, which may hold a password, is not shown."""
    said, line = _init(
        from_index, tmp_path / "shop", PIP_INDEX_URL="http://user:hunter2@127.0.0.1:9/simple", PIP_RETRIES="0"
    )

    assert line == OURS
    assert "is not known here" in said
    text = (tmp_path / "shop" / HASHES).read_text()
    assert "SHA256SUMS" in text
    assert "hunter2" not in said + text
    assert _refused(tmp_path / "shop" / HASHES, wheel)


def _refused(hashes: Path, wheel: Path) -> bool:
    """Whether pip, which has the wheel, refuses to install it from the file because it has no hash."""
    own = hashes.with_suffix(".own")
    lines = hashes.read_text().splitlines(keepends=True)
    own.write_text("".join(line for line in lines if line.startswith("openclaw-coding-agent")))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--no-index",
        "--require-hashes",
    ]
    argv = [*pip, "--find-links", str(wheel.parent), "-r", str(own)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode != 0 and "Hashes are required" in done.stderr


def test_what_is_pinned_is_what_the_lock_pins(from_file: Path, tmp_path: Path) -> None:
    """The file pins what the tests ran with: the lock's versions of what the package asks for, and all that needs."""
    _init(from_file, tmp_path / "shop")
    pinned = set(re.findall(r"^([\w.-]+)==(\S+) ", (tmp_path / "shop" / HASHES).read_text(), re.MULTILINE))

    expected = {(each.name, each.version) for each in pins.of_project()}
    assert pinned == {*expected, ("openclaw-coding-agent", __version__)}
    assert {*pins.direct()} <= {name for name, _ in expected}
    assert not {"pytest", "mypy", "ruff"} & {name for name, _ in expected}


def test_no_text_asks_for_somebody_elses_distribution() -> None:
    """Nothing that the project says or runs installs by the package's command name, which is a stranger's there."""
    asked = re.compile(r"(?:pipx?|tool) (?:install|run) (?:-\S+ )*['\"]?coding-agent\b|uvx (?:-\S+ )*coding-agent\b")
    argv = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60).stdout
    files = [REPOSITORY / name for name in listed.splitlines() if (REPOSITORY / name).is_file()]
    texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in files if file.suffix != ".sum"}

    assert [str(file) for file, text in texts.items() if asked.search(text)] == []
    assert asked.search("pip install -U {}".format("coding-agent"))
