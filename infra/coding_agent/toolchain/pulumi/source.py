"""Build parts of the toolchain with Go: the last way, for machines that reach a module proxy but no download host.

Pulumi's Python language host and the plugins for commands and for Hetzner Cloud are not served as modules; the
programs of that name in `build/` stand in for them. The plugin for Docker is the upstream Terraform provider, bridged.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Installing, Progress, lock, replacing, tail
from coding_agent.toolchain.pulumi import go
from coding_agent.toolchain.pulumi.parts import MODULE, OF_PLUGINS, Part, WayFailed, note_build

CACHE = "CODING_AGENT_GO_CACHE"  # a folder where what Go fetches and compiles is kept for other builds
_CACHE = "go-build"  # the folder in the cache where nothing else is asked for
LIMIT = 40 * 60.0  # seconds for one part; the engine takes 4 minutes on two cores, docker 3
_SDK = "github.com/pulumi/pulumi/sdk/v3"
_EXEC = "python/cmd/pulumi-language-python-exec"  # in the SDK's module: what the language host starts
_SAY_EVERY = 1.0  # seconds
# -v names each package as it is compiled; the module's go.mod and go.sum must stay as they are.
_FLAGS = ("-v", "-mod=readonly", "-trimpath", "-buildvcs=false")


def build(parts: Sequence[Part], progress: Progress) -> dict[Part, str | None]:
    """Build the parts into their folders; return for every part why it could not be built, None where it was."""
    reasons: dict[Part, str | None] = {
        part: None if part.packages else "coding-agent has no source of it" for part in parts
    }
    pending = [part for part in parts if part.packages]
    if not pending:
        return reasons
    try:
        command = go.find_or_install(progress)
        with _caches(progress) as variables:
            for part in tuple(pending):
                _build(part, command, variables, progress)
                pending.remove(part)
    except (WayFailed, OSError) as failure:
        reasons |= dict.fromkeys(pending, str(failure))
    return reasons


def _build(part: Part, command: Path, variables: Mapping[str, str], progress: Progress) -> None:
    deadline = time.monotonic() + LIMIT
    told = _Telling(part, progress)
    progress(f"building {part} from source with {command}: some minutes, once")
    sdk: list[str] = []

    def run(*argv: str, on_line: Callable[[str], None]) -> None:
        _run([str(command), *argv], variables, deadline, on_line)

    run("list", "-mod=readonly", "-deps", *part.packages, on_line=told.listed)
    run("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", _SDK, on_line=sdk.append)
    with replacing(part.folder) as fresh:
        run("build", *_FLAGS, "-ldflags", part.flags, "-o", f"{fresh}/", *part.packages, on_line=told.compiled)
        if part.name == "pulumi":
            # Go keeps its modules read-only; a copy of the mode would make this file hard to remove.
            shutil.copyfile(Path(sdk[-1]) / _EXEC, fresh / Path(_EXEC).name)
            (fresh / Path(_EXEC).name).chmod(0o755)
        note_build(part, fresh)


@contextmanager
def _caches(progress: Progress) -> Iterator[dict[str, str]]:
    """Give the variables of a Go that fetches and compiles below one folder, which is gone when the block ends well.

    A block that ends badly leaves the folder: the next build goes on with it.
    """
    asked = os.environ.get(CACHE)
    folder = Path(asked).expanduser().absolute() if asked else cache_dir() / _CACHE
    with lock("go-build", progress):
        _remove_left(folder, progress)
        for name in ("modules", "compiled", "temporary"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for left in (folder / "temporary").iterdir():
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield _variables(folder)
        except BaseException:
            progress(f"what Go has fetched and compiled stays in {folder} for the next try")
            raise
        if not asked:
            # Renamed first: what a process that is killed here leaves is no cache any more.
            going = folder.with_name(f".{folder.name}.{os.getpid()}")
            progress(f"removing what Go fetched and compiled ({CACHE} names a folder that keeps it)")
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)


def remove_left(progress: Progress) -> None:
    """Finish the removal of Go's caches that a process which was killed had begun; leave them to one that builds."""
    with suppress(Installing), lock("go-build", progress, limit=0):
        _remove_left(cache_dir() / _CACHE, progress)


def _remove_left(folder: Path, progress: Progress) -> None:
    for left in folder.parent.glob(f".{folder.name}.*"):
        progress(f"removing {left}, which a build that was killed has left")
        shutil.rmtree(left, ignore_errors=True)


def _variables(folder: Path) -> dict[str, str]:
    """Return Go's variables. The module proxy and the checksum database stay the user's."""
    machine = platform.machine().lower()
    return {
        "GOMODCACHE": str(folder / "modules"),
        "GOCACHE": str(folder / "compiled"),
        "GOTMPDIR": str(folder / "temporary"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GO111MODULE": "on",
        "CGO_ENABLED": "0",
        # Not empty: an empty one leaves what `go env -w` has set. Go's modules would otherwise be read-only folders.
        "GOFLAGS": "-modcacherw",
        "GOOS": sys.platform,
        "GOARCH": OF_PLUGINS.get(machine, machine),
    }


class _Telling:
    """Turns the lines that Go prints into progress, one a second at most."""

    def __init__(self, part: Part, progress: Progress) -> None:
        self._part = part
        self._progress = progress
        self._reported = 0.0
        self._modules = 0
        self._total = 0
        self._done = 0

    def listed(self, line: str) -> None:
        if line.startswith("go: downloading "):
            self._modules += 1
            self._say(f"fetched {self._modules} modules ({line.split()[2]})")
        elif not line.startswith("go: "):
            self._total += 1

    def compiled(self, line: str) -> None:
        if line.startswith(("go: ", "#")) or " " in line:
            return
        self._done += 1
        main = line.endswith(f"/{self._part.program}")
        # What Go still has from an earlier build is not compiled again and not named.
        self._say(f"compiled {self._done} of at most {self._total} packages ({line})", now=main)
        if main:
            self._say("linking", now=True)

    def _say(self, text: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._reported >= _SAY_EVERY:
            self._progress(f"building {self._part}: {text}")
            self._reported = time.monotonic()


def _run(argv: Sequence[str], variables: Mapping[str, str], deadline: float, on_line: Callable[[str], None]) -> None:
    # One pipe for both: what is not the answer starts with "go: ". Its own group, so that no compiler outlives it; a Go
    # whose reader was killed ends at the next line it prints.
    process = subprocess.Popen(
        argv,
        cwd=MODULE,
        env={**{name: value for name, value in os.environ.items() if name != "GOROOT"}, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    limit = threading.Timer(max(0.0, deadline - time.monotonic()), _end, [process])
    limit.daemon = True
    limit.start()
    last: deque[str] = deque(maxlen=20)
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                last.append(line)
                on_line(line.strip())
        process.wait()
    finally:
        limit.cancel()
        if process.poll() is None:
            _end(process)
        process.wait()
    if time.monotonic() >= deadline:
        raise WayFailed(f"not finished within {LIMIT / 60:.0f} minutes")
    if process.returncode != 0:
        raise WayFailed(f"`go {argv[1]}` ended with exit code {process.returncode}: {tail(''.join(last), 4)}")


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
