"""The examples in tasks/, each run as it stands; what their agents do is decided by a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.hetzner_api import HetznerApi
from fakes.messages_api import MessagesApi
from machines.ssh_host import SshHost
from readme import declared, drawn
from renter import make_renter
from user import User

pytestmark = pytest.mark.timeout(600)

TASKS = Path(__file__).parents[2] / "tasks"
_DESCRIBE = """\
{ echo "$(uname -n), $(nproc) cores"; git --version; } >HOST.md
git add HOST.md && git commit -q -m 'Describe the host'"""
_MEND = """\
sh test.sh || { echo 'echo ready' >app.sh && sh test.sh && git commit -q -a -m 'Say that it is ready'; }"""
_FLAKE = """\
cat >flake.nix <<'END'
{
  outputs = { self }: {
    packages.x86_64-linux.app = derivation {
      name = "app";
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ "-c" "echo built by nix > $out" ];
    };
  };
}
END
git add flake.nix && nix build .#app && cat result && git add flake.nix && git commit -q -m 'Build with Nix'"""
NIX = """\
experimental-features = nix-command flakes
sandbox = false
substitute = false
build-users-group =
"""


def _bash(command: str) -> dict[str, Any]:
    return {"blocks": [{"tool": "Bash", "input": {"command": command, "description": "Work"}}]}


@pytest.fixture
def messages_api(request: pytest.FixtureRequest) -> Iterator[MessagesApi]:
    """Run a Messages API whose agents do what the test's parameter says, whatever they are asked."""
    script = {"example": [_bash(request.param), {"blocks": [{"text": "Done."}]}]}
    with MessagesApi(default="example", script=script) as api:
        yield api


@pytest.fixture
def at_host(user: User, ssh_host: SshHost, command_plugin: Path, claude_program: Path) -> Iterator[User]:
    """Return a user with a host `crib`, which has Claude Code and Nix."""
    (user.home / ".pulumi" / "plugins").symlink_to(command_plugin)
    program = ssh_host.put_program(claude_program)
    options = ssh_host.options(claude_path=program, env={"NIX_CONFIG": NIX})
    user.executors({"name": "crib", "type": "ssh", "labels": ["nix"], **options})
    ssh_host.run("install", "-d", "-o", "plain", "-g", "plain", "/nix")
    yield user
    ssh_host.run("bash", "-c", "pkill -KILL -u plain; rm -rf /home/plain/.coding-agent || :")


def _example(user: User, name: str) -> None:
    user.task(name, (TASKS / f"{name}.yaml").read_text())
    user.commit_all()
    user.cli("up", name)
    assert user.outputs(name)["status"] == "succeeded"


@pytest.mark.parametrize("messages_api", [_DESCRIBE], indirect=True)
def test_on_a_host(at_host: User) -> None:
    """tasks/on-a-host.yaml runs on the executor of the production example, and its note comes back, as a commit and as
    an artifact; its stack holds what the README draws."""
    _example(at_host, "on-a-host")
    assert declared(at_host.pulumi("stack", "export", "--stack", "on-a-host").stdout) == drawn("ssh")
    run = at_host.outputs("on-a-host")["run_id"]
    note = (at_host.record_dir(run) / "artifacts" / "HOST.md").read_text()
    assert note == at_host.git("show", "coding-agent/on-a-host:HOST.md")
    at_host.cli("destroy", "on-a-host")


@pytest.mark.parametrize("messages_api", [_FLAKE], indirect=True)
def test_nix_build(at_host: User) -> None:
    """tasks/nix-build.yaml makes `nix build .#app` work on the first executor that has Nix."""
    _example(at_host, "nix-build")
    assert "built by nix" in at_host.cli("logs", "--raw", "nix-build").stdout
    assert "packages.x86_64-linux.app" in at_host.git("show", "coding-agent/nix-build:flake.nix")
    at_host.cli("destroy", "nix-build")


@pytest.mark.parametrize("messages_api", [_MEND], indirect=True)
def test_on_a_server(user: User, hetzner_api: HetznerApi, server_plugins: Path) -> None:
    """tasks/on-a-server.yaml mends a repository on a server that is gone afterwards."""
    make_renter(user, hetzner_api, server_plugins)
    (user.project / "app.sh").write_text("echo broken\n")
    (user.project / "test.sh").write_text('[ "$(sh app.sh)" = ready ]\n')
    _example(user, "on-a-server")
    assert user.git("show", "coding-agent/on-a-server:app.sh") == "echo ready\n"
    assert hetzner_api.listed() == []
    user.cli("destroy", "on-a-server")
