"""requirements.lock read: what is pinned, by which hashes, and which of it the installed package needs."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "openclaw-coding-agent"
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s\\;]+)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_NEEDED_BY = re.compile(r"#\s+(?:via\s+)?([A-Za-z0-9._-]+)")
_ABOUT = """\
# What coding-agent needs to run, each by version and hash; `make lock` writes this from requirements.lock.
"""


@dataclass(frozen=True)
class Pin:
    """One distribution at one version."""

    name: str
    version: str
    hashes: tuple[str, ...]
    needed_by: frozenset[str]

    @property
    def requirement(self) -> str:
        """The pin as lines of a requirements file."""
        return " \\\n    ".join([f"{self.name}=={self.version}", *(f"--hash={each}" for each in self.hashes)])


def read(lock: str) -> dict[str, Pin]:
    """Return what a file that pip-compile wrote pins, by name."""
    pins: dict[str, Pin] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if (found := _PIN.match(block)) is None:
            continue
        needed_by = (_NEEDED_BY.search(line) for line in block.splitlines() if "#" in line)
        users = frozenset(_normal(each[1]) for each in needed_by if each and each[1] != "via")
        name = _normal(found[1])
        pins[name] = Pin(name, found[2], tuple(_HASH.findall(block)), users)
    return pins


def runtime(pins: Mapping[str, Pin], direct: Iterable[str]) -> list[Pin]:
    """Return the pins of `direct` and of all that these need, in the order of their names."""
    needed, more = set[str](), {*map(_normal, direct)}
    while more:
        needed |= more
        more = {pin.name for pin in pins.values() if pin.needed_by & needed} - needed
    return [pins[name] for name in sorted(needed)]


def of_project() -> list[Pin]:
    """Return what the project's package needs to run, as its lock pins it."""
    return runtime(read((ROOT / "requirements.lock").read_text(encoding="utf-8")), direct())


def direct() -> list[str]:
    """Return the names that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = (re.match(r"[A-Za-z0-9._-]+", each) for each in project["dependencies"])
    return [_normal(each[0]) for each in names if each]


def built(wheel: Path) -> Pin:
    """Return the pin of a wheel of the project's own."""
    version = wheel.name.split("-")[1]
    return Pin(DISTRIBUTION, version, (f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}",), frozenset())


def text(pins: Iterable[Pin]) -> str:
    """Return a requirements file that lets pip install these and nothing else."""
    return _ABOUT + "".join(f"{pin.requirement}\n" for pin in pins)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
