"""What a task's document means, and everything a schema can't say about it."""

from __future__ import annotations

import re
from typing import Any

from coding_agent import schema
from coding_agent.agent_settings import Agent, Limits, read_agent, read_environment, read_limits
from coding_agent.container_options import contradictions
from coding_agent.document import Document, FieldPath, quoted
from coding_agent.executors import gpus
from coding_agent.git_names import wrong_address, wrong_ref
from coding_agent.inline_executor import forbidden
from coding_agent.near_files import NearFiles, leaving, normal, project_root
from coding_agent.settings import Defaults, ExecutorSpec, Settings, spec
from coding_agent.task import File, Repo, Task

LARGEST_PROMPT = 10_000_000  # bytes of UTF-8; Claude Code takes no more
LARGEST_SCRIPT = 1_000_000  # bytes
LARGEST_SOURCE = 100_000_000  # bytes
BRANCHES = "coding-agent/"
LEAST_MEMORY = 256_000_000  # bytes; Claude Code itself needs 210 to 240 MB
LEAST_PIDS = 64

_KINDS = ("prompt", "prompt_file", "command")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read(document: Document, settings: Settings | None) -> Task:
    """Return the task; what is wrong with it is reported in the document, and the task then not to be used."""
    schema.check(document, schema.TASK)
    return _Reading(document, settings).task()


class _Reading:
    """One document on its way to a task. A field with a problem is read as if it were not there."""

    def __init__(self, document: Document, settings: Settings | None) -> None:
        self.document, self.settings = document, settings
        self.data: dict[str, Any] = document.data
        self.defaults = settings.defaults if settings else Defaults()
        self.root = project_root(document.path)
        self.near = NearFiles(document, self.root)

    def task(self) -> Task:
        name = self._name()
        prompt, command = self._work()
        repo, workdir = self._repo(), self._workdir()
        agent, limits = self._agent(command), self._limits(command)
        secrets = tuple(self._get("secrets", ()))
        task = Task(
            name=name,
            description=self._get("description", ""),
            prompt=prompt,
            command=command,
            executor=self._executor(),
            labels=tuple(self._get("labels", ())),
            repo=repo,
            branch=self._branch(name, repo),
            workdir=workdir,
            files=self._files(),
            setup=self._setup(),
            env=self._env(secrets),
            secrets=secrets,
            agent=agent,
            limits=limits,
            artifacts=self._artifacts(),
            wait=self._get("wait", True),
            source=self.document.path.parent.resolve() / self.document.path.name,
            root=self.root,
        )
        if workdir and workdir.startswith(("/", "~")):
            self._own_folder(agent)
        return task

    def _get(self, name: str, default: Any) -> Any:
        usable = name in self.data and self.document.usable((name,))
        return self.data[name] if usable else default

    def _items(self, name: str) -> dict[FieldPath, Any]:
        """Return the usable values of a list, so that one wrong value doesn't hide what is wrong with the others."""
        listed = self.data.get(name)
        values = enumerate(listed) if isinstance(listed, list) else ()
        return {(name, number): value for number, value in values if self.document.usable((name, number))}

    def _say(self, path: FieldPath, message: str, *, at_key: bool = False) -> None:
        self.document.report(path, message, at_key=at_key)

    def _name(self) -> str:
        stem = self.document.path.name.removesuffix(".yaml").removesuffix(".yml")
        name = str(self._get("name", stem))
        if "name" not in self.data and not _NAME.fullmatch(stem):
            proposed = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "task"
            self._say(("name",), f"the file's name {quoted(stem)} can't be the task's; write `name: {proposed[:100]}`")
        elif self.document.sound(("name",)) and (reason := wrong_ref(name)):
            self._say(("name",), f"{quoted(name)} {reason}; choose a name that git takes for a branch, too")
        return name

    def _work(self) -> tuple[str | None, str | None]:
        given = [kind for kind in _KINDS if kind in self.data]
        if not given:
            self._say(("prompt",), "is missing; write one of prompt, prompt_file and command")
        for other in given[1:]:
            self._say((other,), f"{given[0]} is given as well; keep one of them", at_key=True)
        prompt: str | None = self._get("prompt", None)
        path: FieldPath = ("prompt",)
        if (name := self._get("prompt_file", None)) is not None:
            path = ("prompt_file",)
            prompt = self.near.read_text(path, name, limit=LARGEST_PROMPT)
        self._check_text(path, prompt, LARGEST_PROMPT, "put what is large into `files`")
        command = self._get("command", None)
        self._check_text(("command",), command, LARGEST_SCRIPT, "put the script into `files`")
        return prompt, command

    def _check_text(self, path: FieldPath, text: str | None, limit: int, advice: str) -> None:
        if text is None:
            return
        if not text.strip():
            self._say(path, "is empty; say what is to be done")
        if (length := len(text.encode())) > limit:
            self._say(path, f"is {length} bytes long; at most {limit} are possible, {advice}")
        if "\0" in text:
            self._say(path, "a NUL character, which no program can be given; remove it")

    def _executor(self) -> str | ExecutorSpec | None:
        self._check_inline(self.data.get("executor"))
        value = self._get("executor", None)
        if isinstance(value, dict):
            self._check_gpus(spec(value))
            return spec(value)
        if self.settings is None:
            return value if isinstance(value, str) else None
        names = [each.name for each in self.settings.executors]
        labels = self._get("labels", ())
        if isinstance(value, str) and value not in names:
            self._say(("executor",), f"there is no executor {quoted(value)}; {schema.nearest(value, names)}")
        elif isinstance(value, str):
            self._check_gpus(self.settings.executor(value))
        elif "executor" not in self.data and not labels:
            self._check_gpus(self.settings.executor(self.settings.usual))
        if "executor" not in self.data and labels:
            carrying = self.settings.carrying(labels)
            if carrying is None:
                advice = "name one with `executor:`, or use fewer labels"
                self._say(("labels",), f"no executor carries all of {', '.join(labels)}; {advice}")
            elif self.settings.carrying(labels, self._gpus()) is None:
                self._check_gpus(carrying)
        return value if isinstance(value, str) else None

    def _gpus(self) -> int:
        said = (self.data.get("limits") if self.document.sound(("limits",)) else None) or {}
        wanted = said.get("gpus", self.defaults.limits.get("gpus"))
        return wanted if isinstance(wanted, int) else 0

    def _check_gpus(self, chosen: ExecutorSpec) -> None:
        if refused := gpus.refusal(chosen, self._gpus()):
            self._say(("limits", "gpus"), "; ".join(refused))

    def _check_inline(self, value: Any) -> None:
        # Without a type nothing has been checked: its fields may be anything.
        if not isinstance(value, dict) or not self.document.sound(("executor", "type")):
            return
        usable = {name: each for name, each in value.items() if self.document.usable(("executor", name))}
        if isinstance(value.get("env"), dict):
            read_environment(self.document, ("executor", "env"), value["env"])
        for path, message in contradictions(usable):
            self._say(("executor", *path), message)
        if self.settings is not None:
            for path, message in forbidden(usable, self.settings.allow_inline):
                self._say(("executor", *path), message)

    def _repo(self) -> Repo | None:
        value = self._get("repo", None)
        uncommitted = self._get("uncommitted", None)
        if uncommitted is not None and "repo" in self.data and value != "." and value is not None:
            self._say(("uncommitted",), "is for `repo: .` only; leave it out", at_key=True)
        if value is None:
            for name in ("uncommitted", "branch"):
                if "repo" not in self.data and name in self.data:
                    self._say((name,), "means nothing without `repo`; add it, or leave this out", at_key=True)
            return None
        if value == ".":
            return Repo(path=True, uncommitted=uncommitted or "refuse")
        url, ref = value["url"], value.get("ref")
        if reason := wrong_address(url):
            self._say(("repo", "url"), reason)  # not quoted: it may hold a credential
        if ref is not None and (reason := wrong_ref(ref)):
            self._say(("repo", "ref"), f"{quoted(ref)} {reason}; write a branch, a tag or a full commit id")
        return Repo(url=url, ref=ref)

    def _branch(self, name: str, repo: Repo | None) -> str:
        given = self._get("branch", None)
        branch = BRANCHES + (given or name).removeprefix(BRANCHES)
        if given is not None and (reason := wrong_ref(branch)):
            self._say(("branch",), f"{quoted(given)} {reason}; write a name that git takes, such as fix-build")
        return branch

    def _workdir(self) -> str | None:
        value = self._get("workdir", None)
        if value is None:
            return None
        if any(ord(letter) < 32 for letter in value):
            self._say(("workdir",), "holds a control character; name a folder")
        if value.startswith("/") or value == "~" or value.startswith("~/"):
            return str(value)
        if reason := leaving(value):
            advice = "name one inside the workspace, or one of the executor's from `/` or `~/` on"
            self._say(("workdir",), f"{quoted(value)} {reason}; {advice}")
        return normal(value) or None

    def _own_folder(self, agent: Agent) -> None:
        for name in ("repo", "files", "artifacts"):
            if self._get(name, None):
                message = "is for the workspace made for a run; leave it out, or name a workdir inside the workspace"
                self._say((name,), message, at_key=True)
        if agent.permission_mode == "bypassPermissions":
            path = ("agent", "permission_mode") if "permission_mode" in self._get("agent", {}) else ("workdir",)
            message = (
                "bypassPermissions is only for a workspace made for the run; leave out workdir, or choose another mode"
            )
            self._say(path, message)

    def _files(self) -> tuple[File, ...]:
        found: dict[str, File] = {}
        listed = self.data.get("files") if self.document.sound(("files",)) else None
        for number, value in enumerate(listed or ()):
            path: FieldPath = ("files", number)
            if not self.document.usable(path):
                continue
            if file := self._file(path, value):
                self._check_place(path, file.path, found)
                found.setdefault(file.path, file)
        return tuple(found.values())

    def _file(self, path: FieldPath, value: Any) -> File | None:
        name = value["path"]
        if reason := leaving(name):
            self._say((*path, "path"), f"{quoted(name)} {reason}; name a place inside the workspace")
        elif not normal(name) or name.endswith("/"):
            self._say((*path, "path"), f"{quoted(name)} names a folder; name a file")
        if ("content" in value) == ("source" in value):
            what = "content and source are both given" if "content" in value else "neither content nor source is given"
            self._say((*path, "content"), f"{what}; write one of them")
            return None
        if "source" in value:
            content = self.near.read((*path, "source"), value["source"], limit=LARGEST_SOURCE)
        else:
            content = value["content"].encode()
        return None if content is None else File(normal(name), content, int(value.get("mode", "0644"), 8))

    def _check_place(self, path: FieldPath, name: str, found: dict[str, File]) -> None:
        if name in found:
            self._say((*path, "path"), f"{quoted(name)} is there a second time; keep one of them")
        for other in found:
            if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
                message = f"{quoted(name)} and {quoted(other)} can't both be: one would be a folder; rename one of them"
                self._say((*path, "path"), message)

    def _setup(self) -> tuple[str, ...]:
        value = self._get("setup", ())
        commands = {("setup",): value} if isinstance(value, str) else self._items("setup")
        for path, command in commands.items():
            self._check_text(path, command, LARGEST_SCRIPT, "put the script into `files`")
        return tuple(commands.values())

    def _env(self, secrets: tuple[str, ...]) -> dict[str, str]:
        written = self.data.get("env")
        own = read_environment(self.document, ("env",), written if isinstance(written, dict) else {})
        for number, name in enumerate(secrets):
            if name in own:
                self._say(("secrets", number), f"{name} is under `env` as well; keep one of them")
        # A default gives way to the secret of the same name.
        defaults = {name: value for name, value in self.defaults.env.items() if name not in secrets}
        return {**defaults, **own}

    def _agent(self, command: str | None) -> Agent:
        if command is not None:
            if "agent" in self.data:
                self._say(("agent",), "means nothing beside `command`; leave it out, or give a prompt", at_key=True)
            return Agent()
        values = self.data.get("agent") if self.document.sound(("agent",)) else None
        own = read_agent(self.document, ("agent",), values or {}, self.near)
        return Agent(**{**self.defaults.agent, **own})

    def _limits(self, command: str | None) -> Limits:
        values = (self.data.get("limits") if self.document.sound(("limits",)) else None) or {}
        own = read_limits(self.document, ("limits",), values)
        if command is None and self.document.usable(("limits",)):
            if (memory := own.get("memory")) and memory < LEAST_MEMORY:
                message = f"is {quoted(values['memory'])}; Claude Code itself needs that, give 256MB or more"
                self._say(("limits", "memory"), message)
            if (pids := own.get("pids")) and pids < LEAST_PIDS:
                self._say(("limits", "pids"), f"is {pids}; an agent and its tools need at least {LEAST_PIDS}")
        return Limits(**{**self.defaults.limits, **own})

    def _artifacts(self) -> tuple[str, ...]:
        globs = self._items("artifacts")
        for path, glob in globs.items():
            if reason := leaving(glob):
                self._say(path, f"{quoted(glob)} {reason}; give a pattern inside the workspace")
        return tuple(normal(glob) or "." for glob in globs.values())
