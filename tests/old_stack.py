"""A project of the engine's alone, whose stack one set of plugins has made and another goes on with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coding_agent.toolchain.pulumi import plugins
from user import User

PROJECT, STACK = "old", "job"
_ID = "11111111-2222-4333-8444-555555555555"  # of the provider
_SECRET = "4dabf18193072939515e22adb298388d"  # the engine's mark of a secret


@dataclass(frozen=True)
class OldStack:
    """A project with one stack, whose state is what a test writes."""

    user: User
    environment: Mapping[str, str]

    @classmethod
    def of(cls, user: User) -> OldStack:
        """Make a user's project one with such a stack, and with no plugin yet."""
        backend = user.home / "backend"
        backend.mkdir()
        for file in user.project.iterdir():
            if file.is_file():
                file.unlink()
        (user.project / "Pulumi.yaml").write_text(f"name: {PROJECT}\nruntime: python\n")
        (user.project / "__main__.py").write_text("")
        added = {"PULUMI_CONFIG_PASSPHRASE": "", "PULUMI_SKIP_UPDATE_CHECK": "true"}
        stack = cls(user, {"PULUMI_BACKEND_URL": f"file://{backend}", **added})
        stack.pulumi("stack", "init", STACK)
        return stack

    def use(self, folder: Path) -> None:
        """Let the engine find its plugins in a folder."""
        link = self.user.home / ".pulumi" / "plugins"
        link.unlink(missing_ok=True)
        link.symlink_to(folder)

    def pulumi(self, *argv: str) -> str:
        """Run the engine in the project; return what it printed."""
        done = self.user.run("pulumi", *argv, "--non-interactive", code=None, **self.environment)
        assert done.returncode == 0, f"pulumi {' '.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start the engine in the project; what it prints is to be read."""
        return subprocess.Popen(
            ["pulumi", *argv, "--non-interactive"],
            cwd=self.user.project,
            env={**self.user.environment, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def program(self, text: str) -> None:
        """Write the project's program."""
        (self.user.project / "__main__.py").write_text(text, encoding="utf-8")

    def take(self, library: str, *resources: Mapping[str, Any]) -> None:
        """Let the stack be what the official plugin of a library has made."""
        version = plugins.version(library)
        kind = f"pulumi:providers:{library}"
        provider = {
            **{"urn": urn(kind, _default(version)), "type": kind, "custom": True, "id": _ID},
            **{"inputs": {"version": version}, "outputs": {"version": version}},
        }
        kind = "pulumi:pulumi:Stack"
        stack = {"urn": urn(kind, f"{PROJECT}-{STACK}"), "type": kind, "custom": False}
        within = {"parent": stack["urn"], "provider": f"{provider['urn']}::{_ID}"}
        made = [stack, provider, *({**each, **within} for each in resources)]
        file = self.user.project / "state.json"
        engine = "v3.259.0"
        magic = hashlib.sha256(engine.encode()).hexdigest()  # the engine's own mark of what it has written
        manifest = {"time": "2026-01-01T00:00:00Z", "magic": magic, "version": engine}
        file.write_text(json.dumps({"version": 3, "deployment": {"manifest": manifest, "resources": made}}))
        self.pulumi("stack", "import", "--stack", STACK, "--file", str(file))

    def goes_on(self) -> None:
        """Assert that nothing is to be done: by the program, after a look at what is there, by the program again."""
        before = self.outputs()
        self.pulumi("preview", "--stack", STACK, "--diff", "--expect-no-changes")
        self.pulumi("refresh", "--stack", STACK, "--yes", "--skip-preview", "--expect-no-changes")
        self.pulumi("up", "--stack", STACK, "--yes", "--skip-preview", "--expect-no-changes")
        after = self.outputs()
        assert after.keys() == before.keys()
        changed = [
            f"{urn} {name}: {outputs.get(name)!r} became {after[urn].get(name)!r}"
            for urn, outputs in before.items()
            for name in sorted(outputs.keys() | after[urn].keys())
            if outputs.get(name) != after[urn].get(name)
        ]
        assert not changed, "\n".join(changed)

    def outputs(self) -> dict[str, Mapping[str, Any]]:
        """Return the outputs of the resources in the state, without the notes that the bridge makes for itself."""
        said = json.loads(self.pulumi("stack", "export", "--stack", STACK))
        return {each["urn"]: _public(each.get("outputs", {})) for each in said["deployment"].get("resources") or ()}

    def destroy(self) -> None:
        """Destroy what the stack has."""
        self.pulumi("destroy", "--stack", STACK, "--yes", "--skip-preview")
        assert self.outputs() == {}


def _public(value: Any) -> Any:
    """Return outputs without the bridge's notes, and without what Terraform takes for nothing: "", 0 and False."""
    if isinstance(value, Mapping):
        if _SECRET in value:  # with another ciphertext each time
            return "a secret"
        shown = {name: _public(each) for name, each in value.items() if not name.startswith("__")}
        return {name: each for name, each in shown.items() if each}
    if isinstance(value, list):
        return [_public(each) for each in value]
    return value


def _default(version: str) -> str:
    return f"default_{version.replace('.', '_')}"


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:{STACK}::{PROJECT}::{kind}::{name}"


HETZNER = """
import pulumi
import pulumi_hcloud as hcloud

key = hcloud.SshKey("key", public_key=open("key.pub").read())
firewall = hcloud.Firewall(
    "wall",
    name="wall",
    labels={{"made-by": "tests"}},
    rules=[hcloud.FirewallRuleArgs(direction="in", protocol="tcp", port="22", source_ips=["0.0.0.0/0", "::/0"])],
)
hcloud.Server(
    "server",
    name="old-server",
    server_type="{server_type}",
    image="debian-12",
    location="nbg1",
    ssh_keys=[key.id],
    firewall_ids=[firewall.id.apply(int)],
    user_data="#cloud-config\\n",
    labels={{"made-by": "tests"}},
)
"""
CONTAINER = """
import pulumi_docker as docker

volume = docker.Volume("volume", name="{name}", labels=[docker.VolumeLabelArgs(label="made-by", value="tests")])
network = docker.Network("network", name="{name}", labels=[docker.NetworkLabelArgs(label="made-by", value="tests")])
image = docker.RemoteImage("image", name="{image}", keep_locally=True)
docker.Container(
    "container",
    name="{name}",
    image=image.image_id,
    entrypoints=["/bin/sh"],
    command=["-c", "exec sleep 1000"],
    user="0:0",
    working_dir="/",
    init=True,
    start=False,
    must_run=False,
    restart="no",
    privileged=False,
    capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"]),
    security_opts=["no-new-privileges:true"],
    memory=256,
    memory_swap=256,
    networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.name)],
    mounts=[docker.ContainerMountArgs(target="/work", type="volume", source=volume.name)],
    labels=[docker.ContainerLabelArgs(label="made-by", value="tests")],
)
"""
