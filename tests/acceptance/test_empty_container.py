"""The wheel on a machine where nothing was installed before, by each of the installers that people use."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import shared_cache
from coding_agent import __version__
from containers import Docker, debian_image
from distributions import build
from fakes.messages_api import MessagesApi
from release import pins
from user import API_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT = 400.0  # seconds for one command; an installation fetches some 150 MB
IMAGE = "coding-agent-test/empty:1"  # Debian with what the README asks for, and no Python package of anybody's
_PACKAGES = "git,python3,python3-venv,ca-certificates,procps,perl"
_INSTALLERS = ("pipx==1.18.4", "uv==0.13.9")
# How this machine reaches package registries is how a container on it does.
_NETWORK = ("PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "UV_DEFAULT_INDEX", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Machine:
    """A container with an empty home and an empty repository, in which somebody types commands."""

    name: str
    variables: dict[str, str]

    def sh(self, script: str, code: int = 0) -> str:
        """Run a line of shell in the repository and return what it printed on stdout."""
        given = [word for name, value in self.variables.items() for word in ("-e", f"{name}={value}")]
        done = subprocess.run(
            ["docker", "exec", "-w", "/home/shop", *given, self.name, "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == code, f"{script} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel, and the file of hashes that a release has beside it."""
    wheel = build(tmp_path_factory.mktemp("dist"))
    (wheel.parent / "requirements.txt").write_text(pins.text([*pins.of_project(), pins.built(wheel)]))
    return wheel.parent


@pytest.fixture
def model() -> Iterator[MessagesApi]:
    """Run a scripted Messages API on loopback whose model edits a file and commits it, whatever the prompt is."""
    with MessagesApi(default="edit") as api:
        yield api


@pytest.fixture
def machine(
    docker: Docker, dist: Path, model: MessagesApi, engine_folder: Path, claude_program: Path
) -> Iterator[Machine]:
    """Return a machine with the wheel, the engine and Claude Code in folders of their own, and a model on loopback."""
    image = debian_image(docker, IMAGE, _PACKAGES)
    downloads = shared_cache.FOLDER / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    folders = {dist: "/dist", engine_folder: "/engine", claude_program.parent: "/claude"}
    mounts = [word for here, there in folders.items() for word in ("-v", f"{here}:{there}:ro")]
    certificates = [
        folder for folder in ("/etc/ssl/certs", "/usr/local/share/ca-certificates") if Path(folder).exists()
    ]
    mounts += [word for folder in certificates for word in ("-v", f"{folder}:{folder}:ro")]
    variables = {
        **{name: os.environ[name] for name in (*_NETWORK, *_PROXIES) if name in os.environ},
        "PATH": "/root/.local/bin:/venv/bin:/tools/bin:/engine:/claude:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "PIP_CACHE_DIR": "/downloads/pip",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COMPILE": "1",  # what is not used of 60 packages needn't be compiled
        "UV_CACHE_DIR": "/downloads/uv",
        "UV_LINK_MODE": "copy",
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": API_KEY,
    }
    with docker.running(*mounts, "-v", f"{downloads}:/downloads", image=image) as name:
        docker("exec", name, "mkdir", "/home/shop")
        yield Machine(name, variables)


def _installed(machine: Machine, installer: str) -> str:
    """Install the wheel as `installer` does; return how its command is called then."""
    wheel = f"/dist/openclaw_coding_agent-{__version__}-py3-none-any.whl"
    if installer in ("pip", "pip --require-hashes"):
        by_hash = "--require-hashes --only-binary :all: --find-links /dist -r /dist/requirements.txt"
        machine.sh(f"python3 -m venv /venv && /venv/bin/pip install -q {wheel if installer == 'pip' else by_hash}")
        return "coding-agent"
    machine.sh(f"python3 -m venv /tools && /tools/bin/pip install -q {' '.join(_INSTALLERS)}")
    if installer == "uvx":
        return f"uvx --quiet --from {shlex.quote(wheel)} coding-agent"
    machine.sh(f"pipx install {shlex.quote(wheel)}")
    return "coding-agent"


@pytest.mark.parametrize("installer", ["pip", "pip --require-hashes", "pipx", "uvx"])
def test_an_empty_machine_runs_the_example(machine: Machine, model: MessagesApi, installer: str) -> None:
    """From the wheel alone, in an empty repository: `init`, `doctor`, `up` of the example, `destroy`; the file of
    hashes that `init --github` writes holds this wheel wherever the installer leaves a trace of it."""
    ours = _installed(machine, installer)

    assert json.loads(machine.sh(f"{ours} version --json"))["coding_agent"] == __version__
    machine.sh("git config --global user.name Me && git config --global user.email me@example.invalid && git init -q")
    machine.sh(f"{ours} init --github && git add -A && git commit -q -m Begin")
    machine.sh(f"{ours} doctor")
    shown = machine.sh(f"{ours} up example")

    assert "succeeded" in shown
    outputs = json.loads(machine.sh(f"{ours} status example --json"))
    assert (outputs["status"], outputs["coding_agent_version"]) == ("succeeded", __version__)
    assert outputs["branch"] == "coding-agent/example"
    assert len(model.sessions()) == 1
    machine.sh(f"{ours} destroy example --yes")
    assert "example" not in machine.sh('eval "$(' + ours + ' env)" && pulumi stack ls --json')
    own = machine.sh("grep -A2 ^openclaw-coding-agent .github/coding-agent-requirements.txt")
    assert ("--hash=sha256:" in own) == (installer != "pip --require-hashes")
