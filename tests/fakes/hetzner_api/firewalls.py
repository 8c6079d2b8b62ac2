"""Firewalls and SSH keys of the fake cloud."""

from __future__ import annotations

import base64
import binascii
import hashlib
from ipaddress import ip_network
from typing import Any

from fakes.hetzner_api.actions import Actions
from fakes.hetzner_api.store import ApiError, Item, Store, invalid, labels, now, selected
from fakes.hetzner_api.switches import Switches
from machines.machine import SSH_PORT, Networks

_PROTOCOLS = ("tcp", "udp", "icmp", "esp", "gre")


class Keys:
    """The SSH keys."""

    def __init__(self, store: Store, switches: Switches) -> None:
        """Begin without any."""
        self._store = store
        self._switches = switches

    def create(self, body: Item) -> Item:
        """Answer POST /ssh_keys."""
        fingerprint = _fingerprint(body.get("public_key"))
        name = _name(body)
        self._store.unused("ssh_keys", "name", name)
        if any(each["fingerprint"] == fingerprint for each in self._store.of("ssh_keys").values()):
            raise ApiError(409, "uniqueness_error", "SSH key with the same fingerprint already exists")
        within(self._switches.keys, self._store, "ssh_keys")
        key = {
            **{"id": self._store.number(), "name": name, "fingerprint": fingerprint, "created": now()},
            **{"public_key": body["public_key"], "labels": labels(body)},
        }
        self._store.of("ssh_keys")[key["id"]] = key
        return {"ssh_key": key}


def _fingerprint(line: Any) -> str:
    """Return the fingerprint of a key's line, as the cloud has it; refuse what is no key."""
    try:
        raw = base64.b64decode(str(line).split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise invalid("public_key", "not a valid SSH public key") from None
    return hashlib.md5(raw, usedforsecurity=False).digest().hex(":")


class Firewalls:
    """The firewalls, and what they let in."""

    def __init__(self, store: Store, actions: Actions, switches: Switches) -> None:
        """Begin without any."""
        self._store = store
        self._actions = actions
        self._switches = switches

    def create(self, body: Item) -> Item:
        """Answer POST /firewalls."""
        name = _name(body)
        self._store.unused("firewalls", "name", name)
        within(self._switches.firewalls, self._store, "firewalls")
        firewall: Item = {
            **{"id": self._store.number(), "name": name, "created": now(), "labels": labels(body)},
            **{"rules": _rules(body.get("rules") or []), "applied_to": []},
        }
        self._store.of("firewalls")[firewall["id"]] = firewall
        begun = []
        if firewall["rules"]:
            begun.append(self._actions.begin("set_firewall_rules", [("firewall", firewall["id"])]))
        if body.get("apply_to"):
            begun.extend(self.apply(firewall, body["apply_to"]))
        return {"firewall": self.shown(firewall), "actions": begun}

    def set_rules(self, firewall: Item, body: Item) -> list[Item]:
        """Answer POST /firewalls/{id}/actions/set_rules."""
        firewall["rules"] = _rules(body.get("rules") or [])
        affected = [("server", each) for each in self._store.of("servers") if firewall in self.of_server(each)]
        return [self._actions.begin("set_firewall_rules", [("firewall", firewall["id"]), *affected])]

    def apply(self, firewall: Item, resources: list[Item]) -> list[Item]:
        """Put servers behind a firewall."""
        begun = []
        for each in resources:
            wanted = self._resource(each)
            if wanted in firewall["applied_to"]:
                raise ApiError(409, "firewall_already_applied", "firewall was already applied on resource")
            firewall["applied_to"].append(wanted)
            begun.append(self._actions.begin("apply_firewall", self._about(firewall, wanted)))
        return begun

    def remove(self, firewall: Item, resources: list[Item]) -> list[Item]:
        """Let servers be without a firewall."""
        begun = []
        for each in resources:
            wanted = self._resource(each)
            if wanted not in firewall["applied_to"]:
                raise ApiError(404, "firewall_resource_not_found", "firewall is not applied on resource")
            firewall["applied_to"].remove(wanted)
            begun.append(self._actions.begin("remove_firewall", self._about(firewall, wanted)))
        return begun

    def delete(self, firewall: Item) -> None:
        """Remove one."""
        if any(self._servers(each) for each in firewall["applied_to"]):
            raise ApiError(409, "resource_in_use", "firewall is still in use")
        del self._store.of("firewalls")[firewall["id"]]

    def forget_server(self, number: int) -> None:
        """Take a server that is gone from all firewalls."""
        gone = {"type": "server", "server": {"id": number}}
        for firewall in self._store.of("firewalls").values():
            firewall["applied_to"] = [each for each in firewall["applied_to"] if each != gone]

    def of_server(self, number: int) -> list[Item]:
        """Return a server's firewalls."""
        return [
            firewall
            for firewall in self._store.of("firewalls").values()
            if any(number in self._servers(each) for each in firewall["applied_to"])
        ]

    def sources(self, number: int) -> Networks | None:
        """Return who may connect to a server's port 22; None is everybody."""
        with self._store.lock:
            if self._switches.silent:
                return ()
            firewalls = self.of_server(number)
            if not firewalls:
                return None
            rules = [rule for firewall in firewalls for rule in firewall["rules"] if _about_ssh(rule)]
            return [ip_network(source) for rule in rules for source in rule["source_ips"]]

    def shown(self, firewall: Item) -> Item:
        """Return one as answers have it."""
        applied = []
        for each in firewall["applied_to"]:
            if each["type"] == "label_selector":
                servers = [{"type": "server", "server": {"id": number}} for number in self._servers(each)]
                applied.append({**each, "applied_to_resources": servers})
            else:
                applied.append(each)
        return {**firewall, "applied_to": applied}

    def _resource(self, wanted: Item) -> Item:
        match wanted.get("type"):
            case "server":
                server = self._store.get("servers", (wanted.get("server") or {}).get("id"))
                return {"type": "server", "server": {"id": server["id"]}}
            case "label_selector":
                selector = str((wanted.get("label_selector") or {}).get("selector"))
                selected({}, selector)
                return {"type": "label_selector", "label_selector": {"selector": selector}}
        raise invalid("type", "must be server or label_selector")

    def _servers(self, applied: Item) -> list[int]:
        servers = self._store.of("servers")
        if applied["type"] == "server":
            return [applied["server"]["id"]] if applied["server"]["id"] in servers else []
        selector = applied["label_selector"]["selector"]
        return [number for number, server in servers.items() if selected(server["labels"], selector)]

    def _about(self, firewall: Item, applied: Item) -> list[tuple[str, int]]:
        return [("firewall", firewall["id"]), *(("server", each) for each in self._servers(applied))]


def within(limit: int | None, store: Store, kind: str) -> None:
    """Refuse one more than a project may have."""
    if limit is not None and len(store.of(kind)) >= limit:
        what = kind.replace("_", " ").removesuffix("s")
        raise ApiError(403, "resource_limit_exceeded", f"{what} limit exceeded")


def _name(body: Item) -> str:
    name = body.get("name")
    if not isinstance(name, str) or not name or len(name) > 128:
        raise invalid("name", "has to have 1 to 128 characters")
    return name


def _rules(given: list[Item]) -> list[Item]:
    rules = []
    for each in given:
        if each.get("direction") not in ("in", "out") or each.get("protocol") not in _PROTOCOLS:
            raise invalid("rules", "direction or protocol is not valid")
        if (each["protocol"] in ("tcp", "udp")) != bool(each.get("port")):
            raise invalid("rules", "port is needed for tcp and udp, and for nothing else")
        for address in [*(each.get("source_ips") or []), *(each.get("destination_ips") or [])]:
            try:
                ip_network(address)
            except ValueError:
                raise invalid("rules", f"not a network: {address}") from None
        if each["direction"] == "in" and not each.get("source_ips"):
            raise invalid("rules", "source_ips are needed")
        rules.append(
            {
                **{"direction": each["direction"], "protocol": each["protocol"], "port": each.get("port")},
                **{"source_ips": each.get("source_ips") or [], "destination_ips": each.get("destination_ips") or []},
                "description": each.get("description"),
            }
        )
    return rules


def _about_ssh(rule: Item) -> bool:
    if rule["direction"] != "in" or rule["protocol"] != "tcp":
        return False
    if rule["port"] == "any":
        return True
    first, _, last = str(rule["port"]).partition("-")
    return int(first) <= SSH_PORT <= int(last or first)
