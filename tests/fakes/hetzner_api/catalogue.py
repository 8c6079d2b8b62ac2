"""What the fake cloud sells: types of servers and their prices, places, system images. Names and sizes are real."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

Item = dict[str, Any]

VAT = Decimal("19.00")  # percent
CREATED = "2024-01-01T00:00:00+00:00"
_WITHDRAWN = {"announced": "2025-01-01T00:00:00+00:00", "unavailable_after": "2025-06-01T00:00:00+00:00"}
_HOURS = 730  # in a month, as prices have it


def amount(net: str | Decimal) -> Item:
    """Return an amount of money, without and with the value added tax."""
    return {"net": f"{Decimal(net):.10f}", "gross": f"{Decimal(net) * (100 + VAT) / 100:.10f}"}


def _location(number: int, name: str, country: str, city: str, zone: str, at: tuple[float, float]) -> Item:
    return {
        **{"id": number, "name": name, "description": f"{city} DC Park 1", "country": country, "city": city},
        **{"latitude": at[0], "longitude": at[1], "network_zone": zone},
    }


LOCATIONS = [
    _location(1, "fsn1", "DE", "Falkenstein", "eu-central", (50.47612, 12.370071)),
    _location(2, "nbg1", "DE", "Nuremberg", "eu-central", (49.452102, 11.076665)),
    _location(3, "hel1", "FI", "Helsinki", "eu-central", (60.169855, 24.938379)),
    _location(4, "ash", "US", "Ashburn, VA", "us-east", (39.045821, -77.487073)),
]
# The number and name of the datacenter in each.
DATACENTERS = {"fsn1": (4, "fsn1-dc14"), "nbg1": (2, "nbg1-dc3"), "hel1": (3, "hel1-dc2"), "ash": (5, "ash-dc1")}
_EUROPE = ("fsn1", "nbg1", "hel1")


def _type(
    number: int,
    name: str,
    cores: int,
    memory: float,
    disk: int,
    hourly: str,
    *,
    where: tuple[str, ...] = _EUROPE,
    architecture: str = "x86",
    cpu: str = "shared",
    withdrawn: bool = False,
) -> Item:
    deprecation = _WITHDRAWN if withdrawn else None
    prices = [
        {
            "location": place,
            "price_hourly": amount(hourly),
            "price_monthly": amount(Decimal(hourly) * _HOURS),
            "included_traffic": 20 << 40,
            "price_per_tb_traffic": amount("1.0"),
        }
        for place in where
    ]
    locations = [
        # As Hetzner's own libraries demand, though the description does not know the last two.
        {
            **{"id": each["id"], "name": each["name"], "deprecation": deprecation},
            **{"available": True, "recommended": False},
        }
        for each in LOCATIONS
        if each["name"] in where
    ]
    return {
        **{"id": number, "name": name, "description": name.upper(), "category": f"{cpu.title()} vCPU"},
        **{"cores": cores, "memory": memory, "disk": disk, "cpu_type": cpu, "architecture": architecture},
        **{"storage_type": "local", "deprecated": withdrawn, "deprecation": deprecation},
        **{"prices": prices, "locations": locations},
    }


SERVER_TYPES = [
    _type(45, "cax11", 2, 4.0, 40, "0.0053", architecture="arm"),
    _type(97, "ccx13", 2, 8.0, 80, "0.0192", where=(*_EUROPE, "ash"), cpu="dedicated"),
    _type(104, "cx22", 2, 4.0, 40, "0.0060", withdrawn=True),
    _type(114, "cx23", 2, 4.0, 40, "0.0048"),
    _type(115, "cx33", 4, 8.0, 80, "0.0080"),
    _type(116, "cx43", 8, 16.0, 160, "0.0144"),
    _type(108, "cpx11", 2, 2.0, 40, "0.0072", where=("ash",)),
    _type(110, "cpx22", 2, 4.0, 80, "0.0096"),
]


def _image(number: int, flavor: str, version: str, *, architecture: str = "x86", outdated: bool = False) -> Item:
    return {
        **{"id": number, "type": "system", "status": "available", "name": f"{flavor}-{version}"},
        **{"description": f"{flavor.title()} {version}", "image_size": None, "disk_size": 5, "created": CREATED},
        **{"created_from": None, "bound_to": None, "os_flavor": flavor, "os_version": version, "rapid_deploy": True},
        **{"architecture": architecture, "deprecated": CREATED if outdated else None, "deleted": None, "labels": {}},
        "protection": {"delete": False},
    }


_SYSTEMS = (("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04"), ("fedora", "42"))
IMAGES = [
    *(_image(100 + index, *system) for index, system in enumerate(_SYSTEMS)),
    *(_image(200 + index, *system, architecture="arm") for index, system in enumerate(_SYSTEMS)),
    _image(300, "debian", "11", outdated=True),
]


def pricing() -> Item:
    """Return the answer of /pricing."""
    places = [each["name"] for each in LOCATIONS]

    def address(kind: str, hourly: str) -> Item:
        prices = [
            {
                "location": each,
                "price_hourly": amount(hourly),
                "price_monthly": amount(Decimal(hourly) * _HOURS),
            }
            for each in places
        ]
        return {"type": kind, "prices": prices}

    floating = [{"location": each, "price_monthly": amount("3.0")} for each in places]
    return {
        "currency": "EUR",
        "vat_rate": f"{VAT:.10f}",
        "image": {"price_per_gb_month": amount("0.011")},
        "floating_ip": {"price_monthly": amount("3.0")},
        "floating_ips": [{"type": kind, "prices": floating} for kind in ("ipv4", "ipv6")],
        "primary_ips": [address("ipv4", "0.0008"), address("ipv6", "0")],
        "server_backup": {"percentage": "20.0000000000"},
        "server_types": [{key: each[key] for key in ("id", "name", "prices")} for each in SERVER_TYPES],
        "load_balancer_types": [],
        "volume": {"price_per_gb_month": amount("0.044")},
    }
