"""Hetzner Cloud's API on loopback: what the engine's plugin, Hetzner's libraries and command line ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from fakes.hetzner_api import answers, catalogue
from fakes.hetzner_api.actions import Actions
from fakes.hetzner_api.firewalls import Firewalls, Keys
from fakes.hetzner_api.servers import Servers, datacenters
from fakes.hetzner_api.store import ApiError, Item, Query, Store, labels, listed, singular
from fakes.hetzner_api.switches import Switches
from machines.machine import Machine, Machines
from testbed.needs import HCLOUD, requires

_ROOT = "/v1/"
_LIMIT = 60.0  # seconds for one call of the command line
_EMPTY = (
    *("volumes", "networks", "load_balancers", "load_balancer_types", "certificates", "placement_groups"),
    *("floating_ips", "isos"),
)
_CHANGEABLE = {
    "servers": ("name",),
    "ssh_keys": ("name",),
    "firewalls": ("name",),
    "primary_ips": ("name",),
    "images": (),
}
# What a user could leave there, as the command line calls it, and what of it is said.
_LISTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("server", "ssh-key", "firewall", "primary-ip"), ("columns=name",)),
    "image": ("columns=description", "--type", "snapshot"),  # those of the system are nobody's
}


@dataclass(frozen=True)
class Request:
    """A request, and what it was answered."""

    method: str
    path: str
    status: int
    at: float  # seconds since the epoch, when it had come


class HetznerApi:
    """The cloud; a context manager. `endpoint` and `token` are what HCLOUD_ENDPOINT and HCLOUD_TOKEN have to be."""

    def __init__(self, machines: Machines) -> None:
        """`machines` makes the servers."""
        self.token = secrets.token_hex(32)
        self.switches = Switches()
        self.requests: list[Request] = []
        self.wrong: list[str] = []  # what was answered otherwise than Hetzner describes
        self.left_on_purpose = False  # what is there at the test's end is no fault
        self._store = Store()
        self._actions = Actions(self._store, self.switches)
        self._keys = Keys(self._store, self.switches)
        self._firewalls = Firewalls(self._store, self._actions, self.switches)
        self._servers = Servers(self._store, self._actions, self._firewalls, self.switches, machines)
        sold = {"server_types": catalogue.SERVER_TYPES, "locations": catalogue.LOCATIONS, "images": catalogue.IMAGES}
        for kind, items in {**sold, "datacenters": datacenters(), **{kind: [] for kind in _EMPTY}}.items():
            self._store.of(kind).update({each["id"]: dict(each) for each in items})
        for kind in ("servers", "ssh_keys", "firewalls", "primary_ips", "actions"):
            self._store.of(kind)
        self._server = _Server(("127.0.0.1", 0), self)
        self._address = self._server.server_address
        self.endpoint = f"http://127.0.0.1:{self._address[1]}/v1"
        self._thread = threading.Thread()

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of this machine's 127.0.0.1 that servers reach on their own: a model's API."""
        return self._servers.ports

    @ports.setter
    def ports(self, ports: tuple[int, ...]) -> None:
        self._servers.ports = ports

    def servers(self) -> list[Item]:
        """Return the servers that there are."""
        return self.all("servers")

    def all(self, kind: str) -> list[Item]:
        """Return the resources of a kind."""
        with self._store.lock:
            return [self._shown(kind, each) for each in self._store.of(kind).values()]

    def machine(self, name: str) -> Machine:
        """Return the machine that a server is."""
        return self._servers.machines[int(next(each["id"] for each in self.servers() if each["name"] == name))]

    def delete_server(self, number: int) -> None:
        """Delete a server behind everybody's back."""
        self._servers.vanish(number)

    def add_firewall(self, name: str, given: dict[str, str]) -> None:
        """Make a firewall that nobody here asked for."""
        with self._store.lock:
            self._firewalls.create({"name": name, "labels": given})

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Let nobody connect."""
        self._stop()
        try:
            yield
        finally:
            self._server = _Server(("127.0.0.1", int(self._address[1])), self)
            self._serve()

    def listed(self) -> list[str]:
        """Return what there is, as Debian's hcloud-cli sees it from outside."""
        return [f"{kind} {name}" for kind in _LISTED for name in self._listed(kind)]

    def check(self) -> None:
        """Fail where something is left that was not left on purpose, or where an answer was not as described."""
        self.switches.off()
        left = [] if self.left_on_purpose else self.listed()
        assert not left, f"left in the cloud: {', '.join(left)}"
        assert not self.wrong, "\n".join(self.wrong)

    def close(self) -> None:
        """Delete everything."""
        self._stop()
        self._actions.close()
        for machine in self._servers.machines.values():
            machine.delete()
        for image in [each for each in self.all("images") if each["type"] == "snapshot"]:
            self._servers.forget(image)

    def answer(self, method: str, path: str, query: Query, token: str, raw: bytes) -> tuple[int, Any, int | None]:
        """Return status, body and the seconds after which to ask again of a request."""
        come = time.time()
        time.sleep(self.switches.delay)
        after: int | None = None
        try:
            self._admit(method, path, token)
            body = json.loads(raw) if raw else {}
            with self._store.lock:
                status, found = self._route(method, path.split("/"), query, body)
                found = None if found is None else json.loads(json.dumps(_public(found)))
        except ApiError as error:
            status, found, after = error.status, error.body, error.retry_after
        except json.JSONDecodeError:
            status, found = 400, {"error": {"code": "json_error", "message": "no JSON", "details": None}}
        except Exception as error:
            # The fake's own fault: told at the test's end, not only to who asked.
            self.wrong.append("".join(traceback.format_exception(error)))
            status, found = 500, {"error": {"code": "server_error", "message": repr(error), "details": None}}
        self.requests.append(Request(method, f"/{path}", status, come))
        if told := answers.wrong(method, f"/{path}", status, found):
            self.wrong.append(told)
        return status, found, after

    def _admit(self, method: str, path: str, token: str) -> None:
        refused = self.switches.refused(method, f"/{path}")
        if refused is not None:
            raise refused
        if token != f"Bearer {self.token}":
            raise ApiError(401, "unauthorized", "unable to authenticate")

    def _route(self, method: str, path: list[str], query: Query, body: Item) -> tuple[int, Any]:
        kind = path[0]
        if path == ["pricing"] and method == "GET":
            return 200, {"pricing": catalogue.pricing()}
        if kind not in self._store.kinds:
            raise ApiError(404, "not_found", f"there is no {kind}")
        match (method, *path[1:]):
            case ("GET",):
                items, meta = listed([self._shown(kind, each) for each in self._store.of(kind).values()], query)
                more = {"recommendation": items[0]["id"]} if kind == "datacenters" and items else {}
                return 200, {kind: items, "meta": meta, **more}
            case ("POST",):
                return 201, self._create(kind, body)
            case ("GET", "actions"):
                return 200, self._actions_of(kind, None, query)
            case ("GET", number, "actions"):
                self._store.get(kind, number)
                return 200, self._actions_of(kind, int(number), query)
            case ("GET", "actions", number) | ("GET", _, "actions", number):
                return 200, {"action": self._store.get("actions", number)}
            case ("POST", number, "actions", command):
                return 201, self._act(kind, self._store.get(kind, number), command, body)
            case ("GET", number):
                return 200, {singular(kind): self._shown(kind, self._store.get(kind, number))}
            case ("PUT", number):
                return 200, self._change(kind, self._store.get(kind, number), body)
            case ("DELETE", number):
                return self._delete(kind, self._store.get(kind, number))
        raise ApiError(404, "not_found", f"there is no {'/'.join(path)}")

    def _create(self, kind: str, body: Item) -> Item:
        match kind:
            case "servers":
                return self._servers.create(body)
            case "ssh_keys":
                return self._keys.create(body)
            case "firewalls":
                return self._firewalls.create(body)
        raise ApiError(501, "unsupported_error", f"the fake cloud makes no {kind}")

    def _act(self, kind: str, item: Item, command: str, body: Item) -> Item:
        match kind, command:
            case "servers", _:
                return self._servers.act(item, command, body)
            case "firewalls", "set_rules":
                return {"actions": self._firewalls.set_rules(item, body)}
            case "firewalls", "apply_to_resources":
                return {"actions": self._firewalls.apply(item, body["apply_to"])}
            case "firewalls", "remove_from_resources":
                return {"actions": self._firewalls.remove(item, body["remove_from"])}
        raise ApiError(501, "unsupported_error", f"the fake cloud does not know the action {command} of {kind}")

    def _change(self, kind: str, item: Item, body: Item) -> Item:
        for field in _CHANGEABLE.get(kind, ()):
            if body.get(field) not in (None, item[field]):
                self._store.unused(kind, field, body[field])
                item[field] = body[field]
        if "labels" in body:
            item["labels"] = labels(body)
        return {singular(kind): self._shown(kind, item)}

    def _delete(self, kind: str, item: Item) -> tuple[int, Any]:
        match kind:
            case "servers":
                return 200, self._servers.delete(item)
            case "firewalls":
                self._firewalls.delete(item)
            case "images":
                self._servers.forget(item)
            case "ssh_keys":
                del self._store.of(kind)[item["id"]]
            case _:
                raise ApiError(501, "unsupported_error", f"the fake cloud deletes no {kind}")
        return 204, None

    def _actions_of(self, kind: str, number: int | None, query: Query) -> Item:
        wanted = [
            each
            for each in self._store.of("actions").values()
            if any(about["type"] == singular(kind) and number in (None, about["id"]) for about in each["resources"])
        ]
        items, meta = listed(wanted, query)
        return {"actions": items, "meta": meta}

    def _shown(self, kind: str, item: Item) -> Item:
        match kind:
            case "servers":
                return self._servers.shown(item)
            case "firewalls":
                return self._firewalls.shown(item)
        return item

    def _listed(self, kind: str) -> list[str]:
        requires(HCLOUD)
        done = subprocess.run(
            ["hcloud", kind, "list", "-o", "noheader", "-o", *_LISTED[kind]],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
            | {"HCLOUD_TOKEN": self.token, "HCLOUD_ENDPOINT": self.endpoint},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def _serve(self) -> None:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="hetzner-api", daemon=True
        )
        self._thread.start()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """One that forgets its callers when it ends."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: HetznerApi) -> None:
        self.api = api
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One connection, which ends with its answer: nobody keeps one to a cloud that is down."""

    server: _Server
    timeout = _LIMIT

    def _answer(self) -> None:
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = url.path.removeprefix(_ROOT).strip("/"), parse_qs(url.query, keep_blank_values=True)
        token = str(self.headers.get("Authorization") or "")
        status, body, after = self.server.api.answer(self.command, path, query, token, raw)
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if body is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
        if after is not None:
            self.send_header("Retry-After", str(after))
            self.send_header("RateLimit-Reset", str(int(time.time()) + after))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the base's names

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _public(found: Any) -> Any:
    """Return an answer without what is the fake's own."""
    if isinstance(found, dict):
        return {name: _public(each) for name, each in found.items() if not name.startswith("_")}
    return [_public(each) for each in found] if isinstance(found, list) else found
