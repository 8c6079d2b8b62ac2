"""The files of a new project."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from coding_agent import task
from coding_agent.errors import InvalidInput
from coding_agent.scaffold import scaffold


def test_a_project_is_made_whole(tmp_path: Path) -> None:
    """A new project has the engine's files, a provider that can be started, and a task that is valid."""
    root = tmp_path / "My Shop"
    root.mkdir()

    made = scaffold(root)

    settings = yaml.safe_load((root / "Pulumi.yaml").read_text())
    assert settings["name"].startswith("My-Shop-")
    (plugin,) = settings["plugins"]["providers"]
    assert os.access(root / plugin["path"] / "pulumi-resource-coding-agent", os.X_OK)
    assert (root / settings["main"] / "__main__.py").is_file()
    assert task.load(root / "tasks" / "example.yaml", settings=None).root == root
    assert sorted(made) == sorted(path for path in root.rglob("*") if path.is_file())


def test_a_project_made_by_init_is_like_this_one(tmp_path: Path) -> None:
    """What a new project gets is what this repository itself uses."""
    here = Path(__file__).parents[2]
    scaffold(tmp_path, "coding-agent")

    for name in ("infra/__main__.py", "infra/plugin/pulumi-resource-coding-agent"):
        assert (tmp_path / name).read_bytes() == (here / name).read_bytes()
    assert yaml.safe_load((tmp_path / "Pulumi.yaml").read_text()) == yaml.safe_load((here / "Pulumi.yaml").read_text())


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A file that exists is never written over, and making a project twice makes nothing."""
    (tmp_path / "Pulumi.yaml").write_text("name: mine\n")

    made = scaffold(tmp_path)

    assert (tmp_path / "Pulumi.yaml").read_text() == "name: mine\n"
    assert tmp_path / "Pulumi.yaml" not in made
    assert scaffold(tmp_path) == []


def test_two_projects_of_one_name_differ(tmp_path: Path) -> None:
    """Two folders of the same name become projects of different names."""
    names = set()
    for parent in ("one", "two"):
        root = tmp_path / parent / "shop"
        root.mkdir(parents=True)
        scaffold(root)
        names.add(yaml.safe_load((root / "Pulumi.yaml").read_text())["name"])

    assert len(names) == 2


def test_a_stacks_file_is_kept_out_of_git(tmp_path: Path) -> None:
    """The file with a stack's encryption salt is ignored by git, in a project that has an ignore file of its own."""
    (tmp_path / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    scaffold(tmp_path)

    ignored = subprocess.run(["git", "check-ignore", "stacks/Pulumi.job.yaml"], cwd=tmp_path, capture_output=True)

    assert ignored.returncode == 0
    assert (tmp_path / ".gitignore").read_text() == "*.log\n"


@pytest.mark.parametrize("name", ["a b", "", "ä", "x" * 101])
def test_a_name_that_the_engine_refuses_is_refused(tmp_path: Path, name: str) -> None:
    """A project's name that the engine does not take is bad input, and nothing is made."""
    with pytest.raises(InvalidInput):
        scaffold(tmp_path, name)

    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    """A file where a folder has to be is bad input, said with its name."""
    (tmp_path / "infra").write_text("")

    with pytest.raises(InvalidInput, match="infra"):
        scaffold(tmp_path)
