"""What an executor that is written out in a task file may not do: task files may come from anyone."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from coding_agent.container_options import is_volume_name
from coding_agent.document import FieldPath, quoted

_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock", "crio.sock")
_SOCKET_FOLDERS = ("/run", "/var/run")


def forbidden(executor: Mapping[str, Any], allowed: Collection[str]) -> Iterator[tuple[FieldPath, str]]:
    """Yield the place and the message of everything that the user's own file would have to allow."""
    # A run takes the user's credential along: nobody else says to which host, or at whose cost a server is made.
    if executor.get("type") == "ssh" and "ssh_host" not in allowed:
        yield ("type",), _refusal("your access to a host", "ssh_host")
    if executor.get("type") == "hetzner" and "cloud_server" not in allowed:
        yield ("type",), _refusal("servers, which you pay for", "cloud_server")
    if executor.get("use_host_login") and "host_login" not in allowed:
        yield ("use_host_login",), _refusal("this machine's Claude login", "host_login")
    network = str(executor.get("network", ""))
    if (network == "host" or network.startswith("container:")) and "host_network" not in allowed:
        yield ("network",), _refusal(f"the network {quoted(network)}", "host_network")
    for number, volume in enumerate(executor.get("volumes", ())):
        source = volume.partition(":")[0]
        if _holds_socket(source) and "docker_socket" not in allowed:
            yield ("volumes", number), _refusal(f"a container engine's socket ({quoted(source)})", "docker_socket")
        elif _outside(source) and "mounts" not in allowed:
            yield ("volumes", number), _refusal(f"{quoted(source)}, which is outside the project", "mounts")
        elif is_volume_name(source) and "mounts" not in allowed:
            yield ("volumes", number), _refusal(f"the volume {quoted(source)}, which may be another's", "mounts")
    if "container" in executor and "existing_container" not in allowed:
        yield ("container",), _refusal(f"the container {quoted(executor['container'])}", "existing_container")
    if "docker_host" in executor and "docker_host" not in allowed:
        yield ("docker_host",), _refusal(f"the container engine {quoted(executor['docker_host'])}", "docker_host")


def _refusal(what: str, permission: str) -> str:
    return (
        f"an executor in a task file may not use {what}; put the executor into the executors file, "
        f"or allow it there with `allow_inline: [{permission}]`"
    )


def _outside(source: str) -> bool:
    return source.startswith(("/", "~")) or ".." in source.split("/") or "$" in source


def _holds_socket(source: str) -> bool:
    path = PurePosixPath(posixpath.normpath(source))
    if path.name in _SOCKETS or str(path) == "/":
        return True
    if not path.is_absolute():
        return False
    # A folder above a socket is as good as the socket.
    return any(PurePosixPath(each).is_relative_to(path) or path.is_relative_to(each) for each in _SOCKET_FOLDERS)
