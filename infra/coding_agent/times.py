"""Times and spans of time, read and written for people."""

from __future__ import annotations

from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def instant(text: str | None) -> float | None:
    """Return an RFC 3339 time in seconds since the epoch; None for none, or for what is no such time.

    >>> instant("1970-01-01T00:01:00Z"), instant(None), instant("soon")
    (60.0, None, None)
    """
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None


def span(seconds: float) -> str:
    """Return a number of seconds for people.

    >>> span(0.42), span(12), span(200), span(18_420), span(200_000)
    ('0.4s', '12s', '3m20s', '5h07m', '2d7h')
    """
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR}h"
