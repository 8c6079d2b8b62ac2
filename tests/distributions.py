"""The package as others get it: a wheel, built and installed without this repository."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LIMIT = 240.0  # seconds for one command


def build(folder: Path) -> Path:
    """Build the wheel into `folder`."""
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(argv, check=True, capture_output=True, timeout=LIMIT)
    return next(folder.glob("*.whl"))


def install(folder: Path, *what: str) -> Path:
    """Make an environment of what pip is asked for, over the dependencies of this one; return where its programs are.

    Nothing is fetched.
    """
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=LIMIT)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", *what], check=True, timeout=LIMIT)
    # The folder alone: the .pth files in it, and so this repository, are not looked at.
    libraries = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent
