"""A new machine: Debian with what the README asks for and nothing else, where a user without root types `make demo`."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest

from coding_agent.toolchain.pulumi.parts import engine_part
from containers import Docker, debian_image

ROOT = Path(__file__).parents[2]
LIMIT = 20 * 60.0  # seconds; most of it is pip and npm
PACKAGES = "git,make,python3-venv,npm,ca-certificates"
_TYPED = (
    "git config --global safe.directory '*'",  # /project belongs to another user there
    "git clone -q --no-local /project coding-agent",
    "cd coding-agent",
    "make demo",
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What tells pip and npm which registries to ask, through which proxy, and whom to trust.
_REGISTRIES = (
    "pip_",
    "npm_config_",
    "node_extra_ca_certs",
    "ssl_cert_",
    "goproxy",
    "gosumdb",
    "http_",
    "https_",
    "no_",
)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 1000)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_make_demo_on_a_new_machine(suite: str, docker: Docker, engine_folder: Path) -> None:
    """A user without root clones the repository on a bare Debian and types `make demo`, and the demo ends well.

    The engine is the one that all tests share, through a mounted cache; everything else comes from registries.
    """
    image = debian_image(
        docker,
        f"coding-agent-test/new-{suite}:1",
        PACKAGES,
        'chroot "$1" useradd --create-home --shell /bin/bash new',
        'chroot "$1" su new -c "mkdir -p ~/.cache/coding-agent/pulumi"',
        suite=suite,
    )
    name = f"test-{secrets.token_hex(6)}"
    mounts = {
        ROOT: "/project",
        engine_folder: f"/home/new/.cache/coding-agent/pulumi/{engine_part().folder.name}",
        Path(_CERTIFICATES): _CERTIFICATES,
    }
    passed = [variable for variable in os.environ if variable.lower().startswith(_REGISTRIES)]
    argv = [
        *("docker", "run", "--rm", "--init", "--name", name, "--network", "host", "--user", "new"),
        *("--workdir", "/home/new", "--env", "HOME=/home/new"),
        *(word for variable in passed for word in ("--env", variable)),
        *(word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}:ro")),
        *(image, "bash", "-ec"),
        "; ".join(_TYPED),
    ]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    finally:
        docker("rm", "--force", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOTES.md says how the tests are run" in done.stdout
    assert "The stack is gone; the branch coding-agent/demo and the run's record stay." in done.stdout
