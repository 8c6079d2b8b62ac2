"""An image with musl and without glibc: what it is taken for, and that the agent's program for it really works."""

from __future__ import annotations

import fcntl
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import shared_cache
from coding_agent import claude
from coding_agent.executors import container_image
from coding_agent.executors.container_engine import reach
from containers import BASE, Docker
from fakes.scenarios import scenario
from testbed.needs import ROOT, fetched, program, requires
from user import User

pytestmark = [pytest.mark.slow]

PLATFORM = "linux-x64-musl"
_LIMIT = 300.0  # seconds for apt-get
_PACKAGES = ("musl", "bash-static")
# Alpine itself is not to be had from Debian, whose GNU programs need glibc. So glibc goes where nobody looks for it,
# and each program into a wrapper that says where it is: what else is started finds musl alone.
_HIDE_GLIBC = r"""
set -e
cp -a /usr/lib/x86_64-linux-gnu /glibc/lib; cp /lib64/ld-linux-x86-64.so.2 /glibc/ld.so; cp /usr/bin/mv /glibc/mv
for file in /usr/bin/* /usr/sbin/*; do
  name=${file##*/}
  [[ -f $file && ! -L $file && $name != bash* ]] || continue
  IFS= read -r -N 4 magic <"$file" || continue
  [[ $magic == $'\x7fELF' ]] || continue
  /glibc/mv "$file" "/glibc/bin/$name"
done
run=(/glibc/ld.so --library-path /glibc/lib) made=()
for file in /glibc/bin/*; do
  name=${file##*/}
  printf '#!/bin/bash\nexec /glibc/ld.so --library-path /glibc/lib --argv0 %s /glibc/bin/%s "$@"\n' "$name" "$name" \
    >"/usr/bin/$name"
  made+=("/usr/bin/$name")
done
"${run[@]}" /glibc/bin/chmod 755 "${made[@]}"
"${run[@]}" /glibc/bin/cp /usr/bin/bash-static /usr/bin/bash
"${run[@]}" /glibc/bin/cp --remove-destination /usr/bin/git /usr/lib/git-core/git
"${run[@]}" /glibc/bin/rm -rf /lib64/ld-linux-x86-64.so.2 /usr/lib/x86_64-linux-gnu
"""


@dataclass(frozen=True)
class Images:
    """Images with musl alone: one with bash and nothing else, and one with all that a run needs."""

    bare: str
    full: str


@pytest.fixture(scope="module")
def musl(docker: Docker, container_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Make the images; they are gone after the module."""
    mark = secrets.token_hex(6)
    made = Images(f"coding-agent-test/musl-{mark}:bare", f"coding-agent-test/musl-{mark}:full")
    folder = tmp_path_factory.mktemp("musl")
    files = folder / "files"
    for archive in _packages():
        subprocess.run(["dpkg-deb", "-x", str(archive), str(files)], check=True)
    (files / "bin").rename(files / "usr" / "static")
    (folder / "hide.sh").write_text(_HIDE_GLIBC)
    (folder / "bare").write_text("FROM scratch\nCOPY files/lib /lib\nCOPY files/usr/static/bash-static /bin/bash\n")
    (folder / "full").write_text(
        f"FROM {BASE}\nCOPY files/lib /usr/lib\nCOPY files/usr/static/bash-static /usr/bin/bash-static\n"
        'COPY hide.sh /hide.sh\nRUN mkdir -p /glibc/bin\nRUN ["/usr/bin/bash-static", "/hide.sh"]\n'
    )
    for name, file in ((made.bare, "bare"), (made.full, "full")):
        docker("build", "-q", "--network", "none", "-t", name, "-f", str(folder / file), str(folder))
    yield made
    docker.remove([made.bare, made.full])


def _packages() -> list[Path]:
    folder = shared_cache.FOLDER / "musl-packages"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in _PACKAGES:
            if not list(folder.glob(f"{name}_*.deb")):
                requires(ROOT, program("apt-get", "apt"))
                # A new machine has no list of packages, an old one a list of packages that are gone.
                fetched(["apt-get", "-q", "update"], limit=_LIMIT)
                # As another user apt would have to be allowed into this folder.
                argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name]
                fetched(argv, limit=_LIMIT, cwd=folder)
        return [archive for name in _PACKAGES for archive in folder.glob(f"{name}_*.deb")]


@pytest.fixture(scope="module")
def musl_claude() -> Path:
    """Return the real Claude Code program for musl, fetched once for all tests of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache.FOLDER))
        return claude.for_platform(PLATFORM, None, print)


def test_image_is_taken_for_musl(musl: Images, home: Path) -> None:
    """An image whose only loader is musl's gets the program for musl, and is told everything that it lacks at once."""
    engine = reach({})
    try:
        bare, full = (
            container_image.examine(engine, str(container_image.local(engine, name))) for name in (musl.bare, musl.full)
        )
    finally:
        engine.close()
    assert (bare.platform, full.platform) == (PLATFORM, PLATFORM)
    assert bare.missing == ("flock", "setsid", "tar", "grep", "find", "stat", "timeout")
    assert full.missing == ()


def test_program_for_musl_starts(musl: Images, musl_claude: Path, docker: Docker) -> None:
    """The program that is fetched for musl starts where there is musl's C library and nothing else."""
    said = docker(
        *("run", "--rm", "--network", "none", "-v", f"{musl_claude}:/claude:ro"),
        *("--entrypoint", "/claude", musl.bare, "--version"),
    )
    assert said == f"{claude.PINNED_VERSION} (Claude Code)"


def test_agent_in_a_musl_image(musl: Images, musl_claude: Path, container_user: User, docker: Docker) -> None:
    """An agent works on a repository in an image with musl, by the program that is mounted for it."""
    user = container_user
    user.executors({"name": "box", "type": "container", "image": musl.full, "network": "host"})
    user.job(prompt=scenario("edit"), repo=".", executor="box")
    user.commit_all()

    user.cli("up", "job")

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["num_turns"]) == ("succeeded", 6)
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    mounts = docker.inspect(docker.of_project(user.project)[0])["Mounts"]
    sources = [Path(each["Source"]).resolve() for each in mounts if each["Type"] == "bind"]
    assert sources == [musl_claude.resolve()]
    user.cli("destroy", "job")
    assert docker.left(user.project) == []
