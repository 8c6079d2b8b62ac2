"""Ask within seconds whether a download host can be reached: looking its name up has no limit of its own."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LIMIT = 5.0  # seconds for the name and the connection together
_PORTS = {"http": 80, "https": 443}


def unreachable(address: str, limit: float = LIMIT) -> str | None:
    """Return why no connection can be made to the address's host, or to the proxy before it; None where one can.

    `limit` is in seconds; a resolver that never answers counts as a host that can't be reached.
    """
    parts = urlsplit(address)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            port = parts.port or _PORTS.get(parts.scheme, 80)
            socket.create_connection((parts.hostname or "", port), timeout=limit).close()
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(error))

    # A thread, because a name's look-up can't be given a limit; a daemon, because it can't be ended either.
    thread = threading.Thread(target=connect, name="reach", daemon=True)
    thread.start()
    thread.join(limit)
    reason = outcome[0] if outcome else f"no answer within {limit:.0f} s"
    return f"{reason} (proxy {parts.hostname})" if reason and proxy else reason
