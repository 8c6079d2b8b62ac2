"""`env`, `doctor`, `completion` and `version`: this machine and what is installed on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coding_agent.cli.options import command, json_option
from coding_agent.cli.screen import Screen, write

if TYPE_CHECKING:
    from coding_agent.toolchain.pulumi.plugins import Plugin

_SHELLS = ("bash", "zsh", "fish")


def _shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in _SHELLS else "bash"


@command("env", examples=["env", "env --shell fish | source", "env --json"], codes=[(0, "the engine is known"), 3])
@click.option("--shell", type=click.Choice(_SHELLS), help="Whose syntax  [default: $SHELL's]")
@json_option
def env_command(shell: str | None, as_json: bool) -> int:
    """Print what gives a shell the same engine, backend and passphrase: `eval "$(coding-agent env)"`.

    After that a bare `pulumi up` in the project works on the same stacks. Installs the engine where there is none.
    For executors to log in to it starts an ssh agent that ends with the shell, where yours does not hold their keys.
    """
    from coding_agent import backend

    screen = Screen(as_json=as_json)
    progress = Screen(as_json=True).say  # to stderr: stdout goes into eval
    keys = _keys(progress)
    if as_json:
        screen.data({**backend.environment(progress=progress), **keys})
    else:
        write(backend.exports(shell or _shell(), more=keys, progress=progress))
    return 0


def _keys(progress: Callable[[str], None]) -> Mapping[str, str]:
    """Return what lets the engine's plugin log in; what keeps it from that is no reason to give a shell nothing."""
    from coding_agent import executors
    from coding_agent.errors import CodingAgentError
    from coding_agent.settings import Settings

    try:
        specs = [each for each in Settings.load().executors if each.type in executors.LOGINS]
        if not specs:
            return {}
        from coding_agent.executors import ssh_agent

        return ssh_agent.for_shell(specs)
    except CodingAgentError as error:
        progress(str(error))
        return {}


@command(
    "doctor",
    examples=["doctor", "doctor --fix", "doctor --json"],
    codes=[(0, "nothing is missing"), (3, "something is")],
)
@click.option("--fix", is_flag=True, help="Install what is missing and can be installed: the engine, Claude Code.")
@json_option
def doctor_command(fix: bool, as_json: bool) -> int:
    """Say what was found, what is missing, what each missing part prevents and what to do about it."""
    from coding_agent import doctor

    screen = Screen(as_json=as_json)
    findings = doctor.examine(fix=fix, progress=Screen(as_json=True).say)
    missing = [each for each in findings if each.state == "missing"]
    if as_json:
        names = ("name", "state", "found", "prevents", "next_step")
        screen.data({"ready": not missing, "findings": [{n: getattr(each, n) for n in names} for each in findings]})
        return 3 if missing else 0
    screen.table(("", "", ""), [(each.state, each.name, each.found or "") for each in findings])
    for each in findings:
        if each.state == "ok":
            continue
        screen.say("")
        screen.say(f"{each.name}: {each.found or each.state}")
        if each.prevents:
            screen.say(f"  prevents: {each.prevents}")
        if each.next_step:
            screen.say(f"  next: {each.next_step}")
    return 3 if missing else 0


@command(
    "completion", examples=["completion bash > ~/.local/share/bash-completion/completions/coding-agent"], codes=[0, 2]
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion_command(shell: str) -> int:
    """Print the completion script of a shell: commands, options, tasks and runs."""
    from click.shell_completion import get_completion_class

    from coding_agent.cli.root import coding_agent

    kind = get_completion_class(shell)
    assert kind is not None  # the choices above are those that click knows
    script = kind(coding_agent, {}, "coding-agent", "_CODING_AGENT_COMPLETE")
    # Not script.source(): that one starts a bash to ask for its version.
    write(script.source_template % script.source_vars() + "\n")
    return 0


@command("version", examples=["version", "version --json"], codes=[0])
@json_option
def version_command(as_json: bool) -> int:
    """Print the versions of coding-agent, of the engine that would be used, and of Claude Code. Installs nothing."""
    from coding_agent import __version__, claude
    from coding_agent.errors import CodingAgentError
    from coding_agent.toolchain.pulumi import engine, parts, plugins

    screen = Screen(as_json=as_json)
    found, _ = engine.find()
    try:
        program = claude.find()
        agent = claude.version_number(program) if program else None
    except (OSError, CodingAgentError):
        program, agent = None, None
    here = {name: plugins.find(name) for name in plugins.PLUGINS}
    known = {
        "coding_agent": __version__,
        "python": sys.version.split()[0],
        "engine": found.version if found else None,
        "engine_installs": parts.VERSION,
        "engine_kind": found.kind if found else None,
        "plugins": {
            name: {"version": plugins.version(name), "kind": plugin.kind if plugin else None}
            for name, plugin in here.items()
        },
        "claude": agent,
        "claude_pinned": claude.PINNED_VERSION,
    }
    if as_json:
        screen.data(known)
        return 0
    engine_here = f"{found.version} ({found.command}, {found.kind})" if found else _later(parts.VERSION)
    agent_here = f"{agent} ({program})" if agent else _later(claude.PINNED_VERSION)
    screen.table(
        ("", ""),
        [
            ("coding-agent", __version__),
            ("python", str(known["python"])),
            ("engine", f"pulumi {engine_here}"),
            *((f"plugin {name}", _plugin(name, plugin)) for name, plugin in here.items()),
            ("claude code", f"{agent_here}; pinned {claude.PINNED_VERSION}"),
        ],
    )
    return 0


def _plugin(name: str, plugin: Plugin | None) -> str:
    from coding_agent.toolchain.pulumi import plugins

    return f"{plugin.version} ({plugin.place}, {plugin.kind})" if plugin else _later(plugins.version(name))


def _later(version: str) -> str:
    return f"not here yet; {version} will be installed"
