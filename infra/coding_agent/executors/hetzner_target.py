"""The server that a run gets, declared: its key, its firewall, itself, and the steps until it is a host like any other.

The first contact is over a host key that was made for it alone and that the server was ordered with. Over that it makes
one of its own, which nobody else has ever had; from then on only that one counts.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pulumi

from coding_agent import credentials
from coding_agent.errors import ConnectionBroken, ExecutorUnavailable, TargetDeleted
from coding_agent.executors import cloud_init, hetzner, hetzner_api, server_answer, ssh_agent, ssh_target
from coding_agent.executors.declared import Declared, Wanted
from coding_agent.executors.first_contact import SCRIPTS
from coding_agent.executors.frozen_steps import LONGER
from coding_agent.executors.hetzner_api import Choice, label, labels, listed
from coding_agent.executors.host_keys import KeyPair
from coding_agent.executors.leftovers import Leftovers
from coding_agent.quantities import seconds
from coding_agent.settings import Settings
from coding_agent.toolchain.pulumi import plugins

if TYPE_CHECKING:
    from coding_agent.executors.before import Before
    from coding_agent.executors.hetzner_api import Cloud
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

BOOT_LIMIT = "20m"
ANYWHERE = ("0.0.0.0/0", "::/0")
KEY, FIREWALL, SERVER = "hcloud:index/sshKey:SshKey", "hcloud:index/firewall:Firewall", "hcloud:index/server:Server"
_KINDS = {"ssh_key": KEY, "firewall": FIREWALL, "server": SERVER}
_STEPS_ROOM = 120.0  # seconds that a step may take beside its own limit
_HOST_NAME = re.compile(r"[^a-z0-9]+")


class HetznerTarget(pulumi.ComponentResource):
    """Everything that is made for one run at Hetzner Cloud."""

    def __init__(self, name: str, options: pulumi.ResourceOptions) -> None:
        super().__init__("coding-agent:index:HetznerTarget", name, None, options)


class HostKey(pulumi.CustomResource):
    """A host key for the first contact with a run's server; the server makes itself another one then."""

    private: pulumi.Output[str]
    public: pulumi.Output[str]

    def __init__(self, name: str, run_id: pulumi.Input[str], options: pulumi.ResourceOptions) -> None:
        inputs = {"run_id": run_id, "private": None, "public": None}
        super().__init__("coding-agent:index:HostKey", name, inputs, options)


def image(spec: ExecutorSpec, _task: Task) -> str:
    """Return what the server is made of: with another image or type a run is another run."""
    types = " or ".join(listed(spec.options, "server_types")) or "any server"
    return f"{spec.options.get('image') or hetzner_api.IMAGE} on {types}"


def declare(wanted: Wanted) -> Declared:
    """Declare the target of a run; nothing where it is over: its server is given back then.

    Raises `ExecutorUnavailable` for what can't be ordered, `ConnectionBroken` where the cloud does not answer,
    `TargetDeleted` where somebody else has deleted the server of a run that has not begun, `CredentialMissing`,
    `PluginMissing`.
    """
    found, cloud = wanted.before, hetzner_api.cloud()
    if _over(found, cloud, wanted.spec):
        return Declared()
    plugins.find_or_install(("hcloud", "command"), wanted.say)
    there = found.one(SERVER) if found.stays else None
    if there is None and not wanted.preview:
        # Before anything costs.
        credentials.check(wanted.task, Settings.load(), wanted.spec)
    if not wanted.preview and found.stays and not found.begun:
        if there is not None and cloud.server(int(there["id"])) is None:
            # The engine takes it for there until it looks, and every step on it would fail.
            raise TargetDeleted(
                f"the server {there['id']} was deleted before the run began",
                next_step="repeat it with --refresh: another is made",
            )
        _sweep(cloud, found)
    if there is not None:
        choice = Choice(str(there.get("serverType")), str(there.get("location")), _price_before(found))
    else:
        choice = _choose(cloud, wanted)
    return _made(wanted, found, cloud, choice, new=there is None)


def _is_gone(cloud: Cloud, number: int) -> bool:
    """Return whether the cloud says that there is no server of that number; not where it does not answer."""
    with suppress(ConnectionBroken, ExecutorUnavailable):
        return cloud.server(number) is None
    return False


def _over(found: Before, cloud: Cloud, spec: ExecutorSpec) -> bool:
    """Return whether nothing more is to be done on a server: the run has ended, and its work is here."""
    if not (found.stays and found.ended) or found.lost:
        return False
    if not spec.options.get("keep"):
        return True
    # One that was to be kept and was deleted by hand is not missed either.
    server = found.one(SERVER)
    return server is None or cloud.server(int(server["id"])) is None


def _sweep(cloud: Cloud, found: Before) -> None:
    """Remove what an engine that was killed has made for this run and knows nothing of."""
    known = {(kind, int(each["id"])) for kind, type_ in _KINDS.items() for each in found.resources.get(type_, ())}
    mine = cloud.left({hetzner_api.RUN: label(found.run_id)})
    cloud.remove([each for each in mine if (each.kind, each.id) not in known])


def _choose(cloud: Cloud, wanted: Wanted) -> Choice:
    offered = hetzner_api.of_spec(cloud, wanted.spec)
    left = [each for each in offered if str(each) not in wanted.asked.passed_over]
    if not left:
        refused = ", ".join(str(each) for each in offered) or "none that is large enough"
        raise ExecutorUnavailable(
            f"executor {wanted.spec.name}: no server can be had now: {refused}",
            next_step="name more under server_types and locations, or repeat it later",
        )
    choice, kept = left[0], bool(wanted.spec.options.get("keep"))
    cloud.image(str(wanted.spec.options.get("image") or hetzner_api.IMAGE), choice)
    if wanted.preview:
        until = "`destroy`" if kept else "the work is here"
        wanted.say(f"{choice} costs {choice.price} EUR an hour, VAT included, until {until}")
    else:
        wanted.asked.tried(str(choice), kept)
        wanted.say(f"ordering {choice}, {choice.price} EUR an hour")
    return choice


def _price_before(found: Before) -> str:
    target = (found.one("coding-agent:index:Run") or {}).get("target") or {}
    return str(target.get("price") or "")


def _made(wanted: Wanted, found: Before, cloud: Cloud, choice: Choice, *, new: bool) -> Declared:
    import pulumi_hcloud as hcloud
    from pulumi_command import remote

    spec, run = wanted.spec, wanted.run
    # A run that goes on keeps what it has, whatever became of the files.
    kept = None if new else ["*"]
    component = HetznerTarget(wanted.stack, pulumi.ResourceOptions(parent=wanted.parent))
    host = HostKey(
        wanted.stack,
        run,
        pulumi.ResourceOptions(parent=component, additional_secret_outputs=["private"], ignore_changes=kept),
    )
    leftovers = Leftovers(wanted.stack, wanted, pulumi.ResourceOptions(parent=component))
    # With them goes what the cloud has of the run. By itself the plugin fails to delete a server that is gone.
    options = partial(
        pulumi.ResourceOptions, parent=component, depends_on=[leftovers], deleted_with=leftovers, ignore_changes=kept
    )
    marks = run.apply(lambda run_id: labels(wanted.project, wanted.stack, run_id))
    name = run.apply(lambda run_id: _name(wanted.stack, run_id))
    public = ssh_agent.key_of(spec) if new else str((found.one(KEY) or {}).get("publicKey", ""))
    key = _key(wanted, found, cloud, public, marks, options, new=new)
    firewall = hcloud.Firewall(
        wanted.stack,
        name=name,
        labels=marks,
        rules=[
            hcloud.FirewallRuleArgs(direction="in", protocol="tcp", port="22", source_ips=_sources(spec)),
        ],
        opts=options(replacement_trigger=run),
    )
    git = wanted.task.repo is not None
    ordered: Any = pulumi.Output.all(host.private, host.public).apply(
        lambda pair: cloud_init.user_data(spec, KeyPair(*pair), public, git=git)
    )
    server = hcloud.Server(
        wanted.stack,
        name=name,
        server_type=choice.server_type,
        location=choice.location,
        image=str(spec.options.get("image") or hetzner_api.IMAGE),
        ssh_keys=[key],
        firewall_ids=[firewall.id.apply(int)],
        labels=marks,
        user_data=pulumi.Output.secret(ordered),
        opts=options(replacement_trigger=run),
    )
    limit = seconds(str(spec.options.get("boot_limit") or BOOT_LIMIT))
    address = server.ipv4_address
    if new:
        address = pulumi.Output.all(server.id, address).apply(
            lambda made: server_answer.awaited(made[1], limit, wanted.say, lambda: _is_gone(cloud, int(made[0])))
        )
    connect = partial(
        remote.ConnectionArgs,
        host=address,
        port=22,
        dial_error_limit=ssh_target.DIALS,
        per_dial_timeout=ssh_target.DIAL_LIMIT,
    )
    steps = _First(remote, wanted.stack, component, server, connect(user="root", host_key=host.public), kept)
    booted = steps.step("booted", "ready.sh", f"exec bash -s {int(limit)}", limit)
    sealed = steps.step("sealed", "seal.sh", "exec bash -s", 0.0, booted)
    prepared = ssh_target.prepared(
        replace(wanted, spec=hetzner.as_host(spec)),
        connect(user=cloud_init.USER, host_key=sealed.stdout),
        parent=component,
        depends_on=[sealed],
        deleted_with=server,
    )
    target = {
        "id": server.id,
        "host": server.ipv4_address,
        "port": 22,
        "user": cloud_init.USER,
        "host_key": sealed.stdout,
        "root": prepared.root,
        "run": wanted.run_id,
        "server_type": choice.server_type,
        "location": choice.location,
        "price": choice.price,
    }
    return Declared(target, (component, server, *prepared.resources))


class _First:
    """The steps of the first contact, over the host key that the server was ordered with."""

    def __init__(self, remote: Any, stack: str, parent: Any, server: Any, connection: Any, kept: Any) -> None:
        self._remote, self._stack, self._parent = remote, stack, parent
        self._server, self._connection, self._kept = server, connection, kept

    def step(self, name: str, script: str, command: str, limit: float, *after: Any) -> Any:
        """Declare a step: `script` goes over stdin to `command`, which may take `limit` seconds and a little more."""
        LONGER[f"::{self._stack}-{name}"] = limit + _STEPS_ROOM
        return self._remote.Command(
            f"{self._stack}-{name}",
            connection=self._connection,
            create=command,
            stdin=(SCRIPTS / script).read_text(encoding="utf-8"),
            triggers=[self._server.id],
            add_previous_output_in_env=False,
            logging=self._remote.Logging.NONE,
            opts=pulumi.ResourceOptions(
                parent=self._parent,
                depends_on=[self._server, *after],
                deleted_with=self._server,
                replace_on_changes=["triggers"],
                ignore_changes=self._kept,
            ),
        )


def _key(
    wanted: Wanted, found: Before, cloud: Cloud, public: str, marks: Any, options: Any, *, new: bool
) -> pulumi.Input[str]:
    """Return the number of the key at the cloud, which has each key once: whoever brought it there, it serves."""
    import pulumi_hcloud as hcloud

    declared = found.names.get(KEY, ())
    if new:
        there = cloud.key(_fingerprint(public))
        if there is not None:
            return str(there.id)
        # One that the stack has and the cloud has not could only be changed, which fails.
        called = next(each for each in (wanted.stack, f"{wanted.stack}-again") if each not in declared)
    elif declared:
        called = declared[0]
    else:
        return ""  # the server knows the key already, and what it was ordered with is not looked at again
    digest = hashlib.sha256(public.encode()).hexdigest()[:12]
    key = hcloud.SshKey(called, name=f"coding-agent-{digest}", public_key=public, labels=marks, opts=options())
    return key.id


def _fingerprint(public: str) -> str:
    digest = hashlib.md5(base64.b64decode(public.split()[1]), usedforsecurity=False).hexdigest()
    return ":".join(digest[place : place + 2] for place in range(0, len(digest), 2))


def _name(stack: str, run_id: str) -> str:
    """Return the name of a run's server, a host's name as well: its own, so that it is never made twice."""
    return f"coding-agent-{_HOST_NAME.sub('-', stack.lower())[:30].strip('-')}-{run_id[:16]}".replace("--", "-")


def _sources(spec: ExecutorSpec) -> list[str]:
    found = []
    for each in spec.options.get("ssh_sources") or ANYWHERE:
        try:
            found.append(str(ipaddress.ip_network(each, strict=False)))
        except ValueError as error:
            raise ExecutorUnavailable(
                f"executor {spec.name}: ssh_sources: {each} is no address or network",
                next_step="write one such as 203.0.113.7 or 198.51.100.0/24",
            ) from error
    return found
