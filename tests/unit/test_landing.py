"""The agent's commits on their way back: they become a branch, and a hostile bundle becomes nothing."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path

import pytest

from checkouts import BRANCH, WORK, Checkout, new_checkout, received, work_bundle
from coding_agent import landing, repository
from coding_agent.errors import InvalidInput, Untrusted
from coding_agent.git import GitFailed
from coding_agent.landing import Landed, Limits
from coding_agent.redaction import Redactor

pytestmark = pytest.mark.usefixtures("home")

SECRET = "canary-4f1c9a7be2"
REF = f"refs/heads/{BRANCH}"


@dataclass(frozen=True)
class Trip:
    """A repository, what was sent of it and the target's checkout of that."""

    user: Checkout
    target: Checkout
    base: str

    def land(self, bundle: Path | None = None, **changes: object) -> Landed:
        """Land the target's work in the user's repository."""
        given = {"branch": BRANCH, "base": self.base, "redactor": Redactor({"TOKEN": SECRET}), **changes}
        return landing.land(self.user.path, bundle or work_bundle(self.target), **given)  # type: ignore[arg-type]

    def refused(self, bundle: Path | None = None, match: str | None = None, **changes: object) -> None:
        """Expect the bundle to be refused with that reason and the user's repository to stay as it was."""
        bundle = bundle or work_bundle(self.target)
        before, objects = self.user.state(), self.user.objects()
        with pytest.raises(Untrusted, match=match):
            self.land(bundle, **changes)
        assert (self.user.state(), self.user.objects()) == (before, objects)
        assert not list(bundle.parent.glob(".landing-*"))


def sent(user: Checkout, folder: Path, uncommitted: repository.Uncommitted = "refuse") -> Trip:
    """Send the user's repository to a target."""
    into = folder / "into"
    into.mkdir()
    packed = repository.pack(user.path, uncommitted=uncommitted, into=into)
    return Trip(user, received(packed.bundle, packed.ref, packed.shallow, folder / "target"), packed.head)


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    """Return a repository that was sent to a target."""
    return sent(new_checkout(tmp_path / "user"), tmp_path)


def test_commits_arrive_as_the_branch(trip: Trip) -> None:
    """The agent's commits become the branch; HEAD, index, files and every other reference stay as they were."""
    trip.target.commit({"b": "2\n"}, "second")
    tip = trip.target.commit({"src/a.py": "print(2)\n"}, "third")
    trip.user.write({"README": "the user goes on\n", "new": ""})
    before = trip.user.state()
    assert trip.land() == Landed(BRANCH)
    assert trip.user.refs == {"refs/heads/main": trip.base, REF: tip}
    assert trip.user.state()[1:] == before[1:]
    assert trip.user.git("log", "--format=%s", BRANCH) == "third\nsecond\nfirst"
    assert trip.user.git("fsck", "--no-dangling") == ""


def test_landing_twice_finds_the_branch(trip: Trip) -> None:
    """Collecting again makes no second branch, also after other branches of that name were removed."""
    trip.target.commit({"b": "2\n"})
    assert trip.land().branch == BRANCH
    assert trip.land() == Landed(BRANCH)
    trip.user.git("branch", "-m", BRANCH, f"{BRANCH}-2")
    assert trip.land().branch == f"{BRANCH}-2"
    assert len(trip.user.refs) == 2


def test_a_full_bundle_lands(trip: Trip) -> None:
    """A bundle with the whole history lands as well; of it only what is new is looked at and copied."""
    trip.user.commit({"old": SECRET})
    folder = trip.user.path.parent / "again"
    folder.mkdir()
    again = sent(trip.user, folder)
    tip = again.target.commit({"b": "2\n"})
    assert again.land(work_bundle(again.target, WORK)) == Landed(BRANCH)
    assert trip.user.git("rev-parse", BRANCH) == tip


def test_merges_of_older_commits_land(trip: Trip, tmp_path: Path) -> None:
    """The agent may branch off an older commit and merge: each commit that its work stands on is an ancestor."""
    trip.user.commit({"c": "3\n"})
    folder = tmp_path / "again"
    folder.mkdir()
    again = sent(trip.user, folder)
    again.target.git("checkout", "-q", "-b", "side", "HEAD~1")
    again.target.commit({"side": "s\n"})
    again.target.git("checkout", "-q", "work")
    again.target.git("merge", "-q", "--no-edit", "side")
    assert again.land() == Landed(BRANCH)


def test_no_commits_make_no_branch(trip: Trip) -> None:
    """A bundle without anything new is nothing to land."""
    assert trip.land(work_bundle(trip.target, WORK)) == Landed(None)
    assert set(trip.user.refs) == {"refs/heads/main"}


def test_a_branch_with_other_commits_is_left_alone(trip: Trip) -> None:
    """Someone's commits are never overwritten: the branch gets a number, and that is said."""
    trip.user.git("branch", BRANCH)
    trip.user.git("checkout", "-q", "-b", f"{BRANCH}-2")
    theirs = trip.user.commit({"theirs": "x"})
    trip.user.git("branch", "-f", BRANCH)
    trip.user.git("checkout", "-q", "main")
    trip.target.commit({"b": "2\n"})
    landed = trip.land()
    assert landed.branch == f"{BRANCH}-3"
    assert landed.notices == (f"the commits are in {BRANCH}-3, not in {BRANCH}: it holds other commits",)
    assert trip.user.refs[REF] == trip.user.refs[f"{REF}-2"] == theirs


def test_a_branch_that_the_commits_build_on_moves_on(trip: Trip) -> None:
    """A branch of that name whose commits the new ones contain is moved forward."""
    trip.user.git("branch", BRANCH)
    tip = trip.target.commit({"b": "2\n"})
    assert trip.land() == Landed(BRANCH)
    assert trip.user.refs[REF] == tip


@pytest.mark.parametrize("how", ["checked out", "in another checkout", "unborn", "rebasing", "bisecting"])
def test_a_branch_in_use_is_left_alone(trip: Trip, tmp_path: Path, how: str) -> None:
    """A branch that somebody works on does not move under him, in no checkout, even where it could be moved forward."""
    checkout = trip.user
    if how == "in another checkout":
        trip.user.git("worktree", "add", "-q", "-b", BRANCH, str(tmp_path / "linked"))
    elif how == "unborn":
        trip.user.git("checkout", "-q", "--orphan", BRANCH)
    else:
        trip.user.git("checkout", "-q", "-b", BRANCH)
    if how == "rebasing":
        trip.user.git("rebase", "-q", "--force-rebase", "-i", "--root", env={"GIT_SEQUENCE_EDITOR": "sed -i 1ibreak"})
    elif how == "bisecting":
        trip.user.git("worktree", "add", "-q", "--detach", str(tmp_path / "linked"))
        trip.user.git("checkout", "-q", "main")
        checkout = Checkout(tmp_path / "linked")
        checkout.git("checkout", "-q", BRANCH)
        checkout.git("bisect", "start")
        checkout.git("checkout", "-q", "--detach")
    trip.target.commit({"b": "2\n"})
    landed = trip.land()
    assert landed.branch == f"{BRANCH}-2"
    assert "checked out" in landed.notices[0]
    assert trip.user.refs.get(REF) in (None, trip.base)


def test_a_branch_that_is_in_the_way_is_named(trip: Trip) -> None:
    """Where git can't have the branch's name beside another one, that one is named and nothing is lost."""
    trip.user.git("branch", "coding-agent")
    trip.target.commit({"b": "2\n"})
    landed = trip.land()
    assert landed.branch is None
    assert "the branch coding-agent is in the way" in landed.notices[0]


def test_a_branch_below_the_name_is_left_alone(trip: Trip) -> None:
    """A branch that uses the wanted name as a folder stays; the commits get a number."""
    trip.user.git("branch", f"{BRANCH}/part")
    trip.target.commit({"b": "2\n"})
    assert trip.land().branch == f"{BRANCH}-2"


@pytest.mark.parametrize("name", ["main", "../x", "coding-agent/", "coding-agent/../main", "coding-agent/a b", "-d"])
def test_only_our_branches_are_landed_in(trip: Trip, name: str) -> None:
    """Whatever a record says, commits land under coding-agent/ only."""
    trip.target.commit({"b": "2\n"})
    with pytest.raises(InvalidInput, match="no branch to land in"):
        trip.land(branch=name)


def test_uncommitted_work_comes_back_in_the_branch(tmp_path: Path) -> None:
    """Under `uncommitted: include` the branch stands on the commit of that work, and the reference to it is gone."""
    user = new_checkout(tmp_path / "user")
    user.write({"new": "n\n"})
    trip = sent(user, tmp_path, "include")
    trip.target.commit({"new": "better\n"}, "improved")
    assert trip.land() == Landed(BRANCH)
    assert set(user.refs) == {"refs/heads/main", REF}
    assert user.git("log", "--format=%s", BRANCH).splitlines()[1] == "Uncommitted changes at the start of the run"
    assert trip.land() == Landed(BRANCH)


def test_a_base_that_has_gone_is_said(trip: Trip, tmp_path: Path) -> None:
    """Commits that stand on what this repository has not are not landed, and that is said; without a base too."""
    trip.target.commit({"b": "2\n"})
    for base in ("1" * 40, "", "HEAD", "--all"):
        landed = trip.land(base=base)
        assert landed.branch is None
        assert "which is not in" in landed.notices[0]
    other = replace(trip, user=new_checkout(tmp_path / "other", {"x": ""}))
    assert other.land().branch is None


def test_a_repository_that_has_gone_is_said(trip: Trip, tmp_path: Path) -> None:
    """Without the repository the error names it."""
    bundle = work_bundle(trip.target, WORK)
    with pytest.raises(InvalidInput, match="not in a git repository"):
        replace(trip, user=Checkout(tmp_path)).land(bundle)
    with pytest.raises(GitFailed, match="does not exist"):
        replace(trip, user=Checkout(tmp_path / "gone")).land(bundle)


def test_shallow_linked_and_bare_repositories_take_commits(trip: Trip, tmp_path: Path) -> None:
    """Commits land in a shallow clone, from a linked checkout, and in a bare repository."""
    for number in range(3):
        trip.user.commit({"n": str(number)})
    shallow, linked, bare = tmp_path / "shallow", tmp_path / "linked", tmp_path / "bare"
    trip.user.git("clone", "-q", "--depth=1", f"file://{trip.user.path}", str(shallow))
    trip.user.git("worktree", "add", "-q", "--detach", str(linked))
    trip.user.git("clone", "-q", "--bare", str(trip.user.path), str(bare))
    for number, user in enumerate(map(Checkout, (shallow, linked, bare))):
        folder = tmp_path / f"trip{number}"
        folder.mkdir()
        again = sent(user, folder)
        tip = again.target.commit({"b": f"{number}\n"})
        assert again.land() == Landed(BRANCH)
        assert user.refs[REF] == tip
        trip.user.git("update-ref", "-d", REF)


def test_nothing_of_the_users_git_runs(trip: Trip, home: Path, tmp_path: Path) -> None:
    """No hook, monitor or configured program runs when commits land, and no configured remote or pruning takes part."""
    trace = tmp_path / "trace"
    program = home / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >>{trace}\n')
    program.chmod(0o755)
    trip.user.git("tag", "v1")
    trip.target.commit({"b": "2\n"})
    bundle = work_bundle(trip.target)
    hooks = trip.user.path / ".git" / "hooks"
    for hook in ("reference-transaction", "post-checkout", "post-merge", "post-update", "pre-auto-gc", "update"):
        (hooks / hook).symlink_to(program)
    with (home / ".gitconfig").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = {program}\n\talternateRefsCommand = {program}\n\tpager = {program}\n")
        file.write(f"[uploadpack]\n\tpackObjectsHook = {program}\n[gc]\n\tauto = 1\n[protocol]\n\tallow = never\n")
        file.write("[fetch]\n\tprune = true\n\tpruneTags = true\n\trecurseSubmodules = true\n")
    assert trip.land(bundle) == Landed(BRANCH)
    assert not trace.exists(), trace.read_text()
    assert set(trip.user.refs) == {"refs/heads/main", "refs/tags/v1", REF}


def test_variables_of_a_hook_do_not_redirect(trip: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from a git hook elsewhere, commits land in the repository they belong to."""
    other = new_checkout(tmp_path / "other")
    before = other.state()
    trip.target.commit({"b": "2\n"})
    bundle = work_bundle(trip.target)
    with monkeypatch.context() as patch:
        patch.setenv("GIT_DIR", str(other.path / ".git"))
        patch.setenv("GIT_OBJECT_DIRECTORY", str(other.path / ".git" / "objects"))
        patch.setenv("GIT_INDEX_FILE", str(other.path / ".git" / "index"))
        assert trip.land(bundle) == Landed(BRANCH)
    assert other.state() == before
    assert REF in trip.user.refs


# What a hostile target sends.


@pytest.mark.parametrize("ref", ["refs/heads/main", REF, "refs/tags/v9", "refs/coding-agent/work2", "HEAD"])
def test_a_bundle_with_another_reference_is_refused(trip: Trip, ref: str) -> None:
    """A bundle whose reference is not the one of a run, for example main, is refused."""
    trip.target.commit({"b": "2\n"})
    bundle = work_bundle(trip.target, WORK)
    data = bundle.read_bytes().replace(f" {WORK}\n".encode(), f" {ref}\n".encode(), 1)
    bundle.write_bytes(data)
    trip.refused(bundle, "has to hold refs/coding-agent/work alone")


def test_a_bundle_with_further_references_is_refused(trip: Trip) -> None:
    """A bundle that holds the right reference and others is refused, not taken in part."""
    trip.target.commit({"b": "2\n"})
    trip.target.git("branch", "main")
    trip.target.git("tag", "v1")
    trip.refused(work_bundle(trip.target, WORK, "main", "v1"), "holds .*refs/heads/main")


def test_a_bundle_that_stands_on_something_else_is_refused(trip: Trip) -> None:
    """Prerequisites have to be what the run began with, even where the user's repository has them."""
    trip.user.git("checkout", "-q", "-b", "private")
    private = trip.user.commit({"diary": "dear diary"})
    trip.user.git("checkout", "-q", "main")
    trip.target.git("fetch", "-q", str(trip.user.path), "private")
    trip.target.git("reset", "-q", "--hard", "FETCH_HEAD")
    trip.target.commit({"b": "2\n"})
    trip.refused(work_bundle(trip.target, WORK, f"^{private}"), "stands on")
    bundle = work_bundle(trip.target)
    bundle.write_bytes(bundle.read_bytes().replace(trip.base.encode(), b"1" * 40, 1))
    trip.refused(bundle, "stands on 111111111111")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no bundle\n\n",
        b"# v2 git bundle\n",
        b"# v2 git bundle\n\n",
        b"# v3 git bundle\n@filter=blob:none\n" + b"1" * 40 + b" refs/coding-agent/work\n\nPACK",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/coding-agent/work\n\n",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/coding-agent/work\n\nPACK\0\0\0\2\0\0\0\1",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/coding-agent/work\n\nPACK\0\0\0\2\xff\xff\xff\xff",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/coding-agent/work" + b"x" * 5000 + b"\n\nPACK",
        b"# v2 git bundle\n" + (b"1" * 40 + b" refs/heads/x\n") * 50000,
        b"# v2 git bundle\n-" + b"1" * 39 + b"\n\nPACK",
        bytes(range(256)) * 16,
    ],
)
def test_what_is_no_bundle_is_refused(trip: Trip, tmp_path: Path, content: bytes) -> None:
    """Broken headers, missing packs and garbage are refused, by both ways of reading them."""
    bundle = tmp_path / "work.bundle"
    bundle.write_bytes(content)
    trip.refused(bundle)
    with pytest.raises(Untrusted):
        landing.secrets_in(bundle, Redactor({"TOKEN": SECRET}))


def test_a_damaged_pack_is_refused(trip: Trip) -> None:
    """A pack with changed or missing bytes is refused wherever it is damaged."""
    trip.target.commit({"b": os.urandom(3000)})
    bundle = work_bundle(trip.target)
    whole = bundle.read_bytes()
    for position in range(whole.index(b"PACK") + 12, len(whole), len(whole) // 7):
        bundle.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        trip.refused(bundle)
        bundle.write_bytes(whole[:position])
        trip.refused(bundle)


def test_a_symbolic_link_in_place_of_the_bundle_is_refused(trip: Trip, tmp_path: Path) -> None:
    """A bundle is a file: a link, a folder or a pipe in its place is refused without waiting."""
    trip.target.commit({"b": "2\n"})
    link, folder, pipe = tmp_path / "link", tmp_path / "folder", tmp_path / "pipe"
    link.symlink_to(work_bundle(trip.target))
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (link, folder, pipe, tmp_path / "nothing"):
        trip.refused(path, "bundle")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(bundle=1000), "at most 1000 are taken"),
        (Limits(objects=2), "3 objects, at most 2"),
        (Limits(object_size=100_000), "too large"),
        (Limits(total=100_000), "too large"),
        (Limits(timeout=0.0), "took longer"),
    ],
)
def test_sizes_and_times_are_limited(trip: Trip, limits: Limits, reason: str) -> None:
    """What is larger than the limits, packed or unpacked, or takes too long, is refused with the limit named."""
    trip.target.commit({"zeros": b"\0" * 3_000_000, ".gitignore": ""})
    trip.target.git("reset", "-q", "--soft", "HEAD~1")
    (trip.target.path / ".gitignore").unlink()
    trip.target.git("rm", "-q", "--cached", ".gitignore")
    trip.target.git("commit", "-q", "-m", "zeros")
    trip.refused(match=reason, limits=limits)


def test_memory_is_limited(trip: Trip) -> None:
    """An object that unpacks to more than a process may allocate ends in a refusal."""
    trip.target.commit({"zeros": b"\0" * 150_000_000})
    trip.refused(match="memory", limits=Limits(memory=100_000_000))


def made_by_hand(trip: Trip, entries: list[tuple[bytes, str, str]]) -> Path:
    """Return a bundle of a commit whose tree has exactly these entries: (name, mode, object)."""
    raw = b"".join(f"{mode} ".encode() + name + b"\0" + bytes.fromhex(sha) for name, mode, sha in entries)
    folder = trip.target.path / ".git" / "objects"
    tree = _store(folder, b"tree", raw)
    people = b"author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n"
    parent = f"tree {tree}\nparent {trip.base}\n".encode()
    commit = _store(folder, b"commit", parent + people + b"\nby hand\n")
    trip.target.git("update-ref", WORK, commit)
    bundle = trip.target.path.parent / "hand.bundle"
    trip.target.git("bundle", "create", "-q", str(bundle), WORK, f"^{trip.base}")
    return bundle


def _store(objects: Path, kind: bytes, content: bytes) -> str:
    whole = kind + b" " + str(len(content)).encode() + b"\0" + content
    name = sha1(whole, usedforsecurity=False).hexdigest()
    file = objects / name[:2] / name[2:]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(zlib.compress(whole))
    return name


@pytest.mark.parametrize("name", [b".git", b".GIT", b"..", b".", b"git~1", ".g\u200cit".encode()])
def test_trees_that_would_write_into_a_git_dir_are_refused(trip: Trip, name: bytes) -> None:
    """A tree with an entry that names a git dir or a parent folder is refused by git's own check."""
    blob = trip.target.git("hash-object", "-w", "--stdin", stdin=b"#!/bin/sh\n")
    folder = trip.target.git("mktree", stdin=f"100755 blob {blob}\tpost-checkout\n".encode())
    trip.refused(made_by_hand(trip, [(name, "40000", folder)]), "refused")


def test_a_path_with_a_slash_in_its_name_is_refused(trip: Trip) -> None:
    """A tree entry whose name is a path is refused."""
    blob = trip.target.git("hash-object", "-w", "--stdin", stdin=b"x")
    trip.refused(made_by_hand(trip, [(b".git/config", "100644", blob)]), "refused")


def test_hostile_gitmodules_are_refused(trip: Trip) -> None:
    """A .gitmodules that is a link, or whose address is an option of git, is refused by git's own check."""
    blob = trip.target.git(
        "hash-object", "-w", "--stdin", stdin=b'[submodule "a"]\n\tpath = a\n\turl = --upload-pack=x\n'
    )
    trip.refused(made_by_hand(trip, [(b".gitmodules", "100644", blob)]), "refused")
    trip.refused(made_by_hand(trip, [(b".gitmodules", "120000", blob)]), "refused")


def test_incomplete_commits_are_refused(trip: Trip) -> None:
    """A bundle that lacks an object that its commits name is refused."""
    blob = trip.target.git("hash-object", "-w", "--stdin", stdin=b"here and gone")
    bundle = made_by_hand(trip, [(b"file", "100644", blob)])
    objects = _unpacked(bundle)
    kept = [entry for entry in objects if b"here and gone" not in entry[1]]
    assert len(kept) == len(objects) - 1
    _repack(bundle, kept)
    trip.refused(bundle, "refused")


def test_a_tip_that_is_no_commit_is_refused(trip: Trip) -> None:
    """The reference has to name a commit: a tag or a file is refused."""
    trip.target.commit({"b": "2\n"})
    trip.target.git("tag", "-a", "-m", "tag", "v1")
    trip.target.git("update-ref", WORK, "refs/tags/v1")
    bundle = trip.target.path.parent / "tag.bundle"
    trip.target.git("bundle", "create", "-q", str(bundle), WORK, f"^{trip.base}")
    trip.refused(bundle, "no commit")


def _unpacked(bundle: Path) -> list[tuple[int, bytes]]:
    """Return kind and content of the pack's entries; they have to be whole objects."""
    data = bundle.read_bytes()
    position = data.index(b"PACK") + 12
    found = []
    for _ in range(struct.unpack(">I", data[position - 4 : position])[0]):
        kind = data[position] >> 4 & 7
        while data[position] & 0x80:
            position += 1
        inflater = zlib.decompressobj()
        found.append((kind, inflater.decompress(data[position + 1 :])))
        position = len(data) - len(inflater.unused_data)
    return found


def _repack(bundle: Path, objects: list[tuple[int, bytes]]) -> None:
    """Write the bundle again with these objects in its pack."""
    pack = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, content in objects:
        size, first = len(content) >> 4, kind << 4 | len(content) & 15
        head = [first]
        while size:
            head[-1] |= 0x80
            head.append(size & 0x7F)
            size >>= 7
        pack += bytes(head) + zlib.compress(content)
    data = bundle.read_bytes()
    bundle.write_bytes(data[: data.index(b"PACK")] + pack + sha1(pack, usedforsecurity=False).digest())


def test_objects_that_no_commit_names_do_not_come_along(trip: Trip) -> None:
    """What lies in the pack beside the commits is left out."""
    trip.target.commit({"b": "2\n"})
    bundle = work_bundle(trip.target)
    _repack(bundle, [*_unpacked(bundle), (3, b"stowaway")])
    stowaway = trip.target.git("hash-object", "--stdin", stdin=b"stowaway")
    assert trip.land(bundle) == Landed(BRANCH)
    assert stowaway not in trip.user.objects()


def test_links_and_nested_repositories_are_said(trip: Trip) -> None:
    """Links out of the repository and nested repositories land, since agents make them, and are named."""
    trip.target.write({"dir/file": ""})
    for name, to in (("in", "README"), ("dir/up", "../README"), ("dir/out", "../../x"), ("abs\x07", "/etc/passwd")):
        (trip.target.path / name).symlink_to(to)
    new_checkout(trip.target.path / "nested")
    trip.target.commit({})
    landed = trip.land()
    assert landed.branch == BRANCH
    assert landed.notices == (
        "nested repositories, whose own commits did not come back: nested",
        "symbolic links that lead out of the repository: abs\\x07, dir/out",
    )


def test_commits_that_left_the_base_are_said(trip: Trip) -> None:
    """An agent that rewrote history lands on a branch of its own, and that is said."""
    trip.target.git("checkout", "-q", "--orphan", "fresh")
    trip.target.commit({"b": "2\n"})
    landed = trip.land(work_bundle(trip.target, WORK))
    assert landed.branch == BRANCH
    assert "do not build on" in landed.notices[0]


# Secrets in what comes back.


@pytest.mark.parametrize("where", ["file", "removed again", "message", "file name", "author", "base64", "binary"])
def test_commits_that_hold_a_secret_are_kept_back(trip: Trip, where: str) -> None:
    """A secret anywhere in the new commits keeps them back: no object of them is copied, and its name is said."""
    match where:
        case "file":
            trip.target.commit({"config": f"a\ntoken={SECRET}\n"})
        case "removed again":
            trip.target.commit({"config": SECRET})
            trip.target.commit({"config": "clean"})
        case "message":
            trip.target.commit({"a": ""}, f"use {SECRET}")
        case "file name":
            trip.target.commit({f"{SECRET}.txt": ""})
        case "author":
            trip.target.git("config", "user.name", SECRET)
            trip.target.commit({"a": ""})
        case "base64":
            trip.target.commit({"a": "auth: eDp" + "Y2FuYXJ5LTRmMWM5YTdiZTI="})
        case _:
            trip.target.commit({"a": os.urandom(5000) + b"\0" + SECRET.encode() + os.urandom(5000)})
    before, objects = trip.user.state(), trip.user.objects()
    bundle = work_bundle(trip.target)
    landed = trip.land(bundle)
    assert landed == Landed(None, ("the commits hold TOKEN: kept back on the target",))
    assert (trip.user.state(), trip.user.objects()) == (before, objects)
    assert landing.secrets_in(bundle, Redactor({"TOKEN": SECRET})) == {"TOKEN"}
    assert landing.secrets_in(bundle, Redactor({"OTHER": "something else"})) == set()


def test_a_secret_stored_as_a_difference_is_found(tmp_path: Path) -> None:
    """A secret put into a large file that the base already has is found, with the base at hand and without it."""
    lines = [f"line {number} {sha1(str(number).encode()).hexdigest()}\n" for number in range(5000)]
    trip = sent(new_checkout(tmp_path / "user", {"large": "".join(lines)}), tmp_path)
    lines[2500] = f"{SECRET}\n"
    trip.target.commit({"large": "".join(lines)})
    bundle = work_bundle(trip.target)
    assert bundle.stat().st_size < 2000, "it is stored as a difference"
    assert landing.secrets_in(bundle, Redactor({"TOKEN": SECRET})) == {"TOKEN"}
    assert trip.land(bundle).branch is None


def test_scanning_without_the_base_is_limited_too(trip: Trip) -> None:
    """An object beyond the limits is refused before it is unpacked, also where the base is not known."""
    trip.target.commit({"zeros": b"\0" * 3_000_000})
    with pytest.raises(Untrusted, match="larger than what is taken"):
        landing.secrets_in(work_bundle(trip.target), Redactor({}), limits=Limits(object_size=1_000_000))


@pytest.mark.parametrize("side", ["added", "removed"])
@pytest.mark.parametrize("kind", ["text", "several lines", "binary", "binary difference"])
def test_patches_are_searched(tmp_path: Path, side: str, kind: str) -> None:
    """A secret in a patch is found in text, over several lines, and in compressed binary parts, on either side."""
    value = "-----BEGIN KEY-----\nMIIEabcdef\nghijkl\n-----END KEY-----" if kind == "several lines" else SECRET
    noise = os.urandom(20_000) if kind.startswith("binary") else b"text\n" * 50
    without = b"" if kind == "binary" else noise
    holding = noise[:10_000] + b"\n" + value.encode() + b"\n" + noise[10_000:]
    first, second = (without, holding) if side == "added" else (holding, without)
    checkout = new_checkout(tmp_path / "user", {"file": first})
    checkout.commit({"file": second})
    argv = ("git", "diff", "--binary", "--full-index", "HEAD~1", "HEAD")
    patch = tmp_path / "work.patch"
    patch.write_bytes((checkout.git(*argv[1:]) + "\n\n").encode("utf-8", "surrogateescape"))
    assert (b"GIT binary patch" in patch.read_bytes()) == kind.startswith("binary")
    assert landing.scan_patch(patch, Redactor({"TOKEN": value})) == {"TOKEN"}
    assert landing.scan_patch(patch, Redactor({"OTHER": "something else"})) == set()


@pytest.mark.parametrize(
    "part", [b"literal 5\nno base 85", b"literal 99\nEc${Nk\n", b"", b"delta 3\nzzzz\n\n", b"literal 999999999999\n\n"]
)
def test_a_patch_that_can_not_be_searched_is_refused(tmp_path: Path, part: bytes) -> None:
    """A damaged or boundless binary part is refused, not passed over; so is a link in place of the patch."""
    patch, link = tmp_path / "work.patch", tmp_path / "link"
    patch.write_bytes(b"diff --git a/x b/x\nGIT binary patch\n" + part)
    link.symlink_to(patch)
    for path in (patch, link):
        with pytest.raises(Untrusted):
            landing.scan_patch(path, Redactor({"TOKEN": SECRET}))
