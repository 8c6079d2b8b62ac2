"""An agent's image: a base, Claude Code at an exact version, a user of its own and what every run needs.

Nothing runs in the image unless the base lacks programs. It is put together here, byte for byte: a layer without times,
a configuration without times. So the same base and the same choices give the same image, on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import tarfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from docker.errors import NotFound
from docker.utils import match_tag, parse_repository_tag

from coding_agent import claude
from coding_agent.errors import ConnectionBroken, ExecutorUnavailable, InvalidInput
from coding_agent.executors import container_image
from coding_agent.executors.container_engine import Engine, answering
from coding_agent.toolchain.installation import Progress, tail

PROGRAM = "/usr/local/bin/claude"
PACKAGES = "coding-agent-packages"  # the images of bases with what they lacked: made once, then used again
SILENCE = 15 * 60  # seconds without a word of the engine, while it unpacks or installs
_SAY_EVERY = 2.0  # seconds
_END_LIMIT = 15.0  # seconds until an interrupted build has ended
_POLL = 0.2  # seconds
_KEPT_TEXT = 4000  # characters of what an installation said last
_PIECE = 1 << 20  # bytes
_BLOCK = 512  # bytes, of a tar archive
_EPOCH = "1970-01-01T00:00:00Z"
_NEEDED = {**container_image.NEEDED, "git": "git"}
_MANAGERS = {  # where the base has it, and how it installs
    "/usr/bin/apt-get": (
        "export DEBIAN_FRONTEND=noninteractive; apt-get update -o APT::Update::Error-Mode=any && "
        "apt-get install -y --no-install-recommends {} && "
        "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log"
    ),
    "/sbin/apk": "apk add --no-cache {}",
}
# What of a base's configuration an image made from it keeps.
_KEPT = (
    *("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal"),
    *("StopTimeout", "Volumes", "WorkingDir"),
)
# What the builder says itself, beside what goes wrong in the container.
_OF_BUILDER = re.compile(r"\s*$|Step \d|STEP \d|\s*-+> |Removing intermediate |The command ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_INDEXES = ("manifest.json", "repositories", "index.json", "oci-layout")  # of an image's archive


@dataclass(frozen=True)
class Wanted:
    """What is to be made. Raises `InvalidInput` for what can't be."""

    base: str
    tag: str  # "": coding-agent, at the version
    user: str
    uid: int
    version: str  # of Claude Code

    def __post_init__(self) -> None:
        """Check the names: they get into paths and into files that are read line by line."""
        claude.must_be_exact(self.version)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*", self.base) or ".." in self.base:
            raise InvalidInput(
                f"{self.base!r} is no name of an image", next_step="name one such as debian:bookworm-slim"
            )
        if not match_tag(self.name):
            raise InvalidInput(f"{self.tag!r} is no name for an image", next_step="name it like coding-agent:mine")
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", self.user) or self.user == "root":
            raise InvalidInput(
                f"{self.user!r} is no name for a user who has no rights",
                next_step="use small letters, digits, - and _, at most 32",
            )

    @property
    def name(self) -> str:
        """The image's name, with its tag."""
        repository, tag = parse_repository_tag(self.tag or f"coding-agent:{self.version}")
        return f"{repository}:{tag or 'latest'}"

    @property
    def home(self) -> str:
        """The user's home."""
        return f"/home/{self.user}"


@dataclass(frozen=True)
class Built:
    """An image that was made."""

    image: str
    id: str
    claude: str  # the version
    base: str
    size: int  # bytes


@dataclass(frozen=True)
class _Step:
    """What installs the programs that a base lacks."""

    base: str  # as the user calls it
    id: str
    lacking: Sequence[str]
    manager: str
    network: str | None

    @property
    def packages(self) -> Sequence[str]:
        """What is installed; without certificates git would be of little use."""
        return list(dict.fromkeys([*(_NEEDED[each] for each in self.lacking), "ca-certificates"]))

    @property
    def dockerfile(self) -> str:
        """The build, whose only text is the tables' and the base's id."""
        install = json.dumps(["/bin/sh", "-c", _MANAGERS[self.manager].format(" ".join(self.packages))])
        return f"FROM {self.id}\nUSER 0\nRUN {install}\n"

    @property
    def name(self) -> str:
        """The name of the image it makes."""
        return f"{PACKAGES}:{hashlib.sha256(self.dockerfile.encode()).hexdigest()[:12]}"

    def failed(self, why: str) -> ExecutorUnavailable:
        """Return the error that says that it did not work."""
        return ExecutorUnavailable(
            f"{' '.join(self.packages)} can't be installed in the image {self.base}: {why}",
            next_step="see that containers reach the distribution's packages (--network host uses this machine's "
            "network), or name a base that has them with --from",
        )


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive; it has no times, and its owners no names."""

    name: str
    size: int = 0  # bytes
    read: Callable[[], Iterable[bytes]] | None = None  # None: a folder
    mode: int = 0o755
    owner: int = 0
    group: int = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes in the archive."""
        info = tarfile.TarInfo(self.name)
        info.type = tarfile.DIRTYPE if self.read is None else tarfile.REGTYPE
        info.size, info.mode, info.uid, info.gid = self.size, self.mode, self.owner, self.group
        yield info.tobuf(tarfile.GNU_FORMAT)
        if self.read is not None:
            yield from self.read()
        yield _padding(self.size)


def build(engine: Engine, wanted: Wanted, say: Progress, *, network: str | None = None) -> Built:
    """Make the image and return what it is; where the engine has the very same already, it only gets its name.

    `network` is the engine's name of the one that packages are fetched through (default: the engine's usual).
    Raises `ExecutorUnavailable` for a base that can't be used, `ClaudeMissing`, `ConnectionBroken`, `InvalidInput`
    where the base has another user of that name or number. What was made on the way is gone then.
    """
    base = _base(engine, wanted.base, say)
    facts = container_image.examine(engine, base)
    if not facts.platform:
        raise ExecutorUnavailable(
            f"the image {wanted.base} has no C library for Claude Code (glibc or musl, x86-64 or ARM)",
            next_step="name an image of a usual Linux distribution with --from",
        )
    lacking, manager = _lacking(engine, base, facts.folders)
    if lacking and not manager:
        raise ExecutorUnavailable(
            f"the image {wanted.base} lacks {', '.join(lacking)}, and has neither apt-get nor apk to install them with",
            next_step="name a base that has them, or one of Debian, Ubuntu or Alpine, with --from",
        )
    program = claude.for_platform(facts.platform, wanted.version, say)
    with contextlib.ExitStack() as undo:
        prepared = base
        if lacking:
            step = _Step(wanted.base, base, lacking, manager, network)
            prepared = _installed(engine, step, say, undo)
            still, _ = _lacking(engine, prepared, facts.folders)
            if still:
                raise step.failed(f"{', '.join(still)} is not there afterwards")
        layer = _layer(engine, prepared, wanted, program)
        image = _put_together(engine, wanted, base, prepared, facts, layer, say)
        undo.pop_all()
    with answering(engine.url, f"looking at the image {wanted.name}"):
        size = int(engine.api.inspect_image(image)["Size"])
    return Built(wanted.name, image, wanted.version, wanted.base, size)


def _base(engine: Engine, name: str, say: Progress) -> str:
    found = container_image.local(engine, name)
    if found is not None:
        return found
    try:
        return container_image.pull(engine, name, say)
    except ExecutorUnavailable as error:
        raise ExecutorUnavailable(
            error.message, next_step="name one that is here or can be pulled with --from, or log in to its registry"
        ) from error


def _lacking(engine: Engine, image: str, folders: Sequence[str]) -> tuple[Sequence[str], str]:
    """Return the programs that the image lacks, and the one that could install them ("" where there is none)."""
    with container_image.opened(engine, image) as container:
        manager = next(
            (each for each in _MANAGERS if container_image.leads_to(engine, container, each) is not None), ""
        )
        where = container_image.located(engine, container, tuple(_NEEDED), folders)
        lacking = [
            program
            for program, path in where.items()
            # Busybox has the names, and not all that the supervisor asks of them.
            if path is None or (container_image.leads_to(engine, container, path) or "").endswith("busybox")
        ]
    return lacking, manager


def _installed(engine: Engine, step: _Step, say: Progress, undo: contextlib.ExitStack) -> str:
    """Return the id of the base with what it lacked, which is made once; `undo` learns how to remove it again."""
    if found := container_image.local(engine, step.name):
        say(f"{' '.join(step.packages)}: installed before, as {step.name}")
        return found
    doing = f"installing {' '.join(step.packages)} with {PurePosixPath(step.manager).name}"
    say(doing)
    before = _images(engine)
    heard, parts = "", set[str]()
    tell = _now_and_then(say)
    undo.callback(_remove, engine, [step.name])
    try:
        with answering(engine.url, doing), contextlib.closing(_building(engine, step)) as lines:
            for line in lines:
                text = _COLOUR.sub("", str(line.get("stream") or line.get("error") or ""))
                parts.update(re.findall(r"^ ?-+> ([0-9a-f]{10,64})$", text.rstrip()))
                heard = heard[-_KEPT_TEXT:] + text  # the pieces end anywhere in a line
                if "error" in line:
                    raise step.failed(_complaint(heard))  # noqa: TRY301 - cleaned up below
                tell(f"{doing}: {tail(heard.rpartition(chr(10))[0], 1)[:100]}")
    except BaseException:
        # What the builder keeps of the lines that went well.
        new = _images(engine) - before
        _remove(engine, [each for each in new if any(each.removeprefix("sha256:").startswith(part) for part in parts)])
        raise
    found = container_image.local(engine, step.name)
    if found is None:
        raise step.failed(_complaint(heard))
    return found


def _complaint(heard: str) -> str:
    """Return the end of what was said, without the builder's own words where there are others."""
    lines = [each for each in heard.splitlines() if not _OF_BUILDER.match(each)]
    return tail("\n".join(lines)) or tail(heard) or "the engine does not say why"


def _building(engine: Engine, step: _Step) -> Generator[Mapping[str, Any], None, None]:
    yield from engine.api.build(
        fileobj=io.BytesIO(step.dockerfile.encode()),
        tag=step.name,
        rm=True,
        forcerm=True,
        decode=True,
        network_mode=step.network,
        timeout=SILENCE,
    )


def _images(engine: Engine) -> set[str]:
    with answering(engine.url, "listing images"):
        return {str(each["Id"]) for each in engine.api.images(all=True)}


def _remove(engine: Engine, images: Iterable[str]) -> None:
    deadline = time.monotonic() + _END_LIMIT
    for image in images:
        with contextlib.suppress(NotFound):
            while True:
                try:
                    with answering(engine.url, f"removing the image {image}"):
                        engine.api.remove_image(image)
                except ConnectionBroken:  # a build that was interrupted still holds it
                    if time.monotonic() > deadline:
                        break
                    time.sleep(_POLL)
                else:
                    break


def _layer(engine: Engine, image: str, wanted: Wanted, program: Path) -> Sequence[_Entry]:
    """Return what the image gets: the program, the user, and the folders above them, which would be closed else."""
    with container_image.opened(engine, image) as container:
        folders = ("/etc", "/home", "/usr", "/usr/local", "/usr/local/bin")
        for path in (*folders, wanted.home, "/etc/passwd", "/etc/group"):
            if container_image.leads_to(engine, container, path):
                raise ExecutorUnavailable(
                    f"{path} of the image {wanted.base} is a link", next_step="name another base with --from"
                )
        users, groups = (
            container_image.content(engine, container, f"/etc/{name}").decode("utf-8", "surrogateescape")
            for name in ("passwd", "group")
        )
    users, groups, group = _with_user(users, groups, wanted)
    entries = [
        *(_Entry(path[1:]) for path in folders),
        _data("etc/passwd", users.encode("utf-8", "surrogateescape")),
        _data("etc/group", groups.encode("utf-8", "surrogateescape")),
        _Entry(wanted.home[1:], owner=wanted.uid, group=group),
        _Entry(PROGRAM[1:], program.stat().st_size, lambda: _read(program)),
    ]
    return sorted(entries, key=lambda each: each.name)


def _with_user(users: str, groups: str, wanted: Wanted) -> tuple[str, str, int]:
    """Return /etc/passwd and /etc/group with the user, and the number of his group.

    Raises `InvalidInput` where the name or the number is another user's.
    """
    for line in users.split("\n"):
        name, _, uid, group, _, home, *_ = [*line.split(":"), *[""] * 6]
        if (name, uid, home) == (wanted.user, str(wanted.uid), wanted.home) and group.isdecimal():
            return users, groups, int(group)
        if name == wanted.user or uid == str(wanted.uid):
            raise InvalidInput(
                f"the image {wanted.base} has the user {name} already, with the uid {uid} and the home {home}",
                next_step="choose others with --user and --uid, or this one, if its home is /home/NAME",
            )
    known = {name: gid for name, _, gid, *_ in (f"{line}:::".split(":") for line in groups.split("\n"))}
    group = known.get(wanted.user, str(wanted.uid))
    if not group.isdecimal():
        raise InvalidInput(f"the group {wanted.user} of the image {wanted.base} has no number", next_step="see --user")
    if group not in known.values():
        groups = _and_line(groups, f"{wanted.user}:x:{group}:")
    return (
        _and_line(users, f"{wanted.user}:x:{wanted.uid}:{group}::{wanted.home}:/bin/bash"),
        groups,
        int(group),
    )


def _and_line(text: str, line: str) -> str:
    return "\n".join([*filter(None, text.split("\n")), line, ""])


def _put_together(
    engine: Engine,
    wanted: Wanted,
    base: str,
    prepared: str,
    facts: container_image.Facts,
    layer: Sequence[_Entry],
    say: Progress,
) -> str:
    """Give the engine the image `prepared` with the layer, under the wanted name; return its id."""
    with answering(engine.url, "looking at the base"):
        said, below = engine.api.inspect_image(base), engine.api.inspect_image(prepared)["RootFS"]["Layers"]
    say("putting the image together")
    digest = hashlib.sha256()
    for piece in _archive(layer):
        digest.update(piece)
    layers = [*below, f"sha256:{digest.hexdigest()}"]
    config = json.dumps(_config(said, wanted, facts, layers), sort_keys=True, separators=(",", ":")).encode()
    image = hashlib.sha256(config).hexdigest()
    if container_image.local(engine, f"sha256:{image}"):
        with answering(engine.url, f"naming the image {wanted.name}"):
            engine.api.tag(f"sha256:{image}", *parse_repository_tag(wanted.name))
        return f"sha256:{image}"
    top = _Entry("agent/layer.tar", _size(layer), lambda: _archive(layer), 0o644)

    def archive(*, whole: bool) -> Iterator[bytes]:
        paths = [f"{each.partition(':')[2]}/layer.tar" for each in below]
        if whole:
            paths = yield from _layers_of(engine, prepared)
        yield from top.pieces()
        manifest = [{"Config": f"{image}.json", "RepoTags": [wanted.name], "Layers": [*paths, top.name]}]
        yield from _data(f"{image}.json", config).pieces()
        yield from _archive([_data("manifest.json", json.dumps(manifest).encode())])

    # An engine that has the base's layers needs not be sent them, but for some that read all that is named.
    for whole in (True,) if engine.podman else (False, True):
        try:
            _load(engine, archive(whole=whole), wanted.name, say)
        except ExecutorUnavailable:
            if whole:
                raise
        else:
            break
    found = container_image.local(engine, wanted.name)
    if found is None:
        raise ExecutorUnavailable(f"the engine took the image {wanted.name}, and has it not")
    return found


def _config(
    said: Mapping[str, Any], wanted: Wanted, facts: container_image.Facts, layers: Sequence[str]
) -> Mapping[str, Any]:
    """Return the image's configuration: the base's, but for the user, what finds the program, and where it is from."""
    config = {name: value for name in _KEPT if (value := said["Config"].get(name))}
    # The program would change its version by itself.
    environment = {**_pairs(config.get("Env", ())), "DISABLE_AUTOUPDATER": "1"}
    folder = str(PurePosixPath(PROGRAM).parent)
    if facts.claude not in (None, PROGRAM) or folder not in facts.folders:
        environment["PATH"] = ":".join([folder, *facts.folders])
    config["Env"] = [f"{name}={value}" for name, value in environment.items()]
    config["Labels"] = {
        **config.get("Labels", {}),
        "coding-agent.base": said["Id"] if said["Id"].startswith("sha256:") else f"sha256:{said['Id']}",
        "coding-agent.claude": wanted.version,
    }
    history = [{"created": _EPOCH, "created_by": "the base and its packages"}] * (len(layers) - 1)
    return {
        **{name.lower(): said[name] for name in ("Architecture", "Os", "Variant") if said.get(name)},
        "created": _EPOCH,
        "config": {**config, "User": wanted.user},
        "rootfs": {"type": "layers", "diff_ids": list(layers)},
        "history": [*history, {"created": _EPOCH, "created_by": f"Claude Code {wanted.version}, user {wanted.user}"}],
    }


def _pairs(environment: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (each.partition("=") for each in environment)}


def _layers_of(engine: Engine, image: str) -> Generator[bytes, None, list[str]]:
    """Yield the members of the image's archive but its indexes; return its layers' paths there, lowest first."""
    manifest: list[dict[str, Any]] = []
    with answering(engine.url, "reading the base"):
        answer = engine.api._get(engine.api._url("/images/{0}/get", image), stream=True)
        with contextlib.closing(answer):
            engine.api._raise_for_status(answer)
            with tarfile.open(fileobj=answer.raw, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isreg() else None
                    if member.name == "manifest.json" and file:
                        manifest = json.loads(file.read())
                    if member.name in _INDEXES:
                        continue
                    yield member.tobuf(tarfile.GNU_FORMAT)
                    if file:
                        yield from iter(lambda: file.read(_PIECE), b"")  # noqa: B023 - read before the next member
                        yield _padding(member.size)
    return [str(each) for each in manifest[0]["Layers"]]


def _load(engine: Engine, archive: Iterator[bytes], name: str, say: Progress) -> None:
    """Send an image to the engine. Raises `ExecutorUnavailable` where it does not take it."""
    tell, api = _now_and_then(say), engine.api

    def counted() -> Iterator[bytes]:
        sent = 0
        for piece in archive:
            yield piece
            sent += len(piece)
            tell(f"sending the image to the engine: {sent / 1e6:.0f} MB")
        say(f"the engine has got {sent / 1e6:.0f} MB, and unpacks them")

    try:
        with answering(engine.url, f"loading the image {name}"):
            answer = api._post(api._url("/images/load"), data=counted(), stream=True, timeout=SILENCE)
            api._raise_for_status(answer)
            for line in api._stream_helper(answer, decode=True):
                if "error" in line:
                    raise _not_taken(name, str(line["error"]))
                done = int((line.get("progressDetail") or {}).get("current") or 0)
                if done:
                    tell(f"the engine unpacks the image: {done / 1e6:.0f} MB")
    except ConnectionBroken as error:
        # That the engine answers is known: it is this that it does not take.
        raise _not_taken(name, error.message) from error


def _not_taken(name: str, why: str) -> ExecutorUnavailable:
    return ExecutorUnavailable(
        f"the engine does not take the image {name}: {' '.join(why.split())[:300]}",
        next_step="make room where the engine keeps its images if that is full, then run this again",
    )


def _archive(entries: Sequence[_Entry]) -> Iterator[bytes]:
    yield from itertools.chain.from_iterable(each.pieces() for each in entries)
    yield bytes(2 * _BLOCK)


def _size(entries: Sequence[_Entry]) -> int:
    """Return the length of an archive of them, in bytes."""
    return sum(_BLOCK + each.size + len(_padding(each.size)) for each in entries) + 2 * _BLOCK


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _data(name: str, data: bytes) -> _Entry:
    return _Entry(name, len(data), lambda: (data,), 0o644)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _now_and_then(say: Progress) -> Progress:
    """Return what passes a line on every two seconds."""
    last = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY:
            last = time.monotonic()
            say(line)

    return tell
