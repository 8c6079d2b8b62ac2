"""Hetzner Cloud over its API: what can be ordered and for how much, what is there of ours, and removing it.

What Pulumi declares is ordered by its own provider; this is for what no declaration can do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import hcloud
import requests
from hcloud.actions import ActionException

from coding_agent.errors import ConnectionBroken, CredentialMissing, ExecutorUnavailable
from coding_agent.text import neutralise

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec, Settings

TOKEN, ENDPOINT = "HCLOUD_TOKEN", "HCLOUD_ENDPOINT"
OURS = "https://api.hetzner.cloud/v1"
PROJECT, STACK, RUN = "coding-agent-project", "coding-agent-stack", "coding-agent-run"  # labels of everything we make
IMAGE = "debian-12"
CORES, MEMORY = 2, 4.0  # what a server has at least where no type is named; GB
ANSWER_LIMIT = 20.0  # seconds for one answer; hcloud asks again where that may help
ASK_LIMIT = 20.0  # seconds for which what may pass is asked again
REMOVE_LIMIT = 180.0  # seconds for removing one thing
ACTION_POLL = 0.5  # seconds between two looks at what goes on there
RETRY_POLL = 2.0  # seconds until what could not be removed yet is tried again
_NOT_YET = ("locked", "conflict", "resource_in_use", "rate_limit_exceeded", "service_error", "timeout", "unavailable")
_LABEL = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_LABEL = 63
_KINDS = ("server", "firewall", "ssh_key")  # in the order in which they can be removed

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Choice:
    """A type of server at a place, and what it costs."""

    server_type: str
    location: str
    price: str = ""  # EUR an hour, VAT included; empty where it is not known
    available: bool = True  # as far as the API says
    architecture: str = "x86"  # or arm

    def __str__(self) -> str:
        return f"{self.server_type} in {self.location}" if self.location else self.server_type


@dataclass(frozen=True)
class Left:
    """Something that carries our labels."""

    kind: str  # server, firewall or ssh_key
    id: int
    name: str
    project: str
    stack: str
    run: str
    created_at: float = 0.0  # the cloud's clock, seconds since the epoch

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.name}"


@dataclass(frozen=True)
class Server:
    """A server that is there."""

    id: int
    name: str
    status: str  # running, off, ...
    created_at: float  # the cloud's clock, seconds since the epoch


def labels(project: str, stack: str, run: str) -> dict[str, str]:
    """Return the labels of what is made for a run of a stack."""
    return {PROJECT: label(project), STACK: label(stack), RUN: label(run)}


def label(text: str) -> str:
    """Return a text as the value of a label can be."""
    return _LABEL.sub("-", text)[:_LONGEST_LABEL].strip("-_.")


def token(settings: Settings) -> str:
    """Return the token: from its source in the executors file, else of the environment. Raises `CredentialMissing`."""
    from coding_agent import credentials

    if TOKEN in settings.secrets:
        return credentials.resolve([TOKEN], settings)[TOKEN]
    found = os.environ.get(TOKEN)
    if not found:
        raise CredentialMissing(
            f"no token for Hetzner Cloud: {TOKEN} is not set here",
            next_step=f"make one for your project in Hetzner's console (read and write), and set {TOKEN}, "
            "or give it a source under `secrets:` in the executors file",
        )
    return found


def cloud() -> Cloud:
    """Return the cloud of this user. Raises `CredentialMissing`; asks nothing yet."""
    from coding_agent.settings import Settings

    return Cloud(token(Settings.load()), os.environ.get(ENDPOINT) or OURS)


class Cloud:
    """One project at Hetzner.

    Every method raises `ConnectionBroken` where the API does not answer in time, `CredentialMissing` where it refuses
    the token, and `ExecutorUnavailable` with its own words where it refuses what is asked.
    """

    def __init__(self, token: str, endpoint: str, *, poll: float = ACTION_POLL) -> None:
        """`poll`: seconds between two looks at an action."""
        self._endpoint = endpoint
        self._client = hcloud.Client(
            token=token,
            api_endpoint=endpoint,
            application_name="coding-agent",
            poll_interval=poll,
            poll_max_retries=int(REMOVE_LIMIT / poll),
            timeout=ANSWER_LIMIT,
        )

    def choices(self, types: Sequence[str], locations: Sequence[str]) -> list[Choice]:
        """Return what can be ordered, in the order in which it is to be tried: what is not available comes last.

        Without types it is the cheapest that has `CORES` and `MEMORY`; without locations any place, cheapest first.
        Raises `ExecutorUnavailable` for a type or location that there is not.
        """
        known = {each.name: each for each in self._ask("looking at server types", self._client.server_types.get_all)}
        if unknown := [each for each in types if each not in known]:
            raise ExecutorUnavailable(
                f"Hetzner Cloud has no server type {', '.join(unknown)}",
                next_step=f"use one of {', '.join(sorted(str(each) for each in known))}",
            )
        found = [choice for name in types or known for choice in _places(known[name])]
        places = {each.location for each in found}
        if unknown := [each for each in locations if each not in places]:
            raise ExecutorUnavailable(
                f"{', '.join(types) or 'no server type'} can't be had in {', '.join(unknown)}",
                next_step=f"use one of the locations {', '.join(sorted(places))}",
            )
        if not types:
            found = [each for each in found if _enough(known[each.server_type])]

        def rank(choice: Choice) -> tuple[bool, int, int, float]:
            by_type = types.index(choice.server_type) if types else 0
            by_place = locations.index(choice.location) if locations else 0
            return not choice.available, by_type, by_place, float(choice.price or "inf")

        return sorted((each for each in found if not locations or each.location in locations), key=rank)

    def image(self, wanted: str, choice: Choice) -> None:
        """See that there is an image of that name or number for a choice. Raises `ExecutorUnavailable`."""
        images, machine = self._client.images, choice.architecture
        if wanted.isdigit():
            self._ask(f"looking for the image {wanted}", lambda: images.get_by_id(int(wanted)))
        elif not self._ask("looking at images", lambda: images.get_list(name=wanted, architecture=[machine])).images:
            raise ExecutorUnavailable(
                f"Hetzner Cloud has no image {wanted} for {machine}",
                next_step="`hcloud image list --type system` shows those that there are; a snapshot has a number",
            )

    def key(self, fingerprint: str) -> Left | None:
        """Return the SSH key of that fingerprint (MD5, with colons): there can be one only, whoever uploaded it."""
        keys = self._client.ssh_keys
        found = self._ask("looking for the SSH key", lambda: keys.get_by_fingerprint(fingerprint))
        return _left("ssh_key", found) if found else None

    def server(self, number: int) -> Server | None:
        """Return a server; None where the API says that there is none of that number."""

        def ask() -> Server | None:
            try:
                found = self._client.servers.get_by_id(number)
            except hcloud.APIException as error:
                if error.code == "not_found":
                    return None
                raise
            return Server(number, str(found.name), str(found.status), _time(found.created))

        return self._ask("looking for the server", ask)

    def left(self, wanted: Mapping[str, str] | None = None) -> list[Left]:
        """Return what carries these labels, in the order in which it can be removed; by default all that is ours."""
        selector = ",".join(f"{name}={value}" for name, value in (wanted or {}).items()) or RUN
        found = []
        for kind in _KINDS:
            asked = partial(self._resources(kind).get_all, label_selector=selector)
            found += [_left(kind, each) for each in self._ask(f"looking for {kind}s", asked)]
        return found

    def remove(self, found: Sequence[Left], *, limit: float = REMOVE_LIMIT) -> None:
        """Remove what `left` returned, and wait until it is gone: `limit` seconds for each, tried again meanwhile.

        What is gone already is no failure.
        """
        for each in sorted(found, key=lambda each: _KINDS.index(each.kind)):
            self._remove(each, time.monotonic() + limit)

    def _remove(self, each: Left, deadline: float) -> None:
        doing, resources = f"removing the {each}", self._resources(each.kind)
        while True:
            try:
                # Looked for anew in each round: a deletion that failed half-way may have done it.
                action = resources.get_by_id(each.id).delete()
                if each.kind == "server":
                    action.wait_until_finished()
            except hcloud.APIException as error:
                if error.code == "not_found":
                    return
                refused: Exception = self._refused(doing, error)
                again = _passes(error)
            except (requests.RequestException, ActionException) as error:
                refused, again = self._silent(doing, error), True
            else:
                return
            if not again or time.monotonic() > deadline:
                raise refused
            time.sleep(RETRY_POLL)

    def _resources(self, kind: str) -> Any:
        return {
            "server": self._client.servers,
            "firewall": self._client.firewalls,
            "ssh_key": self._client.ssh_keys,
        }[kind]

    def _ask(self, doing: str, ask: Callable[[], Answer]) -> Answer:
        deadline = time.monotonic() + ASK_LIMIT
        while True:
            try:
                return ask()
            except hcloud.APIException as error:
                if not _passes(error) or time.monotonic() > deadline:
                    raise self._refused(doing, error) from error
            except requests.RequestException as error:
                raise self._silent(doing, error) from error
            time.sleep(RETRY_POLL)

    def _refused(self, doing: str, error: hcloud.APIException) -> Exception:
        said = neutralise(f"{error.message} ({error.code})")
        if error.code == "unauthorized":
            return CredentialMissing(
                f"Hetzner Cloud refuses the token: {said}", next_step=f"set {TOKEN} to one that is valid"
            )
        if error.code == "forbidden":
            return CredentialMissing(
                f"Hetzner Cloud does not allow {doing}: {said}", next_step=f"set {TOKEN} to one that may read and write"
            )
        if error.code in _NOT_YET or isinstance(error.code, int):
            return ConnectionBroken(f"Hetzner Cloud could not do it, {doing}: {said}", next_step="repeat it later")
        return ExecutorUnavailable(f"Hetzner Cloud refuses {doing}: {said}")

    def _silent(self, doing: str, error: Exception) -> ConnectionBroken:
        if isinstance(error, ActionException):
            return ConnectionBroken(f"Hetzner Cloud failed, {doing}: {neutralise(str(error))}")
        return ConnectionBroken(
            f"Hetzner Cloud ({self._endpoint}) does not answer, {doing}: {type(error).__name__}",
            next_step="see whether it can be reached from here, then repeat",
        )


def _passes(error: hcloud.APIException) -> bool:
    return error.code in _NOT_YET or (isinstance(error.code, int) and error.code >= 500)


def listed(options: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return an option that may be one or several."""
    value = options.get(name) or ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def of_spec(found: Cloud, spec: ExecutorSpec) -> list[Choice]:
    """Return what can be ordered for an executor; see `Cloud.choices`."""
    return found.choices(listed(spec.options, "server_types"), listed(spec.options, "locations"))


def _places(kind: Any) -> Iterator[Choice]:
    offered = {each.location.name: each for each in kind.locations or ()}
    for price in kind.prices or ():
        offer = offered.get(price["location"])
        if offered and offer is None:
            continue
        yield Choice(
            str(kind.name),
            str(price["location"]),
            f"{float(price['price_hourly']['gross']):.4f}",
            offer is None or (offer.available is not False and not _over(offer)),
            str(kind.architecture),
        )


def _over(offer: Any) -> bool:
    until = offer.deprecation.unavailable_after if offer.deprecation else None
    return until is not None and until < datetime.now(UTC)


def _enough(kind: Any) -> bool:
    # Deprecated ones are cheap, and can't be had for long. An arm server is a choice for those who know it.
    deprecated = all(each.deprecation for each in kind.locations) if kind.locations else False
    return kind.cores >= CORES and kind.memory >= MEMORY and kind.architecture == "x86" and not deprecated


def _left(kind: str, found: Any) -> Left:
    project, stack, run = (str((found.labels or {}).get(each, "")) for each in (PROJECT, STACK, RUN))
    return Left(kind, found.id, str(found.name), project, stack, run, _time(found.created))


def _time(created: datetime | str | None) -> float:
    if isinstance(created, str):
        created = datetime.fromisoformat(created)
    return created.timestamp() if created else 0.0
