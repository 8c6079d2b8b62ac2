"""What the kernel says of a process of this machine."""

from __future__ import annotations

from pathlib import Path

STATE, PARENT, START = 0, 1, 19  # where they stand among the fields (proc(5)); START in clock ticks since the boot


def stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None where there is no such process."""
    try:
        whole = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name before them may hold anything.
    return whole.rpartition(")")[2].split()


def begun(pid: int) -> int:
    """Return when a process began, in clock ticks since the boot; 0 where it is gone or a zombie."""
    found = stat(pid)
    return 0 if found is None or found[STATE] in "ZX" else int(found[START])
