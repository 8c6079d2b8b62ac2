"""`make release`: what it builds, that anybody can build the same, and when it builds nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from coding_agent import __version__
from distributions import REPOSITORY
from release import pins

pytestmark = pytest.mark.slow

LIMIT = 280.0  # seconds for one `make release`; the first one fetches what builds it
WHEEL = f"openclaw_coding_agent-{__version__}-py3-none-any.whl"
SDIST = f"openclaw_coding_agent-{__version__}.tar.gz"
REQUIREMENTS = f"requirements-openclaw-coding-agent-{__version__}.txt"
BILL = f"openclaw-coding-agent-{__version__}.cdx.json"


def _git(checkout: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.invalid"]
    argv = ["git", *identity, *arguments]
    return subprocess.run(argv, cwd=checkout, check=True, capture_output=True, text=True, timeout=60).stdout


def _release(checkout: Path, code: int = 0, **environment: str) -> str:
    """Run `make release` as somebody does who has cloned the repository; return what it said."""
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "TAG")}
    done = subprocess.run(
        ["make", "release"],
        cwd=checkout,
        env={**given, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of its own that holds, committed, what is in this one now."""
    folder = tmp_path_factory.mktemp("checkout") / "coding-agent"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", "-z"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split("\0")
    for name in listed:
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    _git(folder, "init", "-q")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", "All")
    return folder


@pytest.fixture(scope="module")
def dist(checkout: Path) -> Path:
    """Return the folder of a release."""
    _release(checkout, TAG=f"v{__version__}")
    return checkout / "dist"


def test_a_release_is_whole(dist: Path, checkout: Path) -> None:
    """A release has wheel, sdist, a bill of materials and a file of hashes, all named with their checksums."""
    assert {path.name for path in dist.iterdir()} == {WHEEL, SDIST, REQUIREMENTS, BILL, "SHA256SUMS"}
    listed = {line[66:]: line[:64] for line in (dist / "SHA256SUMS").read_text().splitlines()}
    assert listed == {
        name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in (WHEEL, SDIST, REQUIREMENTS, BILL)
    }
    # The user is the same one, and so is the day, wherever it was built.
    with tarfile.open(dist / SDIST) as archive:
        members = archive.getmembers()
    assert {(each.uid, each.gid, each.uname) for each in members} == {(0, 0, "")}
    assert {each.mtime for each in members} == {int(_git(checkout, "log", "-1", "--format=%ct"))}
    sources = {name for name in zipfile.ZipFile(dist / WHEEL).namelist() if name.endswith((".go", "go.mod", "go.sum"))}
    here = (REPOSITORY / "infra" / "coding_agent" / "toolchain" / "pulumi" / "build").rglob("*")
    assert sources == {str(path.relative_to(REPOSITORY / "infra")) for path in here if path.is_file()}


def test_the_file_of_hashes_pins_the_wheel_and_all_that_it_needs(dist: Path) -> None:
    """The file names the runtime's distributions as the lock does, and this very wheel."""
    text = (dist / REQUIREMENTS).read_text()
    pinned = set(re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.MULTILINE))
    needed = {(pin.name, pin.version) for pin in pins.of_project()}
    assert pinned == {*needed, ("openclaw-coding-agent", __version__)}
    digest = hashlib.sha256((dist / WHEEL).read_bytes()).hexdigest()
    assert text.endswith(f"openclaw-coding-agent=={__version__} \\\n    --hash=sha256:{digest}\n")


def test_the_bill_of_materials_names_all_that_is_installed(dist: Path) -> None:
    """The bill of materials is of this wheel, and has every distribution that comes with it and what each needs."""
    bill = json.loads((dist / BILL).read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "openclaw-coding-agent")
    (digest,) = bill["metadata"]["component"]["hashes"]
    assert digest["content"] == hashlib.sha256((dist / WHEEL).read_bytes()).hexdigest()
    assert {(each["name"], each["version"]) for each in bill["components"]} == {
        (pin.name, pin.version) for pin in pins.of_project()
    }
    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    reached: set[str] = set()
    more = {bill["metadata"]["component"]["bom-ref"]}
    while more:
        reached |= more
        more = {part for each in more for part in needs[each]} - reached
    assert {each["bom-ref"] for each in bill["components"]} < reached


def test_a_second_release_is_the_same(dist: Path, checkout: Path, tmp_path: Path) -> None:
    """The same commit released elsewhere, by another clone, has the same bytes in every file."""
    elsewhere = tmp_path / "elsewhere"
    _git(tmp_path, "clone", "-q", str(checkout), str(elsewhere))
    (elsewhere / ".venv").mkdir()
    (elsewhere / ".venv" / "release").symlink_to(checkout / ".venv" / "release")
    (elsewhere / ".venv" / "release" / ".installed").touch()

    _release(elsewhere)

    assert (elsewhere / "dist" / "SHA256SUMS").read_text() == (dist / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("environment", "change", "why"),
    [
        ({"TAG": "v9.9.9"}, None, f"the tag is v9.9.9 and the version {__version__}"),
        ({}, "README.md", "the working tree is not what is committed: README.md"),
        ({}, "infra/coding_agent/left.py", "the working tree is not what is committed: infra/coding_agent/left.py"),
    ],
)
def test_what_is_not_a_commit_of_its_version_is_not_released(
    dist: Path, checkout: Path, environment: dict[str, str], change: str | None, why: str
) -> None:
    """A tag of another version, a change that is not committed, or a file that git does not know: no release, and the
    one that is there stays."""
    before = (dist / "SHA256SUMS").read_text()
    if change is not None:
        with (checkout / change).open("a") as file:
            file.write("\n")
    try:
        assert f"no release: {why}" in _release(checkout, code=1, **environment)
    finally:
        _git(checkout, "stash", "-q", "-u")
    assert (dist / "SHA256SUMS").read_text() == before


def test_the_workflow_publishes_what_was_built_with_no_more_than_it_needs() -> None:
    """Every action is pinned by its commit, and only the job that publishes may get a token for that."""
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "release.yml").read_text())
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # `on` is YAML 1.1's true
    assert workflow["permissions"] == {}
    jobs = workflow["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "attest": {"id-token": "write", "attestations": "write"},
        "publish": {"id-token": "write"},
        "page": {"contents": "write"},
    }
    assert [jobs[name].get("needs") for name in jobs] == [None, "build", "attest", "publish"]
    assert jobs["publish"]["environment"] == "pypi"
    for job in jobs.values():
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40))
            assert "${{" not in step.get("run", "")
    (build,) = [step for step in jobs["build"]["steps"] if "run" in step]
    assert (build["run"], build["env"]) == ("make release", {"TAG": "${{ github.ref_name }}"})
