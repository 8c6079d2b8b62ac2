"""The container a run gets, declared: image, network, volumes, container. Nothing is declared for one that exists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
from docker.errors import NotFound

from coding_agent import claude
from coding_agent.container_options import is_volume_name
from coding_agent.errors import CodingAgentError, ExecutorUnavailable
from coding_agent.executors import container, container_image, gpus
from coding_agent.executors.container_engine import Engine, answering, reach
from coding_agent.executors.container_limits import ROOM, effective
from coding_agent.executors.declared import Declared, Wanted
from coding_agent.executors.leftovers import Leftovers
from coding_agent.plugin import one_line
from coding_agent.toolchain.pulumi import plugins

if TYPE_CHECKING:
    from coding_agent.executors.container_image import Facts
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

LARGEST_CONTEXT = 500_000_000  # bytes of the folder that an image is built from
_MB = 1024 * 1024  # the provider's unit of memory


class ContainerTarget(pulumi.ComponentResource):
    """Everything that is made for one run in a container."""

    def __init__(self, name: str, options: pulumi.ResourceOptions) -> None:
        super().__init__("coding-agent:index:ContainerTarget", name, None, options)


def image(spec: ExecutorSpec, task: Task) -> str:
    """Return what the container is made of: with another image a run is another run."""
    if spec.options.get("container"):
        return f"container {spec.options['container']}"
    named = spec.options["image"]
    return str(named) if isinstance(named, str) else f"build {_context(task, named['build'])[2]}"


def declare(wanted: Wanted) -> Declared:
    """Declare the target of a run.

    Raises `ConnectionBroken` where the engine does not answer, `ExecutorUnavailable` for an image or a container that
    can't be used, `PluginMissing`.
    """
    engine = reach(wanted.spec.options)
    try:
        if wanted.spec.options.get("container"):
            return _existing(engine, wanted)
        plugins.find_or_install(("docker",), wanted.say)
        return _made(engine, wanted)
    finally:
        engine.close()


def _existing(engine: Engine, wanted: Wanted) -> Declared:
    name, spec = str(wanted.spec.options["container"]), wanted.spec
    try:
        with answering(engine.url, f"looking for the container {name}"):
            said = engine.api.inspect_container(name)
    except NotFound as error:
        raise ExecutorUnavailable(
            f"executor {spec.name}: there is no container {name} at {engine.url}",
            next_step=f"start it, or give the executor an `image`: then a container is made for each run "
            f"(`{engine.runtime} ps -a` lists those that exist)",
        ) from error
    if not said["State"].get("Running") or said["State"].get("Paused"):
        state = said["State"].get("Status")
        raise ExecutorUnavailable(
            f"executor {spec.name}: the container {name} is {state}, not running",
            next_step=f"`{engine.runtime} start {name}`: one that exists is never started by a run",
        )
    return Declared({"id": said["Id"], "user": str(spec.options.get("user") or "")})


def _made(engine: Engine, wanted: Wanted) -> Declared:
    import pulumi_docker as docker

    spec, name = wanted.spec, f"coding-agent-{wanted.stack}"
    user = _unprivileged(spec)
    component = ContainerTarget(wanted.stack, pulumi.ResourceOptions(parent=wanted.parent))
    inside = pulumi.ResourceOptions(parent=component)
    provider = docker.Provider(f"{wanted.stack}-engine", host=engine.url, opts=inside)
    options = partial(pulumi.ResourceOptions, parent=component, provider=provider)
    made_from, facts = _image(engine, wanted, options)
    labels: Mapping[str, Any] = {
        container.RUN: wanted.run_id,
        "coding-agent.project": wanted.project,
        "coding-agent.stack": wanted.stack,
    }
    network = None
    if not spec.options.get("network"):
        network = docker.Network(
            name, labels=[docker.NetworkLabelArgs(label=k, value=v) for k, v in labels.items()], opts=options()
        )
    volume = docker.Volume(
        name, labels=[docker.VolumeLabelArgs(label=k, value=v) for k, v in labels.items()], opts=options()
    )
    named = [each for each in _named_volumes(engine, wanted) if each]
    volumes = [
        docker.Volume(
            f"{name}-{each}",
            name=each,
            labels=[docker.VolumeLabelArgs(label=k, value=v) for k, v in labels.items()],
            opts=options(ignore_changes=["labels"]),
        )
        for each in named
    ]
    needed = [volume, *volumes, *([network] if network else [])]
    # Between them and the container: what is removed after the container, and before what it uses. A container that a
    # killed engine left would hold the volume.
    leftovers = Leftovers(wanted.stack, wanted, pulumi.ResourceOptions(parent=component, depends_on=needed))
    limits = effective(wanted.task.limits, spec.options)
    pids = (limits.pids or 0) + ROOM
    mounts = [
        docker.ContainerMountArgs(target=container.root_of(spec), type="volume", source=volume.name),
        *(_mount(docker, wanted, each) for each in spec.options.get("volumes", ())),
    ]
    program = facts.apply(_said(lambda found: _program(engine, wanted, found)))
    # What the engine can't have the kernel hold it refuses, or drops.
    limits_memory = int((limits.memory or 0) / _MB) or None if "memory" in engine.limits else None
    made = docker.Container(
        name,
        image=made_from.image_id,
        entrypoints=list(container.ENTRYPOINT),
        command=[container.main(spec)],
        user="0:0",
        working_dir="/",
        init=True,
        start=False,  # by the run, once the limit of processes is set
        must_run=False,
        restart="no",
        privileged=False,
        capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"]),
        security_opts=["no-new-privileges:true"],
        userns_mode=engine.userns,
        memory=limits_memory,
        memory_swap=limits_memory,
        cpus=f"{limits.cpus:g}" if limits.cpus and "cpus" in engine.limits else None,
        gpus=gpus.request(spec, gpus.chosen(wanted.task)),
        storage_opts={"size": str(limits.disk)} if limits.disk and engine.limits_disk else None,
        network_mode=spec.options.get("network"),
        networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.name)] if network else None,
        mounts=program.apply(lambda found: [*mounts, *_program_mount(docker, found)]),
        labels=[docker.ContainerLabelArgs(label=k, value=v) for k, v in {**labels, container.PIDS: str(pids)}.items()],
        opts=options(
            depends_on=[*needed, leftovers],
            # A container is what it was made as: what changes in the executors file is for the next run.
            ignore_changes=_AS_MADE,
        ),
    )
    target = {
        "id": made.id,
        "volume": volume.name,
        "image": made_from.image_id,
        "user": user,
        "claude": program.apply(lambda found: found["path"]),
        "run": wanted.run_id,
        "root": container.root_of(spec),
    }
    return Declared(target, (component, made))


_AS_MADE = [
    *("image", "entrypoints", "command", "memory", "memorySwap", "cpus", "gpus", "storageOpts", "mounts"),
    *("networkMode", "networksAdvanced", "usernsMode", "capabilities", "securityOpts"),
]


def _unprivileged(spec: ExecutorSpec) -> str:
    user = container.user_of(spec)
    if user.split(":")[0] in ("0", "root"):
        raise ExecutorUnavailable(
            f"executor {spec.name}: an agent that is root in its container could end it",
            next_step="name another user, or leave `user` out: then it is yours, or 10001 where you are root",
        )
    return user


def _image(engine: Engine, wanted: Wanted, options: Any) -> tuple[Any, pulumi.Output[Facts]]:
    """Declare the image, and return what is found in it. An image that is here already is looked at at once."""
    import pulumi_docker as docker

    named, agent = wanted.spec.options["image"], wanted.task.prompt is not None
    if isinstance(named, str):
        found = container_image.local(engine, named)
        if found is None and not wanted.preview:
            found = container_image.pull(engine, named, wanted.say)
        if found is not None:
            container_image.check(container_image.examine(engine, found), named, agent=agent)
        # Another run looks anew which image has this name.
        made = docker.RemoteImage(
            f"{wanted.stack}-image", name=named, keep_locally=True, pull_triggers=[wanted.run_id], opts=options()
        )
    else:
        folder, file, mark = _context(wanted.task, named["build"])
        made = docker.RemoteImage(
            f"{wanted.stack}-image",
            name=f"coding-agent/{wanted.project}-{wanted.stack}:{mark[:12]}".lower(),
            build=docker.RemoteImageBuildArgs(
                context=str(folder),
                dockerfile=os.path.relpath(file, folder),
                build_args={str(k): str(v) for k, v in (named["build"].get("args") or {}).items()},
                labels={"coding-agent.stack": wanted.stack},
            ),
            triggers={"content": mark},
            force_remove=False,
            opts=options(),
        )
        named = str(file)

    def look(image: str) -> Facts:
        engine = reach(wanted.spec.options)
        try:
            facts = container_image.examine(engine, image)
        finally:
            engine.close()
        container_image.check(facts, str(named), agent=agent)
        return facts

    return made, made.image_id.apply(_said(look))


def _context(task: Task, build: Mapping[str, Any]) -> tuple[Path, Path, str]:
    """Return the folder and the Dockerfile of a build, and a mark of their content."""
    folder = (task.root / str(build.get("context") or ".")).resolve()
    file = (task.root / str(build["dockerfile"])).resolve() if build.get("dockerfile") else folder / "Dockerfile"
    for path in (folder, file):
        if not path.is_relative_to(task.root.resolve()):
            raise ExecutorUnavailable(f"image.build: {path} is outside the project {task.root}")
    if not file.is_file():
        raise ExecutorUnavailable(
            f"image.build: there is no {file}", next_step="write it, or name another with image.build.dockerfile"
        )
    digest, total = hashlib.sha256(repr(sorted((build.get("args") or {}).items())).encode()), 0
    for path in _files(folder):
        total += path.stat().st_size
        if total > LARGEST_CONTEXT:
            raise ExecutorUnavailable(
                f"image.build: {folder} has over {LARGEST_CONTEXT // 1_000_000} MB",
                next_step="name a smaller folder with image.build.context",
            )
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_mode & 0o111:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(file.read_bytes())
    return folder, file, digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if each != ".git")
        yield from (Path(where) / each for each in sorted(names) if (Path(where) / each).is_file())


def _program(engine: Engine, wanted: Wanted, facts: Facts) -> dict[str, str]:
    """Return where the agent's program is in the container, and where it is mounted from, if it is."""
    agent = wanted.task.agent
    if wanted.task.prompt is None:
        return {"path": "", "source": ""}
    if wanted.spec.claude_path:
        return {"path": wanted.spec.claude_path, "source": ""}
    if facts.claude and agent.version is None:
        return {"path": facts.claude, "source": ""}
    if not engine.here:
        raise ExecutorUnavailable(
            f"the image of executor {wanted.spec.name} has no Claude Code, and nothing of this machine can be mounted "
            f"at {engine.url}",
            next_step="use an image that has it: `coding-agent image build` makes one",
        )
    source = claude.for_platform(facts.platform, agent.version, wanted.say)
    return {"path": container.CLAUDE, "source": str(source)}


def _program_mount(docker: Any, found: Mapping[str, str]) -> list[Any]:
    if not found["source"]:
        return []
    return [
        docker.ContainerMountArgs(target=container.CLAUDE, type="bind", source=found["source"], read_only=True),
    ]


def _mount(docker: Any, wanted: Wanted, volume: str) -> Any:
    source, target, *mode = volume.split(":")
    bind = not is_volume_name(source)
    if bind:
        path = wanted.task.root / Path(source).expanduser()
        source = os.path.normpath(path)
        if not path.exists():
            raise ExecutorUnavailable(
                f"executor {wanted.spec.name}: there is no {path} to mount",
                next_step="make it, or correct `volumes`; a name without a slash is a volume of the engine's",
            )
    return docker.ContainerMountArgs(
        target=target, type="bind" if bind else "volume", source=source, read_only=mode == ["ro"]
    )


def _named_volumes(engine: Engine, wanted: Wanted) -> Iterator[str]:
    """Yield the engine's volumes that the stack makes: those that are there already belong to somebody else."""
    for volume in wanted.spec.options.get("volumes", ()):
        source = volume.split(":")[0]
        if not is_volume_name(source):
            continue
        try:
            with answering(engine.url, f"looking for the volume {source}"):
                labels = engine.api.inspect_volume(source).get("Labels") or {}
        except NotFound:
            yield source
        else:
            mine = ("coding-agent.project", wanted.project), ("coding-agent.stack", wanted.stack)
            if all(labels.get(name) == value for name, value in mine):
                yield source


def _said(look: Any) -> Any:
    """Return `look` as the engine can call it: what it refuses is told in words, without a traceback."""

    def checked(value: Any) -> Any:
        try:
            return look(value)
        except CodingAgentError as error:
            raise pulumi.RunError(one_line(error)) from None

    return checked
