"""What a server finds at 169.254.169.254: the cloud's metadata service, as cloud-init's source for Hetzner reads it."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from machines.machine import ServerSpec

ADDRESS = "169.254.169.254"
PORT = 80
# What Hetzner gives with every server.
VENDOR_DATA = "#cloud-config\ndisable_root: false\nssh_pwauth: false\n"
_BASE = "/hetzner/v1/"


def answer(server: ServerSpec, address: str, path: str) -> bytes | None:
    """Return what is at a path; None where nothing is. YAML in the real one: JSON is YAML."""
    values: dict[str, str | list[str]] = {
        "hostname": server.name,
        "instance-id": str(server.id),
        "public-ipv4": address,
        "local-ipv4": "",
        "availability-zone": server.datacenter,
        "region": "eu-central",
        "public-keys": list(server.public_keys),
    }
    name = path.partition("?")[0].removeprefix(_BASE)
    match name.removeprefix("metadata").strip("/"):
        case "":
            network = {"version": 1, "config": [_interface(server)]}
            return json.dumps({**values, "network-config": network, "vendor_data": VENDOR_DATA}).encode()
        case "userdata":
            return server.user_data.encode()
        case key if key in values:
            value = values[key]
            return ("\n".join(value) if isinstance(value, list) else value).encode()
    return None


def hardware_address(server: ServerSpec) -> str:
    """Return a server's network card's."""
    return ":".join(f"{byte:02x}" for byte in (0x96, 0, *server.id.to_bytes(8, "big")[-4:]))


def _interface(server: ServerSpec) -> dict[str, Any]:
    subnets = [{"type": "dhcp", "ipv4": True}]
    return {"type": "physical", "name": "eth0", "mac_address": hardware_address(server), "subnets": subnets}


class MetadataService:
    """The service on a listening socket."""

    def __init__(self, listener: socket.socket, server: ServerSpec, address: str) -> None:
        """Take over the listener."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answer(server, address, self.path)
                body = b"not found\n" if found is None else found
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer((ADDRESS, PORT), Handler, bind_and_activate=False)
        self._http.daemon_threads = True
        self._http.socket.close()
        self._http.socket = listener
        threading.Thread(target=self._http.serve_forever, args=(0.1,), name="metadata", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()
