"""Many runs in containers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from containers import Docker
from fakes.scenarios import scenario
from processes import processes_with_text
from user import User
from waiting import until

COUNT = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_twenty_at_once(container_user: User, docker: Docker) -> None:
    """Twenty tasks that are started, followed and destroyed at once all succeed, and leave no container or process."""
    user = container_user
    names = [f"job-{number:02}" for number in range(COUNT)]
    for name in names:
        user.job(name, prompt=scenario("edit"), repo=".", executor="box", limits={"memory": "512MiB"})
    user.commit_all()

    with ThreadPoolExecutor(COUNT) as pool:
        shown = list(pool.map(lambda name: user.cli("up", name).stdout, names))

    assert all("turn 6:" in each for each in shown)
    assert len(user.api.sessions()) == COUNT
    for name in names:
        assert user.outputs(name)["status"] == "succeeded"
        assert user.git("show", f"coding-agent/{name}:note.txt") == "the second line\n"
    assert len(docker.of_project(user.project)) == COUNT

    with ThreadPoolExecutor(COUNT) as pool:
        list(pool.map(lambda name: user.cli("destroy", name, "--yes"), names))

    assert docker.left(user.project) == []
    until(lambda: processes_with_text(str(user.home)) == [])
