"""What tests share: a home of their own, a scripted Messages API, the real Claude Code, a look at processes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shared_cache
from coding_agent.work_queue import embedded
from containers import Docker, base_image
from fakes.hetzner_api import HetznerApi
from fakes.messages_api import MessagesApi
from machines import ssh_host as ssh_hosts
from machines.cloud_server import CloudServers
from machines.machine import Machines
from machines.qemu_server import QemuServers
from processes import end_processes_of, processes_with_text
from testbed import toolchain
from testbed.needs import CONTAINER_ENGINE, HCLOUD, MKE2FS, NETWORK_NAMESPACES, QEMU, requires
from testbed.table import Table
from user import User, make_home, make_user

# The files that have a test of a minute or more, the longest ones first.
_LONGEST = (
    *("test_new_machine", "test_virtual_machines", "test_empty_container", "test_wheel", "test_hetzner_interrupted"),
    *("test_hetzner", "test_queue_database", "test_doors", "test_demo", "test_container_errors", "test_ssh"),
    *("test_queue", "test_examples", "test_ssh_connection", "test_stack", "test_dispatch", "test_gpus", "test_resume"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Add the table of what was not run."""
    config.pluginmanager.register(Table())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files with the longest tests begin: what begins last and is long, the other workers wait for."""
    first = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a home folder of this test's own; nothing of the user's environment is left that could matter.

    What a test leaves running there is ended after it; that nothing is left is for the tests of that to assert.
    """
    folder = make_home(tmp_path / "home", monkeypatch)
    yield folder
    end_processes_of(folder)
    if embedded.folder().is_dir():
        shutil.rmtree(embedded.folder())


@pytest.fixture
def messages_api() -> Iterator[MessagesApi]:
    """Run a scripted Messages API for one test."""
    with MessagesApi() as api:
        yield api


@pytest.fixture(scope="session")
def claude_program() -> Path:
    """Return the real Claude Code program: $CODING_AGENT_TEST_CLAUDE, else the one the project itself would use."""
    return toolchain.claude()


@pytest.fixture(scope="session")
def engine_folder() -> Path:
    """Return the folder of the real engine, unpacked once for all tests of this machine."""
    return toolchain.engine()


@pytest.fixture
def user(home: Path, tmp_path: Path, messages_api: MessagesApi, claude_program: Path, engine_folder: Path) -> User:
    """Return a user with a project of his own, not yet a git repository."""
    return make_user(home, tmp_path / "project", messages_api, claude_program, engine_folder)


@pytest.fixture(scope="session")
def docker_plugin(engine_folder: Path) -> Path:
    """Return the folder of the engine's plugins, with the one for containers, unpacked once for all tests."""
    return toolchain.plugins(("docker",), engine_folder)


@pytest.fixture(scope="session")
def command_plugin(engine_folder: Path) -> Path:
    """Return the folder of the engine's plugins, with the one for hosts, unpacked once for all tests."""
    return toolchain.plugins(("command",), engine_folder)


@pytest.fixture(scope="session")
def hcloud_plugin(engine_folder: Path) -> Path:
    """Return the folder of the engine's plugins, with the one for Hetzner Cloud, unpacked once for all tests."""
    return toolchain.plugins(("hcloud",), engine_folder)


@pytest.fixture(scope="session")
def server_plugins(hcloud_plugin: Path, command_plugin: Path) -> Path:
    """Return the folder of the engine's plugins, with those that a server needs."""
    assert hcloud_plugin == command_plugin
    return hcloud_plugin


@pytest.fixture
def container_user(user: User, docker: Docker, container_image: str, docker_plugin: Path) -> Iterator[User]:
    """Return a user with an executor `box` that makes a container for each run, and what it needs in his caches.

    What a test leaves there is removed after it; that nothing is left is for the tests of that to assert.
    """
    (user.home / ".pulumi" / "plugins").symlink_to(docker_plugin)
    shared_cache.known_program(user.home)
    user.executors({"name": "box", "type": "container", "image": container_image, "network": "host"})
    yield user
    docker.remove_all_of(user.project)


@pytest.fixture
def processes_with() -> Callable[[str], list[int]]:
    """Return a listing, from /proc and nothing of the project, of processes whose environment or argv has a text."""
    return processes_with_text


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Return the container engine of this machine."""
    requires(CONTAINER_ENGINE)
    return Docker()


@pytest.fixture(scope="session")
def container_image(docker: Docker) -> str:
    """Return the image that tests run in."""
    return base_image(docker)


@pytest.fixture(scope="session")
def ssh_host(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh_hosts.SshHost]:
    """Return a host to log in to, with users of every kind; all tests of this session share it."""
    with ssh_hosts.ssh_host(docker, tmp_path_factory.mktemp("ssh")) as host:
        yield host


@pytest.fixture
def crib(user: User, ssh_host: ssh_hosts.SshHost, command_plugin: Path) -> Iterator[User]:
    """Return a user with an executor `crib`: a host that he knows, and a key to log in with.

    What a test leaves there is removed after it; that nothing is left is for the tests of that to assert.
    """
    (user.home / ".pulumi" / "plugins").symlink_to(command_plugin)
    user.executors(ssh_host.executor())
    yield user
    ssh_host.run("bash", "-c", "pkill -KILL -u plain; rm -rf /home/plain/.coding-agent || :")


@pytest.fixture(scope="session")
def cloud_servers(docker: Docker, claude_program: Path) -> Iterator[CloudServers]:
    """Return what makes servers of the fake cloud, as containers that have Claude Code."""
    requires(NETWORK_NAMESPACES, HCLOUD)
    servers = CloudServers(docker, claude_program)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def virtual_machines() -> Iterator[QemuServers]:
    """Return what makes servers of the fake cloud, as virtual machines."""
    requires(NETWORK_NAMESPACES, QEMU, MKE2FS)
    servers = QemuServers()
    yield servers
    servers.close()


@pytest.fixture
def hetzner_api(cloud_servers: CloudServers) -> Iterator[HetznerApi]:
    """Run a fake of Hetzner's cloud for one test; at its end nothing may be left there, as others see it.

    A test that leaves something on purpose says so: `left_on_purpose`.
    """
    with _cloud(cloud_servers) as api:
        yield api


@pytest.fixture
def hetzner_api_on_vms(virtual_machines: QemuServers) -> Iterator[HetznerApi]:
    """Run the same with virtual machines for servers."""
    with _cloud(virtual_machines) as api:
        yield api


@contextlib.contextmanager
def _cloud(machines: Machines) -> Iterator[HetznerApi]:
    with HetznerApi(machines) as api:
        yield api
        api.check()
