"""Each test of the suite runs in a place of each type of executor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.hetzner_api import HetznerApi
from machines.cloud_server import CloudServers
from places import PLACES, Place
from renter import RentedServer, rented_server


@pytest.fixture(scope="session", name="rented_server")
def _rented_server(cloud_servers: CloudServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RentedServer]:
    """Return a server of the fake cloud, as ours are ordered; all tests of this session share it."""
    with HetznerApi(cloud_servers) as api:
        yield rented_server(api, tmp_path_factory.mktemp("rented"))


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
        with make(tmp_path / "other", request) as other:
            yield one, other
