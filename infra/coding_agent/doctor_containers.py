"""What container executors need, as `doctor` looks at it: an engine that answers, their images, the engine's plugin."""

from __future__ import annotations

from collections.abc import Iterator

from coding_agent.doctor_engine import installed_plugin
from coding_agent.errors import CodingAgentError
from coding_agent.finding import Finding, State
from coding_agent.settings import ExecutorSpec, Settings
from coding_agent.toolchain.installation import Progress


def executors(fix: bool, progress: Progress) -> Iterator[Finding]:
    """Yield what is found for each container executor; nothing where there is none."""
    try:
        found = [each for each in Settings.load().executors if each.type == "container"]
    except CodingAgentError:
        return  # said elsewhere
    for each in found:
        yield _executor(each)
    if any("image" in each.options for each in found):
        yield installed_plugin("docker", "the first run in a container waits for it", fix, progress)


def _executor(spec: ExecutorSpec) -> Finding:
    from coding_agent.executors import container_engine, container_image

    name, prevents = f"executor {spec.name}", f"no task can run on {spec.name}"
    try:
        engine = container_engine.reach(spec.options)
    except CodingAgentError as error:
        return Finding(name, State.MISSING, error.message, prevents, error.next_step)
    try:
        where, image = f"{engine.runtime} at {engine.url}", spec.options.get("image")
        if not isinstance(image, str):
            return Finding(name, State.OK, where)
        held = container_image.local(engine, image)
        if held is None:
            step = f"`{engine.runtime} pull {image}`, or make one: `coding-agent image build`"
            return Finding(name, State.WARNING, f"{where}, without the image {image}", "the first run pulls it", step)
        container_image.check(container_image.examine(engine, held), image, agent=True)
        return Finding(name, State.OK, f"{where}, image {image}")
    except CodingAgentError as error:
        return Finding(name, State.MISSING, error.message, prevents, error.next_step)
    finally:
        engine.close()
