"""A link on which every packet comes late: two tun devices, the far one in a network namespace of its own.

What `tc qdisc add ... netem delay` does, for kernels that have no netem.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

NEAR, FAR = "198.51.100.9", "198.51.100.10"  # of a range for documentation: nothing is sent outside
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST = 65_536  # bytes of a packet
_LIMIT = 20.0  # seconds for one `ip`


@contextmanager
def delayed(seconds: float) -> Iterator[str]:
    """Give the name of a network namespace that is `seconds` away, there and back; needs root.

    This machine is `NEAR` for it, and it is `FAR` for this machine. Both are gone after the block.
    """
    name = f"delay{secrets.token_hex(3)}"
    near, far = _device(f"{name}a"), _device(f"{name}b")
    stop, waker = os.pipe()
    passing = threading.Thread(target=_pass_on, args=(near, far, stop, seconds / 2), daemon=True)
    try:
        _ip("netns", "add", name)
        _ip("link", "set", f"{name}b", "netns", name)
        for inside, device, address, peer in (((), f"{name}a", NEAR, FAR), (("-n", name), f"{name}b", FAR, NEAR)):
            _ip(*inside, "address", "add", address, "peer", peer, "dev", device)
            _ip(*inside, "link", "set", device, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        passing.start()
        yield name
    finally:
        os.close(waker)
        if passing.ident is not None:
            passing.join()
        for descriptor in (near, far, stop):
            os.close(descriptor)
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=_LIMIT)


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _pass_on(near: int, far: int, stop: int, late: float) -> None:
    """Read at one end, write at the other `late` seconds later, until `stop` is closed at its other end."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        pause = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        ready, _, _ = select.select([near, far, stop], [], [], pause)
        if stop in ready:
            return
        for descriptor, other in ((near, far), (far, near)):
            if descriptor in ready:
                waiting.append((time.monotonic() + late, other, os.read(descriptor, _LARGEST)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, other, packet = waiting.popleft()
            os.write(other, packet)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=_LIMIT)
