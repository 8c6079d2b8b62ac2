"""What is declared of a host: that it has what a run needs, and the supervisor there. The run is not the plugin's.

Only steps of seconds that can be repeated go through the plugin: it has no time limit, and loses what is cut off.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pulumi

from coding_agent import paths
from coding_agent.executors import host_keys, ssh_login
from coding_agent.executors.declared import Declared, Wanted
from coding_agent.supervisor import SCRIPTS, mark
from coding_agent.toolchain.installation import lock, quiet, replacing
from coding_agent.toolchain.pulumi import plugins

if TYPE_CHECKING:
    from pulumi_command import remote

    from coding_agent.executors.ssh_login import Login
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

ROOT = "~/.coding-agent"  # the folder of runs, where the executor names no other
DIAL_LIMIT = 10  # seconds for one attempt to connect
DIALS = 2  # attempts to connect
SPACE = 200  # MB that have to be free on the host
SPACE_INSTALLED = 600  # MB more where Claude Code is brought there
HOST_SCRIPT = Path(__file__).with_name("host.sh")
# Whatever the login shell is, it only starts another one, which reads everything from its input.
_COMMAND = "exec sh -s {}"
_ROOT = re.compile(r"^coding-agent=(/.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Prepared:
    """A host on which a run can be started."""

    root: pulumi.Output[str]  # the folder of runs, absolute
    resources: tuple[pulumi.Resource, ...]


class SshTarget(pulumi.ComponentResource):
    """What is made on a host for one run."""

    def __init__(self, name: str, options: pulumi.ResourceOptions) -> None:
        super().__init__("coding-agent:index:SshTarget", name, None, options)


def image(spec: ExecutorSpec, _task: Task) -> str:
    """Return which host it is, as it was written down: on another, or as another user, a run is another run."""
    user = f"{spec.options['user']}@" if spec.options.get("user") else ""
    return f"{user}{spec.options['host']}:{root_of(spec)}"


def root_of(spec: ExecutorSpec) -> str:
    """Return the folder of runs on the host, as it was written down."""
    return str(spec.options.get("root_dir") or ROOT)


def declare(wanted: Wanted) -> Declared:
    """Declare the target of a run. Connects nowhere, unless to ask a host that is not known for its key.

    Raises `HostKeyUnknown`, `ExecutorUnavailable` for a login that can't be told, `PluginMissing`.
    """
    login = ssh_login.of(wanted.spec)
    connection = connection_to(login, ask=not wanted.preview)
    component = SshTarget(wanted.stack, pulumi.ResourceOptions(parent=wanted.parent))
    found = prepared(wanted, connection, parent=component)
    target = {
        "id": image(wanted.spec, wanted.task),
        "host": login.host,
        "port": login.port,
        "user": login.user,
        "root": found.root,
        "run": wanted.run_id,
    }
    return Declared(target, (component, *found.resources))


def connection_to(login: Login, *, ask: bool) -> remote.ConnectionArgs:
    """Return how the plugin connects to a host whose key is known.

    Raises `HostKeyUnknown`, which says with `ask` what key the host shows.
    """
    from pulumi_command import remote

    proxy = None
    if login.jump is not None:
        proxy = remote.ProxyConnectionArgs(
            host=login.jump.host,
            port=login.jump.port,
            user=login.jump.user,
            host_key=host_keys.for_plugin(login.jump, ask=ask),
            dial_error_limit=DIALS,
            per_dial_timeout=DIAL_LIMIT,
        )
    return remote.ConnectionArgs(
        host=login.host,
        port=login.port,
        user=login.user,
        host_key=host_keys.for_plugin(login, ask=ask),
        dial_error_limit=DIALS,
        per_dial_timeout=DIAL_LIMIT,
        proxy=proxy,
    )


def prepared(
    wanted: Wanted,
    connection: remote.ConnectionArgs,
    *,
    parent: pulumi.Resource,
    depends_on: Sequence[pulumi.Resource] = (),
    deleted_with: pulumi.Resource | None = None,
) -> Prepared:
    """Declare what a run needs on the host behind `connection`, whose parts may not be known yet.

    With `deleted_with` nothing is removed there when that goes too. Raises `PluginMissing`.
    """
    plugins.find_or_install(("command",), wanted.say)
    from pulumi_command import remote

    def options(*needed: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(
            parent=parent, depends_on=[*depends_on, *needed], deleted_with=deleted_with, replace_on_changes=["triggers"]
        )

    ready = remote.Command(
        f"{wanted.stack}-ready",
        connection=connection,
        create=_COMMAND.format("create"),
        delete=_COMMAND.format("delete"),
        stdin=wanted.run_id.apply(lambda run_id: host_script(wanted.spec, wanted.task, run_id)),
        triggers=[wanted.run_id],
        add_previous_output_in_env=False,  # a server accepts no environment
        logging=remote.Logging.NONE,
        opts=options(),
    )
    root = ready.stdout.apply(_root)
    copied = remote.CopyToRemote(
        f"{wanted.stack}-supervisor",
        connection=connection,
        source=pulumi.FileArchive(str(staged_scripts())),
        # Into a folder of the run's own, from which it is put in its place at once: others may be using it there.
        remote_path=pulumi.Output.concat(root, "/.incoming/", wanted.run_id),
        triggers=[wanted.run_id],
        opts=options(ready),
    )
    return Prepared(root, (ready, copied))


def host_script(spec: ExecutorSpec, task: Task | None, run_id: str) -> str:
    """Return what a shell on the host reads: its first argument is `create` or `delete`."""
    install = bool(spec.options.get("install")) and not spec.claude_path
    agent = task is not None and task.prompt is not None
    arguments = (
        root_of(spec),
        run_id,
        (spec.claude_path or "claude") if agent else "",
        "git" if task is not None and task.repo else "",
        (task.agent.version or "") if agent and task is not None else "",
        "install" if install and agent else "",
        str((SPACE + (SPACE_INSTALLED if install and agent else 0)) * 1024),
    )
    return f'{HOST_SCRIPT.read_text(encoding="utf-8")}\nmain "$1" {shlex.join(arguments)}\nexit\n'


def said_root(said: str) -> str | None:
    """Return the folder of runs that the script on the host has named; None where it named none."""
    found = _ROOT.findall(said)
    return found[-1] if found else None


def staged_scripts() -> Path:
    """Return a folder that holds the supervisor and nothing else, named as it is named on the host."""
    folder = paths.cache_dir() / "supervisor" / f"supervisor-{mark()}"
    if folder.is_dir():
        return folder
    with lock("supervisor", quiet):
        if not folder.is_dir():  # whoever held the lock has made it meanwhile
            with replacing(folder) as fresh:
                for file in SCRIPTS.glob("*.sh"):
                    shutil.copyfile(file, fresh / file.name)
    return folder


def _root(said: str | None) -> str:
    root = said_root(said or "")
    if root is None:
        raise pulumi.RunError("the host did not say where its folder of runs is: its shell ended without an error")
    return root
