"""What a machine can lack: `requires(...)` lets a test that needs it be listed as not run, with what would help."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _pytest.outcomes import Skipped  # has no public name that can be a base

LIMIT = 60.0  # seconds for one look
_LONGEST = 110  # characters of a reason
_INSTALL = "`make test` installs it: as root, with sudo at a terminal, or with INSTALL=1"


@dataclass(frozen=True)
class Need:
    """Something that not every machine has."""

    what: str
    lacking: Callable[[], str | None]  # why this machine does not have it; None where it does
    help: str


class NotRun(Skipped):
    """A test's end where its machine lacks what the test needs."""

    def __init__(self, what: str, why: str, help: str) -> None:
        super().__init__(f"needs {what}: {why}")
        self.line = (what, why, help)


def requires(*needs: Need) -> None:
    """End the test that calls this, or whose fixture does, as not run where the machine lacks one of the needs."""
    for need in needs:
        why = _lacking(need)
        if why is not None:
            raise NotRun(need.what, why, need.help)


def fetched(argv: Sequence[str], *, limit: float, cwd: Path | None = None) -> None:
    """Run what fetches Debian's packages; end the test as not run where that fails: a mirror may be out of reach."""
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        why = f"{argv[0]}: {' / '.join(lines[-3:]) or done.returncode}"
        raise NotRun("packages from a mirror of Debian's", why, f"see whether `{argv[0]}` reaches a mirror here")


# Asked once a process: nothing is installed while tests run.
@functools.cache
def _lacking(need: Need) -> str | None:
    return need.lacking()


def failure(*argv: str) -> str | None:
    """Run a command; return the last line that it says where it fails, None where it works."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            check=False,
        )
    except FileNotFoundError:
        return f"there is no {argv[0]} on PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return (
        None if done.returncode == 0 else lines[-1][:_LONGEST] if lines else f"{argv[0]} ended with {done.returncode}"
    )


@functools.cache
def program(name: str, package: str) -> Need:
    """Return the need of a program, which one of Debian's packages brings."""
    missing = f"there is no {name} on PATH"
    return Need(f"Debian's package {package}", lambda: None if shutil.which(name) else missing, _INSTALL)


CONTAINER_ENGINE = Need(
    "a container engine",
    lambda: failure("docker", "version"),
    "`make test` starts one (and installs it): as root, with sudo at a terminal, or with INSTALL=1. For one that runs "
    "already: join the group docker",
)
ROOT = Need(
    "root",
    lambda: None if os.geteuid() == 0 else "the tests run as another user",
    "run `make test` as root, on a machine that is there for tests",
)
MOUNTS = Need(
    "to mount file systems",
    lambda: failure("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"),
    "run `make test` as root; in a container, one with CAP_SYS_ADMIN",
)
NETWORK_NAMESPACES = Need(
    "network namespaces",
    lambda: failure("unshare", "--net", "ip", "link", "set", "lo", "up"),
    "run `make test` as root; in a container, one with CAP_SYS_ADMIN and CAP_NET_ADMIN",
)
PODMAN = Need("podman", lambda: failure("podman", "version"), _INSTALL)
MMDEBSTRAP = program("mmdebstrap", "mmdebstrap")
HCLOUD = program("hcloud", "hcloud-cli")
QEMU = program("qemu-system-x86_64", "qemu-system-x86")
MKE2FS = program("mke2fs", "e2fsprogs")
