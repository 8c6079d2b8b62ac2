"""Each test of the suite runs in a place of each type of executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import places
from containers import Docker
from fakes.hetzner_api import HetznerApi
from machines.cloud_server import CloudServers
from places import PLACES, Place
from renter import RentedServer, rented_server


@pytest.fixture(scope="session", name="rented_server")
def _rented_server(cloud_servers: CloudServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RentedServer]:
    """Return a server of the fake cloud, as ours are ordered; all tests of this session share it."""
    with HetznerApi(cloud_servers) as api:
        yield rented_server(api, tmp_path_factory.mktemp("rented"))


@pytest.fixture(scope="session", name="made_container")
def _made_container(docker: Docker, container_image: str) -> Iterator[Mapping[str, Any]]:
    """Return a container as ours are declared; all tests of this session share it, in folders of their own."""
    with places.made_container(docker, container_image) as target:
        yield target


@pytest.fixture(scope="session", name="another_container")
def _another_container(docker: Docker, container_image: str) -> Iterator[Mapping[str, Any]]:
    """Return another such container."""
    with places.made_container(docker, container_image) as target:
        yield target


@pytest.fixture(scope="session", name="existing_container")
def _existing_container(docker: Docker, container_image: str) -> Iterator[Mapping[str, Any]]:
    """Return a container that is none of ours; all tests of this session share it."""
    with places.existing_container(docker, container_image) as target:
        yield target


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Place]:
    """Return a place of each type of executor in turn."""
    with PLACES[request.param](tmp_path / "place", request) as place:
        yield place


@pytest.fixture(params=PLACES)
def two_places(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    """Return two places as two runs of one executor get them: the same twice, where none is made for a run."""
    make = PLACES[request.param]
    with make(tmp_path / "place", request) as one:
        if request.param != "container":
            yield one, one
            return
        with places.in_container(request.getfixturevalue("another_container")) as other:
            yield one, other
