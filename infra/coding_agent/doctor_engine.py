"""The parts that have to do with the Pulumi engine, as `doctor` looks at them."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coding_agent import backend
from coding_agent.finding import Finding, State
from coding_agent.paths import state_dir
from coding_agent.toolchain.installation import Progress, tail
from coding_agent.toolchain.pulumi import engine, plugins

START_LIMIT = 20.0  # seconds for the provider to say its port; it imports pulumi, which a cold disk makes slow
ASK_LIMIT = 20.0  # seconds for the engine to reach its backend


def engine_parts(fix: bool, progress: Progress) -> Iterator[Finding]:
    found, missed = engine.find()
    if not found and fix:
        found = engine.find_or_install(progress)
    if not found:
        yield Finding(
            "Pulumi engine",
            State.MISSING,
            "; ".join(map(str, missed)),
            "nothing can be started, previewed or destroyed; `status`, `list` and `logs` work",
            "`coding-agent doctor --fix` installs it, as the first `coding-agent up` does",
        )
        return
    yield Finding("Pulumi engine", State.OK, f"{found.command}, {found.version} ({found.origin}, {found.kind})")
    language = found.language_plugin
    yield (
        Finding("language plugin", State.OK, str(language))
        if language
        else Finding(
            "language plugin",
            State.WARNING,
            f"no {engine.LANGUAGE_PLUGIN} beside the engine or on PATH",
            "a bare `pulumi up`; `coding-agent up` and `dispatch` work",
            "install Pulumi as its makers deliver it: https://www.pulumi.com/docs/install/",
        )
    )


def installed_plugin(name: str, prevents: str, fix: bool, progress: Progress) -> Finding:
    """Say whether one of the engine's own plugins is there, and what it `prevents` where it is not."""
    plugin = plugins.find(name) or (plugins.find_or_install((name,), progress)[name] if fix else None)
    if plugin:
        return Finding(f"{name} plugin", State.OK, f"{plugin.place}, for version {plugin.version} ({plugin.kind})")
    missing = f"the engine's plugin {name} {plugins.version(name)} is not installed"
    return Finding(f"{name} plugin", State.WARNING, missing, prevents, "`coding-agent doctor --fix` installs it")


def provider_plugin() -> Iterator[Finding]:
    folder = backend.provider_folder()
    prevents = "nothing can be started, previewed or destroyed"
    if not folder:
        found = f"no {backend.PROVIDER} beside {sys.executable}"
        yield Finding("provider plugin", State.MISSING, found, prevents, "install the package again: it puts it there")
        return
    command = folder / backend.PROVIDER
    failure = _start(command)
    if failure:
        step = "install the package and what it needs again, in a fresh virtual environment"
        yield Finding("provider plugin", State.MISSING, f"{command} does not start: {failure}", prevents, step)
    else:
        yield Finding("provider plugin", State.OK, f"{command} starts")


def _start(command: Path) -> str | None:
    """Start the plugin as the engine would; return None when it says its port, else what it says instead."""
    with tempfile.TemporaryFile() as complaint:
        # Nobody listens at that address: the plugin connects only when the engine calls it.
        argv = [str(command), "127.0.0.1:9"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaint)
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                said = os.read(process.stdout.fileno(), 4096) if ready.select(START_LIMIT) else None
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if said is not None and said.strip().isdigit():
            return None
        complaint.seek(0)
        words = tail(complaint.read().decode(errors="replace"), 1)
    return words or (f"no port within {START_LIMIT:.0f} s" if said is None else f"it said {said[:80]!r}")


def backend_reached() -> Iterator[Finding]:
    chosen = backend.backend()
    where = f"{chosen.url or 'Pulumi Cloud'} (chosen by {chosen.chosen_by}: {chosen.where})"
    prevents = "nothing can be started, previewed or destroyed"
    try:
        if chosen.ours:
            folder = next(each for each in (state_dir(), *state_dir().parents) if each.is_dir())
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        step = "make it writable, or set XDG_STATE_HOME to a folder that is"
        yield Finding("backend", State.MISSING, f"{where} can't be written: {error}", prevents, step)
        return
    found, _ = engine.find()
    if chosen.ours and not (state_dir() / "backend").is_dir():
        yield Finding("backend", State.OK, f"{where}; made on first use")
    elif not found:
        yield Finding("backend", State.WARNING, f"{where}; not tried without an engine")
    elif failure := _whoami(found, chosen):
        step = "check the address and the login (`pulumi login`), or unset them to use files on this machine"
        yield Finding("backend", State.MISSING, f"{where} can't be reached: {failure}", prevents, step)
    else:
        yield Finding("backend", State.OK, where)


def _whoami(found: engine.Engine, chosen: backend.Backend) -> str | None:
    argv = [str(found.command), "whoami", "--non-interactive"]
    added = {"PULUMI_BACKEND_URL": chosen.url} if chosen.url else {}
    try:
        done = subprocess.run(
            argv, env={**os.environ, **added}, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ASK_LIMIT:.0f} s"
    return None if done.returncode == 0 else tail(done.stderr.decode(errors="replace"), 2) or "it says nothing"


def passphrase() -> Iterator[Finding]:
    own = os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    ours = state_dir() / "passphrase"
    if "PULUMI_CONFIG_PASSPHRASE" in os.environ:
        yield Finding("passphrase", State.OK, "PULUMI_CONFIG_PASSPHRASE is set")
    elif own and not os.access(own, os.R_OK):
        prevents = "stacks that it encrypts can't be opened"
        found = f"PULUMI_CONFIG_PASSPHRASE_FILE names {own}, which can't be read"
        yield Finding("passphrase", State.MISSING, found, prevents, "correct the variable, or unset it")
    elif own:
        yield Finding("passphrase", State.OK, own)
    else:
        yield Finding("passphrase", State.OK, str(ours) if ours.exists() else f"{ours} is made on first use")
