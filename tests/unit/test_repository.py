"""A repository on its way out: what the bundle holds, what is refused, and that the user's checkout stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkouts import Checkout, new_checkout, received
from coding_agent import repository
from coding_agent.errors import InvalidInput
from coding_agent.git import Git, GitFailed
from waiting import until

pytestmark = pytest.mark.usefixtures("home")
HELD = "refs/coding-agent/base/"


@pytest.fixture
def user(tmp_path: Path) -> Checkout:
    """Return the user's repository."""
    return new_checkout(tmp_path / "user")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """Return the folder that bundles are written into."""
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_head_arrives_with_its_history_and_nothing_is_left_behind(user: Checkout, into: Path, tmp_path: Path) -> None:
    """The target gets HEAD and its history; references, index, work tree and objects of the user stay as they were."""
    head = user.commit({"b": "2\n"})
    before, objects = user.state(), user.objects()
    packed = repository.pack(user.path, uncommitted="refuse", into=into)
    assert (packed.head, packed.branch, packed.shallow) == (head, "main", None)
    assert packed.identity == ("A Tester", "tester@example.invalid")
    assert (user.state(), user.objects()) == (before, objects)
    assert [entry.name for entry in into.iterdir()] == ["repo.bundle"]
    target = received(packed.bundle, packed.ref, packed.shallow, tmp_path / "target")
    assert target.head == head
    assert target.git("log", "--format=%s") == "a change\nfirst"


def test_only_head_travels(user: Checkout, into: Path, tmp_path: Path) -> None:
    """Other branches, tags and stashes stay at home."""
    user.git("checkout", "-q", "-b", "private")
    private = user.commit({"diary": "dear diary"})
    user.git("tag", "v1")
    user.git("checkout", "-q", "main")
    packed = repository.pack(user.path, uncommitted="refuse", into=into)
    target = received(packed.bundle, packed.ref, None, tmp_path / "target")
    assert private not in target.objects()
    assert set(target.refs) == {"refs/coding-agent/base", "refs/heads/work"}


def test_a_folder_in_the_repository_stands_for_all_of_it(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A project in a folder of a larger repository sends the whole repository, and changes anywhere count."""
    packed = repository.pack(user.path / "src", uncommitted="refuse", into=into)
    assert (received(packed.bundle, packed.ref, None, tmp_path / "target").path / "README").exists()
    user.write({"new": ""})
    with pytest.raises(InvalidInput, match="uncommitted changes: new"):
        repository.pack(user.path / "src", uncommitted="refuse", into=into)


def test_uncommitted_changes_are_refused_with_their_names(user: Checkout, into: Path) -> None:
    """Changed, staged, deleted and untracked files are named, and the ways out are said; ignored ones do not count."""
    user.commit({".gitignore": "*.log\n", "gone": "x"})
    user.write({"README": "changed\n", "new file": "", "sub/ümlaut": "", "a.log": "", "staged": "1"})
    user.git("add", "staged")
    (user.path / "gone").unlink()
    with pytest.raises(InvalidInput) as caught:
        repository.pack(user.path, uncommitted="refuse", into=into)
    for name in ("README", "new file", "sub/ümlaut", "gone", "staged"):
        assert name in caught.value.message
    assert "a.log" not in caught.value.message
    assert "uncommitted: include" in (caught.value.next_step or "")


def test_of_many_uncommitted_files_twenty_are_named(user: Checkout, into: Path) -> None:
    """A message stays readable: twenty names and the number of the others."""
    user.write({f"file{number:03}": "" for number in range(50)})
    with pytest.raises(InvalidInput, match="file019 and 30 more\n"):
        repository.pack(user.path, uncommitted="refuse", into=into)


def test_a_hostile_file_name_does_not_reach_the_terminal(user: Checkout, into: Path) -> None:
    """Control characters in the names that a message lists are neutralised."""
    user.write({"\x1b[31mred\n::set-output x": ""})
    with pytest.raises(InvalidInput) as caught:
        repository.pack(user.path, uncommitted="refuse", into=into)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


def test_ignore_sends_head(user: Checkout, into: Path, tmp_path: Path) -> None:
    """`uncommitted: ignore` sends HEAD as it is."""
    user.write({"README": "changed\n", "new": ""})
    before = user.state()
    packed = repository.pack(user.path, uncommitted="ignore", into=into)
    assert packed.head == user.head
    assert user.state() == before
    target = received(packed.bundle, packed.ref, None, tmp_path / "target")
    assert (target.path / "README").read_text() == "hello\n"


def test_include_sends_the_work_tree(user: Checkout, into: Path, tmp_path: Path) -> None:
    """`uncommitted: include` sends staged, unstaged, deleted and untracked work as a commit on HEAD."""
    user.commit({"gone": "x", ".gitignore": "*.log\n"})
    user.write({"README": "changed\n", "new": "n\n", "staged": "s\n", "a.log": "no"})
    user.git("add", "staged")
    (user.path / "gone").unlink()
    before = user.state()
    packed = repository.pack(user.path, uncommitted="include", into=into)
    after = user.state()
    assert after[1:] == before[1:], "HEAD, index and files stay as they were"
    assert user.refs == {"refs/heads/main": user.head, HELD + packed.head: packed.head}
    target = received(packed.bundle, packed.ref, None, tmp_path / "target")
    assert target.git("rev-parse", "HEAD~1") == user.head
    names = sorted(path.name for path in target.path.iterdir())
    assert names == [".git", ".gitignore", "README", "new", "src", "staged"]
    assert (target.path / "README").read_text() == "changed\n"
    assert target.git("log", "-1", "--format=%an <%ae>") == "A Tester <tester@example.invalid>"


def test_the_commit_of_uncommitted_work_is_kept_until_it_is_released(user: Checkout, into: Path) -> None:
    """Pruning does not take what the agent's commits will stand on; `release` leaves no reference behind."""
    user.write({"new": "n\n"})
    packed = repository.pack(user.path, uncommitted="include", into=into)
    user.git("gc", "-q", "--prune=now")
    assert packed.head in user.objects()
    repository.release(user.path, packed.head)
    repository.release(user.path, packed.head)
    assert user.refs == {"refs/heads/main": user.head}


def test_release_of_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    """A repository that has gone, and a base that is none, are nothing to release."""
    repository.release(tmp_path / "gone", "0" * 40)
    repository.release(tmp_path, "HEAD")


def test_include_without_changes_sends_head(user: Checkout, into: Path) -> None:
    """With nothing uncommitted there is no extra commit and no reference."""
    assert repository.pack(user.path, uncommitted="include", into=into).head == user.head
    assert set(user.refs) == {"refs/heads/main"}


def test_include_without_an_identity(user: Checkout, into: Path, home: Path) -> None:
    """A machine without user.name and user.email can send uncommitted work too."""
    (home / ".gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    user.write({"new": ""})
    packed = repository.pack(user.path, uncommitted="include", into=into)
    assert packed.identity is None
    assert user.git("log", "-1", "--format=%an", packed.head) == "coding-agent"


def test_conflicts_are_not_included(user: Checkout, into: Path) -> None:
    """A merge with unresolved conflicts is refused, its files named."""
    user.git("checkout", "-q", "-b", "other")
    user.commit({"README": "theirs\n"})
    user.git("checkout", "-q", "main")
    user.commit({"README": "ours\n"})
    with pytest.raises(AssertionError):
        user.git("merge", "other")
    with pytest.raises(InvalidInput, match="unresolved conflicts: README"):
        repository.pack(user.path, uncommitted="include", into=into)


def test_not_a_repository(tmp_path: Path, into: Path) -> None:
    """A folder outside of any repository is named, with what to do."""
    with pytest.raises(InvalidInput, match="is not in a git repository") as caught:
        repository.pack(into, uncommitted="refuse", into=into)
    assert "git init" in (caught.value.next_step or "")
    with pytest.raises(GitFailed, match="does not exist"):
        repository.pack(tmp_path / "nowhere", uncommitted="refuse", into=into)


def test_no_commit_yet(tmp_path: Path, into: Path) -> None:
    """An empty repository is said to be one."""
    Checkout(tmp_path).git("init", "-q", "empty")
    with pytest.raises(InvalidInput, match="has no commit yet"):
        repository.pack(tmp_path / "empty", uncommitted="refuse", into=into)


def test_git_is_missing(user: Checkout, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git the message says so, and not something about the repository."""
    monkeypatch.setenv("PATH", str(into))
    with pytest.raises(GitFailed, match="git is not installed"):
        repository.pack(user.path, uncommitted="refuse", into=into)


def test_another_users_repository(user: Checkout, into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of another user is refused as git refuses it, with the command that would allow it."""
    # Only root could give the repository away: git itself is told to take it for another's.
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexport GIT_TEST_ASSUME_DIFFERENT_OWNER=1\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    with pytest.raises(InvalidInput, match="belongs to another user") as caught:
        repository.pack(user.path, uncommitted="refuse", into=into)
    assert f"safe.directory {user.path}" in (caught.value.next_step or "")


def test_submodules_are_refused_by_name(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A repository with submodules is refused and each one is named."""
    library = new_checkout(tmp_path / "library")
    user.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library.path), "vendor/library")
    user.git("commit", "-q", "-m", "a submodule")
    with pytest.raises(InvalidInput, match=r"submodules can't travel.*vendor/library"):
        repository.pack(user.path, uncommitted="ignore", into=into)


def test_repositories_inside_are_refused_by_name(user: Checkout, into: Path) -> None:
    """An untracked repository in the checkout is named, whether it has commits or not."""
    new_checkout(user.path / "tools" / "inner")
    (user.path / "void").mkdir()
    Checkout(user.path / "void").git("init", "-q")
    user.write({"void/file": ""})
    with pytest.raises(InvalidInput, match="inside the repository") as caught:
        repository.pack(user.path, uncommitted="include", into=into)
    assert "tools/inner" in caught.value.message
    assert set(user.refs) == {"refs/heads/main"}
    with pytest.raises(InvalidInput, match="tools/inner"):
        repository.pack(user.path, uncommitted="refuse", into=into)
    assert repository.pack(user.path, uncommitted="ignore", into=into).head == user.head


def test_lfs_files_are_refused_by_name(user: Checkout, into: Path) -> None:
    """Files stored with Git LFS are named; an attribute that no file has is no reason to refuse."""
    user.commit({".gitattributes": "*.psd filter=lfs diff=lfs merge=lfs -text\n"})
    repository.pack(user.path, uncommitted="refuse", into=into)
    user.commit({"art/logo.psd": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
    with pytest.raises(InvalidInput, match=r"Git LFS.*art/logo\.psd"):
        repository.pack(user.path, uncommitted="refuse", into=into)


def test_partial_clones_are_refused(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A clone that lacks objects is refused instead of fetching them behind the user's back."""
    user.git("config", "uploadpack.allowFilter", "true")
    user.git("clone", "-q", "--filter=blob:none", f"file://{user.path}", str(tmp_path / "partial"))
    with pytest.raises(InvalidInput, match="partial clone"):
        repository.pack(tmp_path / "partial", uncommitted="refuse", into=into)


def test_sha256_repositories_are_refused(tmp_path: Path, into: Path) -> None:
    """A repository with SHA-256 names is refused by name."""
    Checkout(tmp_path).git("init", "-q", "--object-format=sha256", "new")
    Checkout(tmp_path / "new").commit({"a": ""})
    with pytest.raises(InvalidInput, match="SHA-256"):
        repository.pack(tmp_path / "new", uncommitted="refuse", into=into)


def test_a_shallow_clone_travels(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A clone of depth 1, as CI makes it, arrives in a state in which git log works; also with uncommitted work."""
    for number in range(3):
        user.commit({"n": str(number)})
    user.git("branch", "other", "HEAD~1")
    clone = Checkout(tmp_path / "clone")
    user.git("clone", "-q", "--depth=1", "--no-single-branch", f"file://{user.path}", str(clone.path))
    clone.write({"new": ""})
    packed = repository.pack(clone.path, uncommitted="include", into=into)
    assert packed.shallow
    target = received(packed.bundle, packed.ref, packed.shallow, tmp_path / "target")
    assert target.git("log", "--format=%s") == "Uncommitted changes at the start of the run\na change"
    target.git("fsck", "--connectivity-only")


def test_a_detached_head_travels(user: Checkout, into: Path) -> None:
    """CI checks out a commit and no branch."""
    user.git("checkout", "-q", "--detach")
    packed = repository.pack(user.path, uncommitted="refuse", into=into)
    assert (packed.branch, packed.head) == (None, user.head)


def test_a_linked_checkout_travels(user: Checkout, into: Path, tmp_path: Path) -> None:
    """In a linked work tree (.git is a file) its own HEAD, index and files count."""
    user.git("worktree", "add", "-q", "-b", "feature", str(tmp_path / "linked"))
    linked = Checkout(tmp_path / "linked")
    linked.commit({"f": "1"})
    linked.write({"new": ""})
    packed = repository.pack(linked.path, uncommitted="include", into=into)
    assert packed.branch == "feature"
    assert user.git("rev-parse", f"{packed.head}~1") == linked.head
    assert user.git("ls-tree", "--name-only", packed.head).split() == ["README", "f", "new", "src"]


def test_a_bare_repository_travels(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A bare repository has nothing uncommitted and sends HEAD."""
    user.git("clone", "-q", "--bare", str(user.path), str(tmp_path / "bare.git"))
    for choice in ("refuse", "include"):
        assert repository.pack(tmp_path / "bare.git", uncommitted=choice, into=into).head == user.head


def test_a_clone_that_borrows_objects_travels(user: Checkout, into: Path, tmp_path: Path) -> None:
    """A clone made with --shared sends also what it has from the other repository."""
    user.git("clone", "-q", "--shared", str(user.path), str(tmp_path / "clone"))
    packed = repository.pack(tmp_path / "clone", uncommitted="refuse", into=into)
    assert received(packed.bundle, packed.ref, None, tmp_path / "target").head == user.head


def test_variables_of_a_hook_do_not_redirect(user: Checkout, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from a git hook of another repository, the repository that was asked for is the one that is used."""
    other = new_checkout(into.parent / "other")
    before = other.state()
    user.write({"new": ""})
    variables = {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_WORK_TREE": str(other.path),
        "GIT_INDEX_FILE": str(other.path / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(other.path / ".git" / "objects"),
        "GIT_PREFIX": "src/",
        "GIT_NAMESPACE": "x",
        "GIT_CONFIG_PARAMETERS": "'core.bare'='true'",
    }
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        packed = repository.pack(user.path, uncommitted="include", into=into)
    assert user.git("rev-parse", f"{packed.head}~1") == user.head
    assert other.state() == before


def test_nothing_of_the_users_git_runs(user: Checkout, into: Path, home: Path) -> None:
    """Hooks, the file system monitor, aliases and configured programs do not run, wherever they are configured."""
    trace = into / "trace"
    program = home / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >>{trace}\n')
    program.chmod(0o755)
    hooks = home / "hooks"
    hooks.mkdir()
    for hook in ("reference-transaction", "pre-commit", "post-index-change", "post-checkout", "pre-auto-gc"):
        (hooks / hook).symlink_to(program)
        (user.path / ".git" / "hooks" / hook).symlink_to(program)
    with (home / ".gitconfig").open("a") as file:
        file.write(f"[core]\n\thooksPath = {hooks}\n\tfsmonitor = {program}\n\tpager = {program}\n")
        file.write(f'[alias]\n\tstatus = "!{program}"\n[gpg]\n\tprogram = {program}\n[commit]\n\tgpgSign = true\n')
        file.write(f"[gc]\n\tauto = 1\n[diff]\n\texternal = {program}\n[status]\n\tshowUntrackedFiles = no\n")
    user.write({"new": ""})
    packed = repository.pack(user.path, uncommitted="include", into=into)
    repository.release(user.path, packed.head)
    assert not trace.exists(), trace.read_text()
    assert "new" in user.git("-c", "core.hooksPath=/dev/null", "ls-tree", "--name-only", packed.head)


def test_a_split_index_stays(user: Checkout, into: Path) -> None:
    """A user's split index is read, and no part of it is written."""
    user.git("update-index", "--split-index")
    user.write({"new": ""})
    before = user.state(), sorted((user.path / ".git").glob("sharedindex.*"))
    packed = repository.pack(user.path, uncommitted="include", into=into)
    repository.release(user.path, packed.head)
    assert (user.state(), sorted((user.path / ".git").glob("sharedindex.*"))) == before


def test_a_command_that_takes_too_long_is_ended_with_its_children(
    user: Checkout, processes_with: Callable[[str], list[int]], tmp_path: Path
) -> None:
    """A time limit ends git and what git has started, and says so."""
    git = Git.of_user(user.path)
    with pytest.raises(GitFailed, match=r"took longer than 0\.5 s"):
        git.ask("-c", f"alias.wait=!sleep 300 # {tmp_path}", "wait", timeout=0.5)
    until(lambda: not processes_with(f"sleep 300 # {tmp_path}"))
