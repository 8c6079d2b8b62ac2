"""Servers of the fake cloud: ordered, changed and deleted as at Hetzner's, and each a machine that boots."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fakes.hetzner_api import catalogue
from fakes.hetzner_api.actions import Actions
from fakes.hetzner_api.firewalls import Firewalls, within
from fakes.hetzner_api.store import ApiError, Item, Store, invalid, labels, now
from fakes.hetzner_api.switches import Switches
from machines.machine import Machine, Machines, ServerSpec

_HOST_NAME = re.compile(r"[a-z0-9A-Z]([a-z0-9A-Z-]{0,61}[a-z0-9A-Z])?(\.[a-z0-9A-Z]([a-z0-9A-Z-]{0,61}[a-z0-9A-Z])?)*")
_USER_DATA = 32 * 1024  # bytes, at most


class Servers:
    """The servers, and the machines that they are."""

    def __init__(
        self, store: Store, actions: Actions, firewalls: Firewalls, switches: Switches, machines: Machines
    ) -> None:
        """Begin without any."""
        self._store, self._actions, self._firewalls, self._switches = store, actions, firewalls, switches
        self._machines = machines
        self.machines: dict[int, Machine] = {}
        self.ports: tuple[int, ...] = ()  # of this machine, that servers reach on their own 127.0.0.1

    def create(self, body: Item) -> Item:
        """Answer POST /servers."""
        name = str(body.get("name") or "")
        if not _HOST_NAME.fullmatch(name):
            raise invalid("name", "must be a valid hostname")
        if len(str(body.get("user_data") or "")) > _USER_DATA:
            raise invalid("user_data", "is too long")
        self._store.unused("servers", "name", name)
        kind = self._store.named("server_types", "server_type", body.get("server_type"))
        place = self._place(body, kind)
        image = self._store.named("images", "image", body.get("image"), lambda each: _fits(each, kind))
        keys = [self._store.named("ssh_keys", "ssh_keys", each) for each in body.get("ssh_keys") or ()]
        behind = [self._store.get("firewalls", each["firewall"]) for each in body.get("firewalls") or ()]
        given = labels(body)
        within(self._switches.servers, self._store, "servers")
        self._refuse_sold_out(str(kind["name"]), str(place["name"]))
        number = self._store.number()
        machine = self._machines.create(
            ServerSpec(
                id=number,
                name=name,
                user_data=str(body.get("user_data") or ""),
                public_keys=tuple(str(each["public_key"]) for each in keys),
                image=str(image.get("_snapshot") or image["name"]),
                server_type=str(kind["name"]),
                cores=int(kind["cores"]),
                memory=int(kind["memory"]) << 30,
                location=str(place["name"]),
                datacenter=catalogue.DATACENTERS[str(place["name"])][1],
                ports=self.ports,
                sources=lambda: self._firewalls.sources(number),
            )
        )
        self.machines[number] = machine
        server = self._new(number, name, kind, place, image, given)
        server["public_net"]["ipv4"] = self._address(number, "ipv4", machine.address, place)
        server["public_net"]["ipv6"] = self._address(number, "ipv6", f"2001:db8:{number % 0xFFFF:x}::/64", place)
        self._store.of("servers")[number] = server
        for each in behind:
            each["applied_to"].append({"type": "server", "server": {"id": number}})
        starts = body.get("start_after_create") is not False

        def ends(well: bool) -> None:
            if not well:
                self._drop(number)
            elif not starts:
                server["status"] = "off"

        begun = self._actions.begin("create_server", [("server", number)], ends=ends)
        started = []
        if starts:
            started.append(self._power(server, "start_server", machine.power_on, "starting"))
        password = None if keys else "a-password-for-root"
        return {"server": self.shown(server), "action": begun, "next_actions": started, "root_password": password}

    def delete(self, server: Item) -> Item:
        """Answer DELETE /servers/{id}."""
        number = int(server["id"])
        self._actions.unlocked(number)
        if server["protection"]["delete"]:
            raise ApiError(403, "protected", "server deletion is protected")
        server["status"] = "deleting"
        begun = self._actions.begin(
            "delete_server",
            [("server", number)],
            self.machines[number].delete,
            ends=lambda well: self._drop(number) if well else None,
        )
        return {"action": begun}

    def vanish(self, number: int) -> None:
        """Delete a server behind everybody's back."""
        self.machines[number].delete()
        with self._store.lock:
            self._drop(number)

    def forget(self, image: Item) -> None:
        """Answer DELETE /images/{id}."""
        if image["type"] != "snapshot":
            raise ApiError(403, "forbidden", "only snapshots can be deleted")
        if "_snapshot" in image:  # not where its making failed
            self._machines.forget(str(image["_snapshot"]))
        del self._store.of("images")[image["id"]]

    def act(self, server: Item, command: str, body: Item) -> Item:
        """Answer POST /servers/{id}/actions/{command}."""
        number = int(server["id"])
        self._actions.unlocked(number)
        machine = self.machines[number]
        powers: dict[str, tuple[str, Callable[[], None], str]] = {
            "poweron": ("start_server", machine.power_on, "starting"),
            "poweroff": ("stop_server", machine.power_off, "stopping"),
            "shutdown": ("shutdown_server", machine.shutdown, "running"),
            "reboot": ("reboot_server", machine.reboot, "running"),
            "reset": ("reset_server", lambda: _reset(machine), "running"),
        }
        if command in powers:
            return {"action": self._power(server, *powers[command])}
        if command == "create_image":
            return self._snapshot(server, body)
        if command == "change_protection":
            server["protection"] = {name: bool(body.get(name)) for name in ("delete", "rebuild")}
            return {"action": self._actions.begin("change_protection", [("server", number)])}
        if command == "change_type":
            return {"action": self._change_type(server, body)}
        raise ApiError(501, "unsupported_error", f"the fake cloud does not know the action {command}")

    def shown(self, server: Item) -> Item:
        """Return one as answers have it."""
        number, status = int(server["id"]), server["status"]
        if status == "running" and not self.machines[number].running:
            status = "off"
        behind = [{"id": each["id"], "status": "applied"} for each in self._firewalls.of_server(number)]
        return {
            **server,
            "status": status,
            "locked": number in self._switches.locked or self._actions.busy("server", number),
            "public_net": {**server["public_net"], "firewalls": behind},
        }

    def _place(self, body: Item, kind: Item) -> Item:
        place = self._store.of("locations")[catalogue.LOCATIONS[0]["id"]]
        if body.get("location") is not None:
            place = self._store.named("locations", "location", body["location"])
        elif body.get("datacenter") is not None:
            center = self._store.named("datacenters", "datacenter", body["datacenter"])
            place = self._store.get("locations", center["location"]["id"])
        if not any(each["name"] == place["name"] for each in kind["locations"]):
            raise ApiError(422, "invalid_input", "unsupported location for server type")
        return place

    def _refuse_sold_out(self, kind: str, place: str) -> None:
        if self._switches.has_none(kind, place, self._switches.unavailable):
            raise ApiError(412, "resource_unavailable", "the requested resource is currently unavailable")
        if self._switches.has_none(kind, place, self._switches.misplaced):
            raise ApiError(412, "placement_error", "error during placement")

    def _power(self, server: Item, command: str, work: Callable[[], None], meanwhile: str) -> Item:
        if server["status"] != "initializing":
            server["status"] = meanwhile

        def ends(_well: bool) -> None:
            server["status"] = "running"  # as far as the machine runs: see `shown`

        return self._actions.begin(command, [("server", int(server["id"]))], work, ends=ends)

    def _change_type(self, server: Item, body: Item) -> Item:
        if self.machines[int(server["id"])].running:
            raise ApiError(412, "server_not_stopped", "server must be stopped")
        server["server_type"] = self._store.named("server_types", "server_type", body.get("server_type"))
        if body.get("upgrade_disk"):
            server["primary_disk_size"] = server["server_type"]["disk"]
        return self._actions.begin("change_server_type", [("server", int(server["id"]))])

    def _snapshot(self, server: Item, body: Item) -> Item:
        machine, number = self.machines[int(server["id"])], self._store.number()
        system = server["image"]
        image: Item = {
            **{key: value for key, value in system.items() if not key.startswith("_")},
            **{
                "id": number,
                "type": "snapshot",
                "name": None,
                "description": str(body.get("description") or "snapshot"),
            },
            **{"status": "creating", "created": now(), "labels": labels(body), "image_size": 1.0, "deprecated": None},
            "created_from": {"id": server["id"], "name": server["name"]},
        }
        self._store.of("images")[number] = image

        def work() -> None:
            image["_snapshot"] = machine.snapshot()

        def ends(well: bool) -> None:
            image["status"] = "available" if well else "unavailable"

        resources = [("server", int(server["id"])), ("image", number)]
        return {"image": image, "action": self._actions.begin("create_image", resources, work, ends=ends)}

    def _address(self, server: int, kind: str, address: str, place: Item) -> Item:
        number = self._store.number()
        names = [{"ip": address, "dns_ptr": f"static.{server}.example.invalid"}] if kind == "ipv4" else []
        self._store.of("primary_ips")[number] = {
            **{"id": number, "name": f"primary_ip-{number}", "ip": address, "type": kind, "created": now()},
            **{"assignee_id": server, "assignee_type": "server", "auto_delete": True, "blocked": False},
            **{"labels": {}, "location": place, "datacenter": _datacenter(place), "dns_ptr": names},
            "protection": {"delete": False},
        }
        pointer: Any = names[0]["dns_ptr"] if names else []
        return {"id": number, "ip": address, "blocked": False, "dns_ptr": pointer}

    def _new(self, number: int, name: str, kind: Item, place: Item, image: Item, given: dict[str, str]) -> Item:
        return {
            **{"id": number, "name": name, "status": "initializing", "created": now(), "labels": given},
            **{"server_type": kind, "location": place, "datacenter": _datacenter(place), "image": image},
            **{"public_net": {"floating_ips": []}, "private_net": [], "volumes": [], "load_balancers": [], "iso": None},
            **{"protection": {"delete": False, "rebuild": False}, "rescue_enabled": False, "backup_window": None},
            **{"primary_disk_size": kind["disk"], "included_traffic": 20 << 40, "placement_group": None},
            **{"ingoing_traffic": 0, "outgoing_traffic": 0},
        }

    def _drop(self, number: int) -> None:
        self.machines[number].delete()
        self._store.of("servers").pop(number, None)
        self._firewalls.forget_server(number)
        addresses = self._store.of("primary_ips")
        for each in [key for key, value in addresses.items() if value["assignee_id"] == number]:
            del addresses[each]


def _datacenter(place: Item) -> Item:
    number, name = catalogue.DATACENTERS[str(place["name"])]
    types = [each["id"] for each in catalogue.SERVER_TYPES if any(at["id"] == place["id"] for at in each["locations"])]
    return {
        **{"id": number, "name": name, "description": f"{place['city']} 1 virtual", "location": place},
        "server_types": {"available": types, "available_for_migration": types, "supported": types},
    }


def datacenters() -> list[Item]:
    """Return all of them."""
    return [_datacenter(each) for each in catalogue.LOCATIONS]


def _fits(image: Item, kind: Item) -> bool:
    return bool(image["architecture"] == kind["architecture"] and image["status"] == "available")


def _reset(machine: Machine) -> None:
    machine.power_off()
    machine.power_on()
