"""Build the Pulumi engine with Go: the last way, for machines that reach a module proxy but no download host.

Pulumi's Python language host is not served as a module; `build/pulumi-language-python` stands in for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from coding_agent.toolchain.installation import Progress, replacing, tail
from coding_agent.toolchain.pulumi.engine import VERSION
from coding_agent.toolchain.pulumi.ways import StepFailed

LIMIT = 40 * 60.0  # seconds for the whole build; it takes 3.5 minutes on two cores
MODULE = Path(__file__).parent / "build"
_MAIN = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_HOST = "./pulumi-language-python"
_SDK = "github.com/pulumi/pulumi/sdk/v3"
_VERSION_VARIABLE = f"{_SDK}/go/common/version.Version"
_EXEC = "python/cmd/pulumi-language-python-exec"  # in the SDK's module: what the language host starts
_SAY_EVERY = 1.0  # seconds
_WAY = "source"
# -v names each package as it is compiled; the module's go.mod and go.sum must stay as they are.
_FLAGS = ("-v", "-mod=readonly", "-trimpath", "-buildvcs=false")


def build(target: Path, progress: Progress) -> None:
    """Build into `target`. Raises StepFailed."""
    go = shutil.which("go")
    if not go:
        raise StepFailed(_WAY, "Go is not installed")
    deadline = time.monotonic() + LIMIT
    told = _Telling(progress)
    progress(f"building pulumi {VERSION} from source with {go}: some minutes, once")
    sdk: list[str] = []
    try:
        _run([go, "list", "-mod=readonly", "-deps", _MAIN, _HOST], deadline, told.listed)
        _run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", _SDK], deadline, sdk.append)
        with replacing(target) as fresh:
            linker = f"-s -w -X {_VERSION_VARIABLE}=v{VERSION}"
            _run([go, "build", *_FLAGS, "-ldflags", linker, "-o", f"{fresh}/", _MAIN, _HOST], deadline, told.compiled)
            # Go keeps its modules read-only; a copy of the mode would make this file hard to remove.
            shutil.copyfile(Path(sdk[-1]) / _EXEC, fresh / Path(_EXEC).name)
            (fresh / Path(_EXEC).name).chmod(0o755)
    except OSError as error:
        raise StepFailed(_WAY, str(error)) from error


class _Telling:
    """Turns the lines that Go prints into progress, one a second at most."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said = 0.0
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
        # What Go still has from an earlier build is not compiled again and not named.
        self._say(f"compiled {self._done} of at most {self._total} packages ({line})", now=line == _MAIN)
        if line == _MAIN:
            self._say("linking", now=True)

    def _say(self, text: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._said >= _SAY_EVERY:
            self._progress(f"building pulumi: {text}")
            self._said = time.monotonic()


def _run(argv: Sequence[str], deadline: float, on_line: Callable[[str], None]) -> None:
    # One pipe for both: what is not the answer starts with "go: ". Its own group, so that no compiler outlives it.
    process = subprocess.Popen(
        argv,
        cwd=MODULE,
        env={**os.environ, "GOWORK": "off", "GOFLAGS": "", "CGO_ENABLED": "0", "GO111MODULE": "on"},
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
        raise StepFailed(_WAY, f"not finished within {LIMIT / 60:.0f} minutes")
    if process.returncode != 0:
        raise StepFailed(_WAY, f"`go {argv[1]}` ended with exit code {process.returncode}: {tail(''.join(last), 4)}")


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
