"""Where the engine keeps its state and with what it encrypts it: what to add to an environment so that it works."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from coding_agent.errors import EngineMissing, InvalidInput
from coding_agent.paths import engine_home, state_dir
from coding_agent.toolchain.installation import Progress, quiet
from coding_agent.toolchain.pulumi.engine import Engine, find_or_install

PROVIDER = "pulumi-resource-coding-agent"
PROJECT_FILES = ("Pulumi.yaml", "Pulumi.yml", "Pulumi.json")
_PASSPHRASE = "PULUMI_CONFIG_PASSPHRASE"  # noqa: S105 - a variable's name
_PASSPHRASE_FILE = "PULUMI_CONFIG_PASSPHRASE_FILE"  # noqa: S105
_SWITCHES = {
    "PULUMI_SKIP_UPDATE_CHECK": "true",
    # A bare `pulumi up` fetches a plugin for every provider's library that is installed, ours included, whether the
    # stack has anything of it or not. The program finds those that the stack needs by itself.
    "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    # A checkout without the stack's file (it holds an encryption salt and is kept out of git) still opens the stack.
    "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
    # The engine and its plugins talk over loopback; Python's gRPC would ask a proxy for that.
    "no_grpc_proxy": "127.0.0.1",
}


@dataclass(frozen=True)
class Backend:
    """Where the engine keeps the stacks, and who chose it."""

    url: str | None  # None: the engine knows it by itself (an access token)
    chosen_by: Literal["environment", "project", "login", "token", "default"]
    where: str  # the variable or the file that says so

    @property
    def ours(self) -> bool:
        """Whether nobody chose one, so that the stacks lie in this project's own state folder."""
        return self.chosen_by == "default"


def backend(root: Path | None = None) -> Backend:
    """Return the backend for the project at `root` (default: the one around the current folder).

    The engine's own order: PULUMI_BACKEND_URL, Pulumi.yaml, `pulumi login` or an access token; then ours.
    """
    ours = (state_dir() / "backend").as_uri()
    url = os.environ.get("PULUMI_BACKEND_URL")
    if url and url != ours:  # ours got there through `exports`: nobody's choice
        return Backend(_absolute(url, Path.cwd()), "environment", "PULUMI_BACKEND_URL")
    project = _project_file(root)
    url = _declared(project) if project else None
    if project and url:
        return Backend(_absolute(url, project.parent), "project", str(project))
    credentials = _credentials()
    url = _login(credentials)
    if url:
        return Backend(url, "login", str(credentials))
    if os.environ.get("PULUMI_ACCESS_TOKEN"):
        return Backend(None, "token", "PULUMI_ACCESS_TOKEN")
    return Backend(ours, "default", str(state_dir() / "backend"))


def mend(root: Path) -> bool:
    """Remove from a backend that is a folder what keeps the engine from reading a stack; return whether anything did.

    Beside each of its files the engine (3.259) keeps what it calls attributes. It makes that file before it writes it,
    so one that was killed in between leaves it empty, and whoever reads the stack afterwards fails with `EOF`. Without
    the file it reads the stack.
    """
    url = urlparse(backend(root).url or "")
    if url.scheme != "file":
        return False
    place = Path(unquote(url.path)) / ".pulumi"
    broken = [each for name in ("stacks", "locks") for each in (place / name).rglob("*.attrs") if _is_empty(each)]
    for each in broken:
        each.unlink(missing_ok=True)
    return bool(broken)


def _is_empty(file: Path) -> bool:
    with suppress(OSError):
        return file.stat().st_size == 0
    return False


def shared(root: Path) -> str | None:
    """Return a name for the backend of the project at `root` that is the same on each machine; None where it is a
    folder, as it is on one alone."""
    found = backend(root)
    if (found.url or "").startswith("file:"):
        return None
    # Whoever logs in there, and however: what is meant is the place.
    place = re.sub(r"//[^/@]*@|\?.*", "//", found.url or "cloud")
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def environment(
    root: Path | None = None, *, engine: Engine | None = None, progress: Progress = quiet
) -> dict[str, str]:
    """Return what a process needs in its environment beside the present one, so that the engine works in `root`.

    Installs the engine where there is none; makes the default backend and its passphrase on first use.
    Raises EngineMissing; InvalidInput when the state folder can't be written.
    """
    added = {"PATH": _path(engine or find_or_install(progress))}
    chosen = backend(root)
    try:
        if chosen.ours:
            (state_dir() / "backend").mkdir(mode=0o700, parents=True, exist_ok=True)
        # An empty passphrase is one, an empty file name is none.
        if _PASSPHRASE not in os.environ and not os.environ.get(_PASSPHRASE_FILE):
            added[_PASSPHRASE_FILE] = str(passphrase_file())
    except OSError as error:
        raise InvalidInput(
            f"the state folder {state_dir()} can't be written: {error}",
            next_step="make it writable, or set XDG_STATE_HOME to a folder that is",
        ) from error
    if chosen.url and chosen.chosen_by in ("project", "default"):
        added["PULUMI_BACKEND_URL"] = chosen.url
    added |= _made_absolute(chosen)
    return added | {name: value for name, value in _SWITCHES.items() if not os.environ.get(name)}


def _made_absolute(chosen: Backend) -> dict[str, str]:
    """Return what the user has set to a relative path: the engine runs in another folder than his shell."""
    file = os.environ.get(_PASSPHRASE_FILE, "")
    found = {_PASSPHRASE_FILE: str(Path(file).expanduser().absolute()) if file else ""}
    if chosen.url and chosen.chosen_by == "environment":
        found["PULUMI_BACKEND_URL"] = chosen.url
    return {name: value for name, value in found.items() if value and value != os.environ.get(name)}


def exports(
    shell: str = "bash",
    *,
    root: Path | None = None,
    more: Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> str:
    """Return the lines that give a shell (bash, zsh, fish) the same engine, backend and passphrase, and `more`.

    Raises InvalidInput for another shell, and what `environment` raises.
    """
    if shell not in ("bash", "zsh", "fish", "sh"):
        raise InvalidInput(f"no lines for the shell {shell!r}", next_step="use bash, zsh or fish")
    added = {**environment(root, progress=progress), **(more or {})}
    if backend(root).chosen_by == "project":
        # The engine reads it there itself; the shell may go to another project, where it would be wrong.
        added.pop("PULUMI_BACKEND_URL", None)
    return "".join(_line(shell, name, value) for name, value in sorted(added.items()))


def passphrase_file() -> Path:
    """Return the file with this user's passphrase for the state's secrets; made on first use, mode 600."""
    path = state_dir() / "passphrase"
    if path.exists():
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".passphrase.", dir=path.parent)  # mkstemp's mode is 600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())  # a state encrypted with a passphrase that a power cut took is lost
        with suppress(FileExistsError):  # of two at once the first wins: a link never replaces a file
            os.link(name, path)
    finally:
        Path(name).unlink()
    return path


def provider_folder() -> Path | None:
    """Return the folder with the provider's program, next to the Python that runs this; None when not installed."""
    folders = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    return next((folder for folder in folders if (folder / PROVIDER).is_file()), None)


def _path(engine: Engine) -> str:
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    # Ours come first: `python3` must be the one that has this package, whatever lies beside the engine.
    ours = [Path(sys.executable).parent, provider_folder()]
    first = list(dict.fromkeys(str(folder) for folder in ours if folder))
    path = first + [folder for folder in folders if folder not in first]
    if shutil.which("pulumi", path=os.pathsep.join(path)) != str(engine.command):
        path.insert(len(first), str(engine.command.parent))
    joined = os.pathsep.join(path)
    found = shutil.which("pulumi", path=joined)
    if found != str(engine.command):
        raise EngineMissing(f"{found} hides {engine.command}", next_step=f"remove it, or update it to {engine.version}")
    return joined


def _project_file(root: Path | None) -> Path | None:
    folder = (root or Path.cwd()).absolute()
    for each in (folder, *folder.parents):
        for name in PROJECT_FILES:
            if (each / name).is_file():
                return each / name
    return None


def _declared(project: Path) -> str | None:
    try:
        text = project.read_text(errors="replace")
    except OSError:
        return None
    if "backend" not in text:  # nearly always: no need to load a parser
        return None
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # the engine says what is wrong with it
    declared = data.get("backend") if isinstance(data, Mapping) else None
    url = declared.get("url") if isinstance(declared, Mapping) else None
    return url if isinstance(url, str) and url else None


def _absolute(url: str, folder: Path) -> str:
    # The engine takes a relative one from its working folder, which differs between a bare `pulumi up` and ours.
    rest = url.removeprefix("file://")
    if rest == url or rest.startswith(("/", "~")):
        return url
    return f"file://{os.path.normpath(folder / rest)}"


def _credentials() -> Path:
    named = os.environ.get("PULUMI_CREDENTIALS_PATH")
    return (Path(named) if named else engine_home()) / "credentials.json"


def _login(credentials: Path) -> str | None:
    try:
        data = json.loads(credentials.read_bytes())
    except (OSError, ValueError):
        return None
    current = data.get("current") if isinstance(data, Mapping) else None
    return current if isinstance(current, str) and current else None


def _line(shell: str, name: str, value: str) -> str:
    if shell == "fish":
        values = value.split(os.pathsep) if name == "PATH" else [value]
        quoted = ["'" + each.replace("\\", "\\\\").replace("'", "\\'") + "'" for each in values]
        return f"set -gx {name} {' '.join(quoted)};\n"
    return f"export {name}={shlex.quote(value)}\n"
