"""What an image holds, found without running anything of it: its platform, its C library, bash, Claude Code."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from docker.errors import NotFound
from docker.utils import parse_repository_tag

from coding_agent.errors import ConnectionBroken, ExecutorUnavailable
from coding_agent.executors.container_engine import API_LIMIT, Engine, answering
from coding_agent.paths import cache_dir

PULL_SAY_EVERY = 20_000_000  # bytes
_VERSION = 1  # of what is remembered of an image
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"amd64": "x64", "x86_64": "x64", "arm64": "arm64", "aarch64": "arm64"}
_LOADERS = {
    "x64": {"": ("/lib64/ld-linux-x86-64.so.2",), "-musl": ("/lib/ld-musl-x86_64.so.1",)},
    "arm64": {"": ("/lib/ld-linux-aarch64.so.1",), "-musl": ("/lib/ld-musl-aarch64.so.1",)},
}
NEEDED = {  # what the supervisor calls, and the package that has it
    **{"bash": "bash", "flock": "util-linux", "setsid": "util-linux", "tar": "tar", "grep": "grep"},
    **{"find": "findutils", "stat": "coreutils", "timeout": "coreutils"},
}


@dataclass(frozen=True)
class Facts:
    """What an image has."""

    id: str
    platform: str  # as Claude Code's packages are named: linux-x64, linux-x64-musl, linux-arm64, ...; "" unknown
    missing: tuple[str, ...]  # programs that every run needs
    claude: str | None  # where Claude Code is, when it is on the image's PATH
    folders: tuple[str, ...]  # of its PATH


def local(engine: Engine, name: str) -> str | None:
    """Return the id of the image that the engine has under that name; None where it has none."""
    try:
        with answering(engine.url, f"looking for the image {name}"):
            return str(engine.api.inspect_image(name)["Id"])
    except NotFound:
        return None


def pull(engine: Engine, name: str, say: Callable[[str], None]) -> str:
    """Get an image from its registry and return its id. Raises `ExecutorUnavailable` with the registry's reason."""
    doing = f"pulling the image {name}"
    say(doing)
    repository, tag = parse_repository_tag(name)
    layers: dict[str, int] = {}
    said = 0
    try:
        with answering(engine.url, doing):
            for line in engine.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if "error" in line:
                    raise _no_image(name, str(line["error"]))
                layers[str(line.get("id"))] = int((line.get("progressDetail") or {}).get("current") or 0)
                if sum(layers.values()) - said >= PULL_SAY_EVERY:
                    said = sum(layers.values())
                    say(f"{doing}: {said / 1e6:.0f} MB")
    except NotFound as error:
        raise _no_image(name, str(error.explanation)) from error
    except ConnectionBroken as error:
        # That the engine answers is known: it is the registry that does not.
        raise _no_image(name, error.message.removeprefix(f"{doing}: ")) from error
    found = local(engine, name)
    if found is None:
        raise _no_image(name, "it was pulled, and is not there")
    return found


def examine(engine: Engine, image: str) -> Facts:
    """Return what the image of that id holds; looked at once and remembered."""
    file = cache_dir() / "images" / f"{image.rpartition(':')[2]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if known.pop("version") == _VERSION:
            lists = {name: tuple(known[name]) for name in ("missing", "folders")}
            return Facts(**{**known, **lists})
    found = _look(engine, image)
    with contextlib.suppress(OSError):  # a folder that can't be written costs only time
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_text(json.dumps({**asdict(found), "version": _VERSION}), encoding="utf-8")
        part.replace(file)
    return found


def check(facts: Facts, name: str, *, agent: bool) -> None:
    """Raise `ExecutorUnavailable` for an image that no run can use, with everything that it lacks."""
    if facts.missing:
        packages = " ".join(dict.fromkeys(NEEDED[each] for each in facts.missing))
        raise ExecutorUnavailable(
            f"the image {name} lacks {', '.join(facts.missing)}, which every run needs",
            next_step=f"use an image that has them (Debian: `apt-get install {packages}`), "
            f"or make one: `coding-agent image build --from {name}`",
        )
    if agent and not facts.claude and not facts.platform:
        raise ExecutorUnavailable(
            f"the image {name} has neither Claude Code nor a C library for it (glibc or musl, x86-64 or ARM)",
            next_step="use an image of a usual Linux distribution, or one that has Claude Code on its PATH",
        )


@contextlib.contextmanager
def opened(engine: Engine, image: str) -> Iterator[str]:
    """Give a container of the image to look into, which goes with the block; `image` is an id.

    It is never started: nothing of the image runs.
    """
    with answering(engine.url, "looking at the image"):
        container = engine.api.create_container(
            image, entrypoint=["-"], command=[], network_disabled=True, labels={"coding-agent.look": "1"}
        )["Id"]
    try:
        yield container
    finally:
        with answering(engine.url, "looking at the image"), contextlib.suppress(NotFound):
            engine.api.remove_container(container, force=True, v=True)


def located(engine: Engine, container: str, names: Sequence[str], folders: Sequence[str]) -> Mapping[str, str | None]:
    """Return for each program the first of the folders that has it, as the whole path; None where none has."""
    return {name: next(_found(engine, container, name, folders), None) for name in names}


def leads_to(engine: Engine, container: str, path: str) -> str | None:
    """Return where a link leads; "" for what is no link, None where there is nothing."""
    answer = _head(engine, container, path)
    if answer.status_code != 200:
        return None
    target = str(json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"])).get("linkTarget") or "")
    return "" if target == path else target  # podman says the path itself where Docker says nothing


def content(engine: Engine, container: str, path: str) -> bytes:
    """Return what a plain file holds; nothing where there is none."""
    api = engine.api
    with answering(engine.url, f"reading {path} of the image"), contextlib.suppress(NotFound):
        # Not the library's own call: that one gives no way to close the answer.
        url = api._url("/containers/{0}/archive", container)
        answer = api._get(url, params={"path": path}, stream=True, headers={"Accept-Encoding": "identity"})
        with contextlib.closing(answer):
            api._raise_for_status(answer)
            with tarfile.open(fileobj=answer.raw, mode="r|") as archive:
                first = archive.next()
                file = archive.extractfile(first) if first is not None and first.isreg() else None
                return file.read() if file else b""
    return b""


def _look(engine: Engine, image: str) -> Facts:
    with answering(engine.url, "looking at the image"):
        said = engine.api.inspect_image(image)
    with opened(engine, image) as container:
        return _look_into(engine, container, said)


def _look_into(engine: Engine, container: str, said: Mapping[str, Any]) -> Facts:
    environment = dict(each.split("=", 1) for each in (said["Config"].get("Env") or ()) if "=" in each)
    folders = tuple(each for each in (environment.get("PATH") or _PATH).split(":") if each.startswith("/"))
    architecture = _ARCHITECTURES.get(said.get("Architecture", ""), "")
    libcs = _LOADERS.get(architecture, {}) if said.get("Os") == "linux" else {}
    libc = next(
        (each for each, files in libcs.items() if any(_exists(engine, container, file) for file in files)), None
    )
    where = located(engine, container, (*NEEDED, "claude"), folders)
    return Facts(
        id=said["Id"],
        platform="" if libc is None else f"linux-{architecture}{libc}",
        missing=tuple(name for name in NEEDED if where[name] is None),
        claude=where["claude"],
        folders=folders,
    )


def _found(engine: Engine, container: str, name: str, folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        if _exists(engine, container, f"{folder.rstrip('/')}/{name}"):
            yield f"{folder.rstrip('/')}/{name}"


def _exists(engine: Engine, container: str, path: str) -> bool:
    return bool(_head(engine, container, path).status_code == 200)


def _head(engine: Engine, container: str, path: str) -> Any:
    api = engine.api
    with answering(engine.url, "looking at the image"):
        return api.head(api._url("/containers/{0}/archive", container), params={"path": path}, timeout=API_LIMIT)


def _no_image(name: str, why: str) -> ExecutorUnavailable:
    reason = re.sub(r"\s+", " ", why)[:300]
    return ExecutorUnavailable(
        f"there is no image {name} here, and it can't be pulled: {reason}",
        next_step=f"correct the executor's `image`, log in to its registry, or make it: `docker build -t {name} .`, "
        "`coding-agent image build`",
    )
