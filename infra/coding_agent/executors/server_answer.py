"""Waiting until a new server answers: until its sshd says a first word."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import pulumi

PORT = 22
ATTEMPT_LIMIT = 5.0  # seconds for one attempt
POLL = 1.0  # seconds between two attempts
ASK_EVERY = 5.0  # seconds between two questions to the cloud, which counts them
_GREETING = b"SSH-"


async def awaited(address: str, limit: float, say: Callable[[str], None], is_gone: Callable[[], bool]) -> str:
    """Return the address once something that speaks SSH answers there.

    `is_gone` asks the cloud, now and then, whether the server was deleted meanwhile. Raises `pulumi.RunError` where it
    was, and after `limit` seconds with what was seen last and what to do.
    """
    deadline, seen = time.monotonic() + limit, ""
    ask_at = time.monotonic() + ASK_EVERY
    say(f"waiting until the server {address} answers")
    while (seen := await _greeting(address)) != "":
        if time.monotonic() > ask_at:
            if await asyncio.to_thread(is_gone):
                raise pulumi.RunError(
                    f"the server {address} was deleted while it started\n  next: repeat it: another server is made"
                )
            ask_at = time.monotonic() + ASK_EVERY
        if time.monotonic() > deadline:
            raise pulumi.RunError(
                f"the server {address} did not answer over ssh within {limit:.0f} s: {seen}\n"
                "  next: see that this machine's address is among the executor's ssh_sources and that the image "
                "starts sshd, or give it longer with boot_limit"
            )
        await asyncio.sleep(POLL)
    return address


async def _greeting(address: str) -> str:
    """Return what is wrong; nothing where there is a greeting."""
    writer = None
    try:
        async with asyncio.timeout(ATTEMPT_LIMIT):
            reader, writer = await asyncio.open_connection(address, PORT)
            said = await reader.readexactly(len(_GREETING))
    except TimeoutError:
        return "no answer"
    except asyncio.IncompleteReadError:
        return "it hangs up"
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
    return "" if said == _GREETING else "what answers is no sshd"
