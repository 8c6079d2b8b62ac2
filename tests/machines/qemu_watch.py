"""What ends the virtual machines of a process that was killed: a program that waits for that process's end.

python qemu_watch.py FOLDER: reads stdin, which ends with the process at its other end; then it ends every process that
has the folder among its arguments, and removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

from processes import processes_with_text

_QUIET = 0.3  # seconds; what was being started is there by then


def main(folder: str) -> None:
    """Wait, then clean up."""
    sys.stdin.buffer.read()
    for _ in range(2):
        while left := processes_with_text(folder):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        time.sleep(_QUIET)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
