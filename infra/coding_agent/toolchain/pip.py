"""Fetch a wheel as pip does: from the user's own index, through his proxy, with his certificates. Installs nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from coding_agent.toolchain.installation import tail


def download(requirement: str, folder: Path, *, limit: float) -> Path:
    """Return the wheel that a line of a requirements file names, fetched below `folder`, which is empty.

    A line with hashes is held to them. `limit` is in seconds. Raises OSError with pip's last words, TimeoutError.
    """
    (folder / "wheel.txt").write_text(f"{requirement}\n", encoding="utf-8")
    argv = [*_pip(folder, limit), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    argv += ["--no-cache-dir", "--only-binary", ":all:", "--dest", "wheels", "-r", "wheel.txt"]
    _run(argv, folder, limit)
    return next((folder / "wheels").glob("*.whl"))


def _pip(folder: Path, limit: float) -> list[str]:
    """Return the command of a pip: this Python's own, else one in an environment made for the purpose.

    An environment that uv or pipx made has no pip.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    _run([sys.executable, "-m", "venv", "pip"], folder, limit)
    return [str(folder / "pip" / "bin" / "python"), "-m", "pip"]


def _run(argv: list[str], folder: Path, limit: float) -> None:
    # Settings of the user's that make pip refuse to work outside an environment do not matter to a download.
    settings = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
    try:
        # In the empty folder: pip run as a module imports from where it is started.
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"pip was not done within {limit:.0f} s") from None
    if done.returncode != 0:
        raise OSError(tail((done.stderr or done.stdout).decode(errors="replace"), 2))
