"""This machine's own Claude login, for an executor on it whose owner lets agents use it.

Each run has a CLAUDE_CONFIG_DIR of its own, in which there is no login. So the run is given the login's access token or
API key as it is at the start, as a secret like any other: it can't renew the login, and what comes back is searched
for it. A token is good for some hours; Claude Code renews it whenever the user works with it himself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coding_agent.errors import CredentialMissing

_RENEW = "run `claude` once on this machine: it renews the login"
_LOG_IN = "run `claude` on this machine and log in with /login"


def read(*, even_expired: bool = False) -> dict[str, str]:
    """Return the login as the one variable that Claude Code takes it from: name -> value.

    Raises `CredentialMissing` where there is none, or one that has expired.
    """
    folder = os.environ.get("CLAUDE_CONFIG_DIR")
    home = Path(folder).expanduser() if folder else Path.home()
    # Where Claude Code (2.1) keeps them on Linux: a subscription's tokens, and the key of a Console account.
    tokens = home / ("" if folder else ".claude") / ".credentials.json"
    account = _mapping(_json(tokens).get("claudeAiOauth"))
    token = account.get("accessToken")
    if isinstance(token, str) and token:
        if _expired(account) and not even_expired:
            raise CredentialMissing(f"this machine's Claude login has expired ({tokens})", next_step=_RENEW)
        return {"CLAUDE_CODE_OAUTH_TOKEN": token}
    key = _json(home / ".claude.json").get("primaryApiKey")
    if isinstance(key, str) and key:
        return {"ANTHROPIC_API_KEY": key}
    raise CredentialMissing(f"this machine has no Claude login ({tokens} holds none)", next_step=_LOG_IN)


def _expired(account: Mapping[str, Any]) -> bool:
    until = account.get("expiresAt")  # milliseconds since the epoch
    return isinstance(until, int | float) and until / 1000 <= time.time()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
