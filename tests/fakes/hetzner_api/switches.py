"""What a test makes the fake cloud do wrong. All of it is off at a test's start."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fakes.hetzner_api.store import ApiError


@dataclass
class Refusal:
    """The next requests that are refused."""

    times: int
    status: int
    code: str
    message: str
    method: str | None
    path: str  # what their path begins with
    retry_after: int | None  # seconds


@dataclass
class Fault:
    """How the next actions of a command end."""

    times: int
    code: str
    message: str


@dataclass
class Switches:
    """The cloud's failures."""

    # (type of server, location) that has none left; None is any of them. `resource_unavailable`.
    unavailable: set[tuple[str | None, str | None]] = field(default_factory=set)
    # The same, where the placement fails: `placement_error`.
    misplaced: set[tuple[str | None, str | None]] = field(default_factory=set)
    servers: int | None = None  # how many the project may have: `resource_limit_exceeded`
    keys: int | None = None  # the same for SSH keys
    firewalls: int | None = None
    silent: bool = False  # servers never answer SSH: the connection stands and nothing comes
    locked: set[int] = field(default_factory=set)  # servers that may not be changed: `locked`
    slow: dict[str, float] = field(default_factory=dict)  # command of an action -> seconds that it takes longer
    delay: float = 0.0  # seconds before each answer
    _refusals: list[Refusal] = field(default_factory=list)
    _faults: dict[str, Fault] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refuse(
        self,
        times: int = 1,
        *,
        status: int = 503,
        code: str = "unavailable",
        message: str = "the service is not available",
        method: str | None = None,
        path: str = "/",
        retry_after: int | None = None,
    ) -> None:
        """Refuse the next requests, of a method and below a path where one is given (`/servers`)."""
        with self._guard:
            self._refusals.append(Refusal(times, status, code, message, method, path, retry_after))

    def limit_rate(self, times: int = 1, *, retry_after: int = 1, path: str = "/") -> None:
        """Refuse the next requests, as the cloud does when too many came."""
        self.refuse(
            times,
            status=429,
            code="rate_limit_exceeded",
            message="limit of 3600 requests per hour reached",
            path=path,
            retry_after=retry_after,
        )

    def fail_action(
        self, command: str, times: int = 1, *, code: str = "action_failed", message: str = "Action failed"
    ) -> None:
        """Let the next actions of a command (`create_server`, `start_server`, ...) end in an error."""
        with self._guard:
            self._faults[command] = Fault(times, code, message)

    def refused(self, method: str, path: str) -> ApiError | None:
        """Return the error that a request is to get."""
        with self._guard:
            for each in self._refusals:
                if each.times > 0 and each.method in (None, method) and path.startswith(each.path):
                    each.times -= 1
                    return ApiError(each.status, each.code, each.message, retry_after=each.retry_after)
        return None

    def fault(self, command: str) -> Fault | None:
        """Return how an action of a command is to end, where it is to fail."""
        with self._guard:
            found = self._faults.get(command)
            if found is None or found.times == 0:
                return None
            found.times -= 1
            return found

    def has_none(self, kind: str, location: str, of: set[tuple[str | None, str | None]]) -> bool:
        """Return whether a set of types and locations has this pair."""
        return any(each[0] in (None, kind) and each[1] in (None, location) for each in of)

    def off(self) -> None:
        """Switch everything off."""
        fresh = Switches()
        with self._guard:
            for name in vars(fresh):
                if name != "_guard":
                    setattr(self, name, getattr(fresh, name))
