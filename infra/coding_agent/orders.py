"""What one `up` orders for a run where it costs: what was refused, and what is tried instead."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from coding_agent.errors import CodingAgentError, EngineFailed

# What the cloud says where another type or place may be had: there is none left, or no more of it for this project.
_ANOTHER = re.compile(
    r"\b(resource_unavailable|resource_limit_exceeded|placement_error|dedicated_core_limit_exceeded)\b"
)
# Somebody else has made, or removed, the key that we were about to use: the next look at it finds what is true.
_RACED = re.compile(r"uniqueness_error|SSH key.*(not found|not_found)|(not found|not_found).*SSH key", re.I | re.S)
# What passes by itself, mostly.
_PASSES = re.compile(r"\((unavailable|service_error|timeout|conflict|rate_limit_exceeded|locked)\b")
_RACES = 5  # how often either is taken for that


@dataclass
class Orders:
    """The orders of one `up`."""

    poll: float = 2.0  # seconds until what passes by itself is tried again
    last: str = ""
    kept: bool = False  # whether what was made stays although the run could not be started
    _refused: list[str] = field(default_factory=list)
    _races: int = 0

    @property
    def made(self) -> bool:
        """Whether anything was ordered."""
        return bool(self.last)

    @property
    def refused(self) -> frozenset[str]:
        """What was refused, and is not to be tried again."""
        return frozenset(self._refused)

    def tried(self, what: str, kept: bool) -> None:
        """Hear what is ordered now, and whether it is to stay whatever happens."""
        self.last, self.kept = what, kept

    def again(self, error: CodingAgentError, say: Callable[[str], None]) -> bool:
        """Return whether there is something else to try after this failure; it is said what and why."""
        if not (self.made and isinstance(error, EngineFailed)):
            return False
        if found := _ANOTHER.search(error.message):
            self._refused.append(self.last)
            say(f"{self.last} can't be had now ({found[1]}): trying the next")
            return True
        self._races += 1
        if self._races > _RACES:
            return False
        if _PASSES.search(error.message):
            say(f"the cloud could not do it: {error.message.splitlines()[-1].strip()}; trying again")
            time.sleep(self.poll)
            return True
        return bool(_RACED.search(error.message))
