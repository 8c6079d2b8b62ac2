"""Durations and sizes as people write them, with their units."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {
    "B": 1,
    **{"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}


def seconds(text: str) -> float:
    """Return a duration in seconds. Raises ValueError.

    >>> seconds("90s"), seconds("1h30m"), seconds("0.5m")
    (90.0, 5400.0, 30.0)
    """
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?[dhms])+", text):
        raise ValueError(f"{text!r} is no duration")
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", text)
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def size(text: str) -> int:
    """Return a size in bytes. Raises ValueError.

    >>> size("512MB"), size("2GiB"), size("1.5 kB")
    (512000000, 2147483648, 1500)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if not found or found[2] not in _BYTES:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * _BYTES[found[2]])
