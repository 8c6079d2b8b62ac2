"""What the fake cloud has: resources by kind, how they are listed, and its errors."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Item = dict[str, Any]
Query = Mapping[str, Sequence[str]]

PER_PAGE = 25
MOST_PER_PAGE = 50
_LABEL = re.compile(r"([a-z0-9A-Z]([\w.-]{0,61}[a-z0-9A-Z])?)?")
_PREFIX = re.compile(r"[a-z0-9A-Z]([a-z0-9A-Z.-]{0,251}[a-z0-9A-Z])?")
_TERM = re.compile(r"\s*(!?)\s*([\w./-]+)\s*(?:(==|!=|=)\s*([\w.-]*)|\s(in|notin)\s*\(([^)]*)\))?\s*")


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, code: str, message: str, *, details: Item | None = None, retry_after: int | None = None
    ) -> None:
        """`retry_after` is in seconds."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message, "details": details}}
        self.retry_after = retry_after


def invalid(field: str, why: str) -> ApiError:
    """Return the error for a field of a request."""
    details = {"fields": [{"name": field, "messages": [why]}]}
    return ApiError(422, "invalid_input", f"invalid input in field '{field}'", details=details)


def now() -> str:
    """Return the time as answers have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """The resources of one project. `lock` is held by whoever reads or changes them."""

    def __init__(self) -> None:
        """Begin empty."""
        self.lock = threading.RLock()
        self.kinds: dict[str, dict[int, Item]] = {}
        # Not those of another fake on this machine: what was made there is not to be found here by chance.
        self._last = 10_000_000 + secrets.randbelow(80_000) * 1000

    def number(self) -> int:
        """Return a new id."""
        self._last += 1
        return self._last

    def of(self, kind: str) -> dict[int, Item]:
        """Return the resources of a kind, by id."""
        return self.kinds.setdefault(kind, {})

    def get(self, kind: str, number: Any) -> Item:
        """Return a resource; not_found where it is none."""
        try:
            return self.of(kind)[int(number)]
        except (KeyError, TypeError, ValueError):
            what = singular(kind).replace("_", " ")
            raise ApiError(404, "not_found", f"{what} with ID '{number}' not found") from None

    def named(self, kind: str, field: str, wanted: Any, fits: Callable[[Item], bool] = lambda _: True) -> Item:
        """Return the resource that a request's field names by id or name."""
        for item in self.of(kind).values():
            if (str(item["id"]) == str(wanted) or item["name"] == wanted) and fits(item):
                return item
        raise ApiError(404, "not_found", f"{singular(kind).replace('_', ' ')} not found ({field}: {wanted})")

    def unused(self, kind: str, field: str, value: Any) -> None:
        """Refuse what another resource of the kind has."""
        if any(item[field] == value for item in self.of(kind).values()):
            what = singular(kind).replace("_", " ")
            raise ApiError(409, "uniqueness_error", f"{what} {field} is already used", details={"fields": [field]})


def singular(kind: str) -> str:
    """Return the name of one resource of a kind."""
    return kind.removesuffix("s")


def listed(items: Sequence[Item], query: Query) -> tuple[list[Item], Item]:
    """Return the page of resources that a query asks for, and the answer's `meta`."""
    found = [item for item in items if _matches(item, query)]
    for order in reversed(query.get("sort", ["id:asc"])):
        field, _, direction = order.partition(":")
        found.sort(key=lambda item, field=field: item.get(field) or "", reverse=direction == "desc")  # type: ignore[misc]
    page = max(1, int(query.get("page", ["1"])[0]))
    size = min(MOST_PER_PAGE, max(1, int(query.get("per_page", [str(PER_PAGE)])[0])))
    last = max(1, -(-len(found) // size))
    pagination = {
        **{"page": page, "per_page": size, "previous_page": page - 1 or None},
        **{"next_page": page + 1 if page < last else None, "last_page": last, "total_entries": len(found)},
    }
    return found[(page - 1) * size : page * size], {"pagination": pagination}


def _matches(item: Item, query: Query) -> bool:
    for field in ("id", "name", "status", "type", "architecture", "fingerprint", "ip"):
        if field in query and str(item.get(field)) not in query[field]:
            return False
    if item.get("type") == "system" and item.get("deprecated") and query.get("include_deprecated") != ["true"]:
        return False
    return all(selected(item.get("labels") or {}, each) for each in query.get("label_selector", []))


def selected(labels: Mapping[str, str], selector: str) -> bool:
    """Return whether a label selector takes labels."""
    for term in re.split(r",(?![^(]*\))", selector):
        found = _TERM.fullmatch(term)
        if found is None:
            raise invalid("label_selector", f"not a selector: {term}")
        absent, key, operator, value, choice, values = found.groups()
        has = labels.get(key)
        options = [each.strip() for each in (values or "").split(",")]
        match operator or choice:
            case None:
                fits = (has is None) if absent else (has is not None)
            case "=" | "==":
                fits = has == value
            case "!=":
                fits = has != value
            case "in":
                fits = has in options
            case _:
                fits = has not in options
        if not fits:
            return False
    return True


def labels(body: Item) -> dict[str, str]:
    """Return a request's labels; refuse what can't be one."""
    given = body.get("labels") or {}
    for key, value in given.items():
        prefix, slash, name = key.rpartition("/")
        if (slash and not _PREFIX.fullmatch(prefix)) or not name or not _LABEL.fullmatch(name):
            raise invalid("labels", f"invalid label key: {key}")
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise invalid("labels", f"invalid label value: {value}")
    return dict(given)
