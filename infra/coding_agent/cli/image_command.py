"""`image build`: an image for the container executor, from the user's own base."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

import click

from coding_agent.claude import PINNED_VERSION
from coding_agent.cli.options import command, group, json_option
from coding_agent.cli.screen import Screen

_CODES: Sequence[int | tuple[int, str]] = [
    (0, "the image is there"),
    2,
    (3, "the engine, the base or Claude Code could not be used"),
    (130, "interrupted"),
]


@group("image", examples=["image build --from node:22-bookworm-slim", "image build --help"], codes=_CODES)
@click.pass_context
def image_command(context: click.Context) -> None:
    """Make images that agents run in, for executors of type `container`."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command(
    "build",
    examples=[
        "image build",
        "image build --from node:22-bookworm-slim --tag shop/agent:1",
        "image build --runtime podman --user node --uid 1000 --from node:22",
        "image build --json | jq -r .id",
    ],
    codes=_CODES,
)
@click.option(
    "--from", "base", metavar="BASE", default="debian:bookworm-slim", show_default=True, help="The base image."
)
@click.option("--tag", metavar="NAME", default="", help="The image's name  [default: coding-agent:VERSION]")
@click.option(
    "--runtime", type=click.Choice(["docker", "podman"]), default="docker", show_default=True, help="The engine."
)
@click.option("--docker-host", metavar="URL", help="Where the engine answers  [default: as the engine's own program]")
@click.option("--user", metavar="NAME", default="agent", show_default=True, help="The image's user.")
@click.option("--uid", type=click.IntRange(1, 2**31 - 1), default=10001, show_default=True, help="His number.")
@click.option(
    "--claude-version",
    "version",
    metavar="X",
    default=PINNED_VERSION,
    show_default=True,
    help="Claude Code's, exactly.",
)
@click.option(
    "--network", metavar="NAME", help="Through which packages are fetched, such as host  [default: the usual]"
)
@json_option
def build_command(
    base: str,
    tag: str,
    runtime: str,
    docker_host: str | None,
    user: str,
    uid: int,
    version: str,
    network: str | None,
    as_json: bool,
) -> int:
    """Make an agent's image from BASE.

    It is BASE with Claude Code, a user without rights, and bash, git and the few tools that every run needs. What BASE
    lacks of those is installed with its own apt-get or apk; else nothing of it runs. The same BASE and options give the
    same image, to its id.
    """
    from coding_agent import agent_image
    from coding_agent.executors.container_engine import reach

    screen = Screen(as_json=as_json)
    wanted = agent_image.Wanted(base, tag, user, uid, version)
    with contextlib.closing(reach({"runtime": runtime, "docker_host": docker_host})) as engine:
        with screen.working(f"making {wanted.name} from {base}") as say:
            built = agent_image.build(engine, wanted, say, network=network)
    if as_json:
        screen.data(asdict(built))
        return 0
    screen.say(f"{built.image}: {built.id.removeprefix('sha256:')[:12]}, {built.size / 1e6:.0f} MB, "
               f"Claude Code {built.claude} for {user} (uid {uid})")  # fmt: skip
    screen.say("next: name it in the executors file:")
    screen.say(f"  - {{name: box, type: container, image: {built.image}{_runtime(runtime)}}}")
    return 0


def _runtime(runtime: str) -> str:
    return "" if runtime == "docker" else f", runtime: {runtime}"


image_command.add_command(build_command)
