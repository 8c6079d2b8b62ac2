"""Build a release into dist/, or write what the package knows of its own dependencies.

python -m release [--tag TAG]
python -m release pins
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from release import pins

LIMIT = 300.0  # seconds for one build
DIST = pins.ROOT / "dist"
PACKAGE = pins.ROOT / "infra" / "coding_agent"
# Two builds differ in everything that must not matter.
_BUILDS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
)
_MASKS = (0o022, 0o077)


class NotReleased(Exception):
    """Why there is no release; the message says what to do about it."""


def build(tag: str | None) -> list[Path]:
    """Build the commit that is checked out, and return the files of the release. Raises `NotReleased`."""
    version = _version()
    _check(version, tag)
    made_at = int(_git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory(prefix="release-of-coding-agent-") as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(_BUILDS))]
        for folder, variables, mask in zip(folders, _BUILDS, _MASKS, strict=True):
            _build(folder, {**variables, "SOURCE_DATE_EPOCH": str(made_at)}, mask)
        first, *others = ({path.name: path.read_bytes() for path in (folder / "out").iterdir()} for folder in folders)
        for other in others:
            if differing := sorted(name for name in {*first, *other} if first.get(name) != other.get(name)):
                raise NotReleased(f"two builds of one commit differ: {', '.join(differing)}")
    return _write(version, first, made_at)


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _check(version: str, tag: str | None) -> None:
    if tag and tag != f"v{version}":
        raise NotReleased(f"the tag is {tag} and the version {version}: __version__ and the tag v{version} go together")
    if changed := _git("status", "--porcelain", "--untracked-files=normal").splitlines():
        shown = ", ".join(line[3:] for line in changed[:5]) + (", ..." if len(changed) > 5 else "")
        raise NotReleased(f"the working tree is not what is committed: {shown}; commit or stash it, or remove it")
    if f"\n## {version} " not in (pins.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise NotReleased(f"CHANGELOG.md does not say what is in {version}: give it a heading `## {version} - DATE`")
    if (PACKAGE / "template" / "requirements.txt").read_text(encoding="utf-8") != pins.text(pins.of_project()):
        raise NotReleased("the package's pins are not those of requirements.lock: python -m release pins")


def _build(folder: Path, variables: dict[str, str], mask: int) -> None:
    """Build both distributions of what is committed; the wheel is built from the sdist, so that this is whole."""
    tree = folder / "tree"
    subprocess.run(
        ["git", "checkout-index", "--all", f"--prefix={tree}/"], cwd=pins.ROOT, umask=mask, check=True, timeout=LIMIT
    )
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "out"), str(tree)]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        argv, env=environment, umask=mask, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=folder
    )
    if done.returncode:
        raise NotReleased(f"the build failed:\n{done.stdout}{done.stderr}")


def _write(version: str, distributions: dict[str, bytes], made_at: int) -> list[Path]:
    from release import sbom  # only here: the environment of the tests has not what it needs

    (wheel,) = (content for name, content in distributions.items() if name.endswith(".whl"))
    digest = hashlib.sha256(wheel).hexdigest()
    needed, stem = pins.of_project(), f"{pins.DISTRIBUTION}-{version}"
    ours = pins.Pin(pins.DISTRIBUTION, version, (f"sha256:{digest}",), frozenset())
    files = {
        **distributions,
        f"requirements-{stem}.txt": pins.text([*needed, ours]).encode(),
        f"{stem}.cdx.json": sbom.bill(version, digest, needed, pins.direct(), made_at).encode(),
    }
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    files["SHA256SUMS"] = sums.encode()
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for name, content in files.items():
        (DIST / name).write_bytes(content)
    return [DIST / name for name in sorted(files)]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=pins.ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise NotReleased(f"a release is made of a commit: git {arguments[0]} says {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m release")
    parser.add_argument("what", nargs="?", choices=["build", "pins"], default="build")
    parser.add_argument("--tag", default="", help="the tag that is released; it must be the version's")
    asked = parser.parse_args()
    if asked.what == "pins":
        (PACKAGE / "template" / "requirements.txt").write_text(pins.text(pins.of_project()), encoding="utf-8")
        return 0
    try:
        for path in build(asked.tag or None):
            print(path.relative_to(pins.ROOT))
    except (NotReleased, subprocess.SubprocessError) as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
