"""The provider's process, without an engine: how it begins and ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from waiting import until

TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]  # the number of the system call
LIMIT = 30  # seconds


def test_any_of_its_threads_hears_that_it_is_needed_no_more() -> None:
    """The provider ends with the engine's signal, also where the kernel gives that to one of gRPC's threads."""
    argv = [sys.executable, "-m", "coding_agent.provider", "127.0.0.1:1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip().isdigit()  # its port: it serves
            thread = until(lambda: _other_thread(process.pid))
            assert ctypes.CDLL(None, use_errno=True).syscall(TGKILL, process.pid, thread, signal.SIGINT) == 0
            assert process.wait(LIMIT) == -signal.SIGINT
        finally:
            process.kill()


def _other_thread(pid: int) -> int | None:
    """Return a thread of a process that is not its first."""
    return next((int(each.name) for each in Path(f"/proc/{pid}/task").iterdir() if int(each.name) != pid), None)
