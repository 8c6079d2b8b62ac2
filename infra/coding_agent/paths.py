"""Where things lie on the controller; nothing here creates a folder."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def _xdg(variable: str, default: str) -> Path:
    # The XDG specification: a relative path in one of its variables is to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def state_dir() -> Path:
    """Return the folder of records, of the default backend and of dispatched tasks."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "coding-agent"


def cache_dir() -> Path:
    """Return the folder of downloaded programs; it may be deleted at any time."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "coding-agent"


def config_file() -> Path:
    """Return the executors file: $CODING_AGENT_CONFIG, else the one in the user's configuration folder."""
    named = os.environ.get("CODING_AGENT_CONFIG")
    return Path(named).expanduser() if named else _xdg("XDG_CONFIG_HOME", ".config") / "openclaw" / "coding-agent.yaml"


def engine_home() -> Path:
    """Return where the engine keeps its login and plugins: $PULUMI_HOME, else below the home that the system knows.

    That is the one in the list of users, whatever $HOME says (Go's os/user, which the engine asks).
    """
    named = os.environ.get("PULUMI_HOME")
    if named:
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".pulumi"
    except KeyError:
        return Path.home() / ".pulumi"


def records_dir() -> Path:
    """Return the folder with one folder a run."""
    return state_dir() / "runs"
