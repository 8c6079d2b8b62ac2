"""Real repositories for tests: the user's, and the one that a run's target makes of what it was sent."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

WORK = "refs/coding-agent/work"
BRANCH = "coding-agent/fix"


@dataclass(frozen=True)
class Checkout:
    """A repository on disk, used through plain git with the environment's own configuration."""

    path: Path

    def git(self, *arguments: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> str:
        """Run git here; an exit code other than 0 fails the test."""
        argv = ["git", *arguments]
        done = subprocess.run(
            argv, cwd=self.path, env={**os.environ, **(env or {})}, input=stdin, capture_output=True, timeout=60
        )
        assert done.returncode == 0, (argv, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="surrogateescape").strip()

    def write(self, files: dict[str, str | bytes]) -> None:
        """Write files, their folders too."""
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, files: dict[str, str | bytes], message: str = "a change") -> str:
        """Commit files and return the commit."""
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.head

    @property
    def head(self) -> str:
        """Return the commit that HEAD names."""
        return self.git("rev-parse", "HEAD")

    @property
    def refs(self) -> dict[str, str]:
        """Return all references."""
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return dict(line.split(" ") for line in lines)

    def state(self) -> tuple[object, ...]:
        """Return what nobody may change behind the user's back: references, HEAD, index, status and files."""
        index = Path(self.git("rev-parse", "--absolute-git-dir")) / "index"
        files = {p.relative_to(self.path): p.read_bytes() for p in self.path.rglob("*") if _own(p, self.path)}
        head = (index.parent / "HEAD").read_bytes()
        return self.refs, head, index.read_bytes(), files, (index.parent / "FETCH_HEAD").exists()

    def objects(self) -> set[str]:
        """Return the names of all objects."""
        out = self.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
        return set(out.split())


def _own(path: Path, top: Path) -> bool:
    return path.is_file() and ".git" not in path.relative_to(top).parts


def new_checkout(path: Path, files: dict[str, str | bytes] | None = None) -> Checkout:
    """Make a repository with one commit on main."""
    path.mkdir(parents=True)
    checkout = Checkout(path)
    checkout.git("init", "-q", "-b", "main")
    checkout.commit(files if files is not None else {"README": "hello\n", "src/a.py": "print(1)\n"}, "first")
    return checkout


def received(bundle: Path, ref: str, shallow: bytes | None, path: Path) -> Checkout:
    """Make of a bundle the checkout that a target makes of it."""
    path.mkdir(parents=True)
    target = Checkout(path)
    target.git("init", "-q")
    if shallow is not None:
        (path / ".git" / "shallow").write_bytes(shallow)
    target.git("fetch", "-q", "--no-tags", str(bundle), f"+{ref}:refs/coding-agent/base")
    target.git("checkout", "-q", "-b", "work", "refs/coding-agent/base")
    return target


def work_bundle(target: Checkout, *arguments: str, ref: str = WORK) -> Path:
    """Write the target's HEAD under `ref` as a bundle; `arguments` are for `git bundle create`."""
    target.git("update-ref", ref, "HEAD")
    bundle = target.path.parent / f"{target.path.name}.bundle"
    target.git("bundle", "create", "-q", str(bundle), *(arguments or (ref, "^refs/coding-agent/base")))
    return bundle
