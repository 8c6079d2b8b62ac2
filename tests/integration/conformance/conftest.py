"""Each test of the suite runs in a place of each type of executor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from places import PLACES, Place


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
