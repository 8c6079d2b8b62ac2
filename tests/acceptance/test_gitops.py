"""The workflow that `init --github` makes: its shell steps, run as GitHub runs them, on a new machine for each job."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from coding_agent.scaffold import scaffold
from fakes.scenarios import scenario
from processes import end_processes_of
from user import API_KEY, User

pytestmark = pytest.mark.timeout(600)

WORKFLOW = ".github/workflows/coding-agent.yml"
SECRETS = {"PULUMI_CONFIG_PASSPHRASE": "correct horse", "ANTHROPIC_API_KEY": API_KEY}
_EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")


@dataclasses.dataclass
class GitHub:
    """A repository as GitHub has it, and its jobs: each a clone and a home of its own, on the same machine here."""

    root: Path
    user: User  # who works on the repository at home
    jobs: list[User] = dataclasses.field(default_factory=list)

    @property
    def repository(self) -> Path:
        """The bare repository."""
        return self.root / "owner" / "shop"

    def push(self, message: str = "Work", branch: str = "main") -> str:
        """Commit everything in the user's project and push it; return the commit."""
        commit = self.user.commit_all(message)
        if not self.repository.exists():
            self.user.git("init", "-q", "--bare", str(self.repository))
            self.user.git("--git-dir", str(self.repository), "config", "uploadpack.allowAnySHA1InWant", "true")
        self.user.git("push", "-q", str(self.repository), f"HEAD:refs/heads/{branch}")
        return commit

    def run(self, job: str, *, at: str = "main", code: int = 0, **event: str) -> str:
        """Run the shell steps of a job but the installation, on a new machine; return what they have shown."""
        number = len(self.jobs)
        folder = self.root / f"job-{number}"
        there = self.user.elsewhere(folder / "home")
        self.jobs.append(dataclasses.replace(there, project=folder / "shop"))
        self.user.git("clone", "-q", "--no-checkout", f"file://{self.repository}", str(folder / "shop"))
        # What is checked out is the workflow's too: of a pull request from outside the base branch's.
        subprocess.run(["git", "checkout", "-q", at], cwd=folder / "shop", check=True)
        found = yaml.safe_load((folder / "shop" / WORKFLOW).read_text())
        context = self._context(folder, event)
        shared = self._environment(found.get("env", {}), context)
        of_job = self._environment(found["jobs"][job].get("env", {}), context)
        (folder / "temp").mkdir()
        known = {"GITHUB_SERVER_URL": f"file://{self.root}", "GITHUB_REPOSITORY": "owner/shop"}
        known |= {"RUNNER_TEMP": str(folder / "temp"), "GITHUB_STEP_SUMMARY": str(folder / "summary"), "CI": "true"}
        environment = {**there.environment, **known, **shared, **of_job}
        shown, failed = "", 0
        for step in found["jobs"][job]["steps"]:
            # The wheel's own test installs; a step after one that failed is run only where it says so.
            if "run" not in step or step["name"] == "Install" or (failed and step.get("if") != "always()"):
                continue
            of_step = self._environment(step.get("env", {}), context)
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=folder / "shop",
                env={**environment, **of_step},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
            shown += done.stdout
            failed = failed or done.returncode
        assert failed == code, shown
        for secret in SECRETS.values():
            assert secret not in shown
        return shown

    def _context(self, folder: Path, event: Mapping[str, str]) -> dict[str, str]:
        return {
            **{f"secrets.{name}": value for name, value in SECRETS.items()},
            "vars.PULUMI_BACKEND_URL": f"file://{self.root}/state",
            "vars.CODING_AGENT_OUTSIDE_TASK || 'review'": "review",
            "github.workspace": str(folder / "shop"),
            "github.token": "ghs_token",
            **{f"github.event.{name.replace('__', '.')}": value for name, value in event.items()},
        }

    def _environment(self, said: Mapping[str, Any], context: Mapping[str, str]) -> dict[str, str]:
        return {name: _EXPRESSION.sub(lambda found: context[found[1]], str(value)) for name, value in said.items()}

    def branches(self) -> set[str]:
        """Return the branches that the repository has."""
        said = self.user.git("--git-dir", str(self.repository), "for-each-ref", "--format=%(refname)", "refs/heads")
        return {line.removeprefix("refs/heads/") for line in said.split()}

    def show(self, what: str) -> str:
        """Return a file of a branch: BRANCH:PATH."""
        return self.user.git("--git-dir", str(self.repository), "show", what)


@pytest.fixture
def github(user: User, tmp_path: Path) -> Iterator[GitHub]:
    """Return a repository with a project, its workflow, and executors that find this machine's agent."""
    scaffold(user.project, github=True)
    (user.project / ".github" / "coding-agent.yaml").write_text(user.executors_file.read_text())
    (user.project / "tasks" / "example.yaml").unlink()
    (tmp_path / "github" / "state").mkdir(parents=True)
    hub = GitHub(tmp_path / "github", user)
    yield hub
    for job in hub.jobs:
        end_processes_of(job.home)


def test_the_main_branch_is_what_shall_be(github: GitHub) -> None:
    """Each push runs what is new or changed, keeps the rest, removes what is gone, and pushes the agents' commits."""
    user = github.user
    user.job("docs", prompt=scenario("edit", file="docs.txt"), repo=".", uncommitted="ignore")
    user.job("check", command="true")
    github.push()
    shown = github.run("tasks")
    assert "2 created" in shown
    assert github.branches() == {"main", "coding-agent/docs"}
    assert github.show("coding-agent/docs:docs.txt") == "the second line\n"

    # Another machine, the same state: nothing is run twice.
    assert "2 kept" in github.run("tasks")
    assert len(user.api.sessions()) == 1

    user.job("check", command="exit 7")
    (user.project / "tasks" / "docs.yaml").unlink()
    github.push("Another")
    shown = github.run("tasks", code=1)
    assert "1 replaced" in shown
    assert "1 destroyed" in shown
    assert "check: failed (exit_code" in shown
    assert github.branches() == {"main", "coding-agent/docs"}


def test_a_pull_request_of_our_own_is_previewed(github: GitHub) -> None:
    """For a pull request from a branch of the repository it is shown what merging it would do; nothing is run."""
    github.user.job("check", command="true")
    github.push()
    github.run("tasks")
    github.user.job("more", command="true")
    github.push("More", branch="feature")

    shown = github.run("preview", at="feature")

    assert "1 kept, 1 created" in shown or "1 created, 1 kept" in shown
    github.user.task("broken", "prompt: [")
    github.push("Broken", branch="feature")
    assert "tasks/broken.yaml:" in github.run("preview", at="feature", code=2)


def test_a_pull_request_from_outside_runs_the_base_branchs_code(github: GitHub) -> None:
    """A labeled pull request is worked on by the base branch's task, with the base branch's project and agent settings
    wherever they lie; of what is proposed there only the rest counts."""
    user, project = github.user, github.user.project
    look = "cat README CLAUDE.md .mcp.json .claude/settings.json sub/CLAUDE.md; ls -a . sub .claude"
    user.job("review", prompt=scenario("bash", command=f"({look}) >seen.txt 2>&1"), repo=".", uncommitted="ignore")
    ours = {"README": "ours", "CLAUDE.md": "our rules", ".claude/settings.json": "{}", "sub/CLAUDE.md": "our sub rules"}
    for name, text in ours.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text + "\n")
    github.push()
    hook = {"type": "command", "command": "touch hacked"}
    theirs = {
        "README": "theirs",
        "CLAUDE.md": "evil rules",
        ".mcp.json": '{"mcpServers": {"evil": {"command": "touch", "args": ["hacked"]}}}',
        ".claude/settings.json": json.dumps({"hooks": {"SessionStart": [{"hooks": [hook]}]}}),
        ".claude/agents/evil.md": "evil",
        "sub/.claude/settings.local.json": "{}",
        "sub/AGENTS.md": "evil",
        ":(top)tasks/x": "a name that is a pathspec",
        "infra/__main__.py": "raise SystemExit('evil')",
        "tasks/review.yaml": json.dumps({"command": "echo evil >seen.txt"}),
        "tasks/more.yaml": json.dumps({"command": "touch hacked"}),
        ".github/coding-agent.yaml": "executors: []",
        ".gitattributes": "* filter=evil",
    }
    user.git("checkout", "-q", "-b", "proposed")
    for name, text in theirs.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text + "\n")
    (project / "sub" / "CLAUDE.md").unlink()
    user.git("add", "-A")
    user.git("commit", "-q", "-m", "Evil")
    head = user.git("rev-parse", "HEAD").strip()
    user.git("push", "-q", str(github.repository), f"{head}:refs/pull/1/head")

    github.run("outside", pull_request__head__sha=head)

    job = github.jobs[-1]
    outputs = job.outputs("review")
    assert (outputs["status"], outputs["num_turns"]) == ("succeeded", 2)
    patch = Path(outputs["patch"]).read_text()
    for words in ("+theirs", "+our rules", "+our sub rules", "+{}", "+cat: .mcp.json: No such file"):
        assert words in patch, patch
    for words in ("evil", "hacked", "settings.local.json", "AGENTS.md"):
        assert words not in patch, patch
    assert (job.project / ":(top)tasks" / "x").exists()
    assert not list(job.project.rglob("hacked"))
    assert len(github.user.api.sessions()) == 1
    assert (job.home.parent / "summary").read_text() == "It ran.\n"


def test_nothing_runs_unless_it_is_asked_for(github: GitHub) -> None:
    """Tasks run for pushes to the main branch alone; for a pull request from outside only where the label was set."""
    found = yaml.safe_load((github.user.project / WORKFLOW).read_text())
    when = {name: job["if"] for name, job in found["jobs"].items()}
    assert when == {
        "tasks": "github.event_name == 'workflow_dispatch' || github.event_name == 'push'",
        "preview": "github.event_name == 'pull_request' && "
        "github.event.pull_request.head.repo.full_name == github.repository",
        "outside": "github.event_name == 'pull_request_target' && github.event.label.name == 'run-agent'",
    }
    # `on` is YAML 1.1's true.
    events = found[True]
    assert (events["push"], events["pull_request_target"]) == ({"branches": ["main"]}, {"types": ["labeled"]})
    outside = found["jobs"]["outside"]
    assert "PULUMI_CONFIG_PASSPHRASE" not in str(outside)
    assert found["permissions"] == {"contents": "read"}
    assert "permissions" not in outside
    for job in found["jobs"].values():
        (checkout,) = [each for each in job["steps"] if each.get("uses", "").startswith("actions/checkout")]
        assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
