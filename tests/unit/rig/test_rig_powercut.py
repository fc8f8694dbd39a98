"""The model of a power cut leaves what the rules of file systems allow, no less and no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.powercut import PowerCutError, State, Watch, build, fingerprint, state_at, states_after_cut

Texts = dict[str, bytes]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "old").write_bytes(b"old!")
    return folder


def watched(host: Path, action: Callable[[Path], object]) -> Watch:
    watch = Watch(host)
    with watch.watching():
        action(host)
    return watch


def left_at_the_end(watch: Watch) -> list[Texts]:
    """Return what a cut may leave of the files after the last call, each state once."""
    states = {fingerprint(one): one for one in states_after_cut(watch.instants, watch.now)}
    return [{path: thing.content for path, (thing, _) in state.items()} for state in states.values()]


def write(path: Path, data: bytes, *, flush: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    if flush:
        os.fsync(fd)
    os.close(fd)


def flush_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_content_that_was_not_flushed_is_lost_torn_or_there(host: Path) -> None:
    watch = watched(host, lambda host: write(host / "old", b"new.", flush=False))
    assert [one["old"] for one in left_at_the_end(watch)] == [b"old!", b"ne", b"new."]


def test_a_new_name_may_be_lost_although_its_content_was_flushed(host: Path) -> None:
    watch = watched(host, lambda host: write(host / "new", b"text", flush=True))
    assert left_at_the_end(watch) == [{"old": b"old!"}, {"old": b"old!", "new": b"text"}]


def test_a_rename_before_the_flush_of_the_content_may_leave_nothing_of_either(host: Path) -> None:
    def replace(host: Path) -> None:
        write(host / "tmp", b"new.", flush=False)
        os.rename(host / "tmp", host / "old")
        flush_folder(host)

    assert left_at_the_end(watched(host, replace)) == [{"old": b""}, {"old": b"ne"}, {"old": b"new."}]


def test_a_flushed_replacement_whose_folder_is_flushed_is_all_that_is_left(host: Path) -> None:
    def replace(host: Path) -> None:
        write(host / "tmp", b"new.", flush=True)
        os.rename(host / "tmp", host / "old")
        flush_folder(host)

    watch = watched(host, replace)
    assert left_at_the_end(watch) == [{"old": b"new."}]
    before = watch.now - 1
    assert watch.instants[before].call == "rename"
    seen = {
        tuple(sorted((path, one.content) for path, (one, _) in state.items()))
        for state in states_after_cut(watch.instants, before)
    }
    kept = (("old", b"old!"), ("tmp", b"new."))
    assert seen == {(("old", b"old!"),), kept, (("old", b"new."),)}


def test_a_rename_between_folders_is_kept_or_lost_as_a_whole(host: Path) -> None:
    def move(host: Path) -> None:
        os.mkdir(host / "a")
        os.mkdir(host / "b")
        write(host / "a" / "one", b"1", flush=True)
        flush_folder(host / "a")
        flush_folder(host)
        os.rename(host / "a" / "one", host / "b" / "one")

    rest = {"a": b"", "b": b"", "old": b"old!"}
    assert left_at_the_end(watched(host, move)) == [rest | {"a/one": b"1"}, rest | {"b/one": b"1"}]


def test_a_flush_of_a_file_system_leaves_other_ones_as_they_were(host: Path) -> None:
    (host / "pool").mkdir()
    watch = Watch(host)
    with watch.watching():
        write(host / "pool" / "inside", b"in", flush=False)
        write(host / "beside", b"by", flush=False)
        watch.flushed_below(host / "pool")
    assert {one["pool/inside"] for one in left_at_the_end(watch)} == {b"in"}
    assert {one.get("beside") for one in left_at_the_end(watch)} == {None, b"", b"b", b"by"}


def test_a_state_is_built_as_it_was_links_modes_and_times_included(host: Path, tmp_path: Path) -> None:
    def fill(host: Path) -> None:
        os.link(host / "old", host / "same")
        os.symlink("old", host / "link")
        os.mkdir(host / "folder", 0o700)
        os.chmod(host / "old", 0o640)
        os.utime(host / "old", ns=(0, 10**18))
        write(host / "folder" / "file", b"x", flush=False)

    state: State = state_at(watched(host, fill).instants[-1])
    build(state, tmp_path / "built")
    again = Watch(tmp_path / "built").instants[-1]
    assert {path: one for path, (one, _) in state_at(again).items() if one.kind != "link"} == {
        path: one for path, (one, _) in state.items() if one.kind != "link"
    }
    assert os.readlink(tmp_path / "built" / "link") == "old"
    assert os.path.samefile(tmp_path / "built" / "old", tmp_path / "built" / "same")


def test_changes_whose_order_is_not_known_are_refused(host: Path) -> None:
    watch = Watch(host)
    with watch.watching():
        os.posix_spawn("/bin/sh", ["sh", "-c", f"touch {host}/one {host}/two"], os.environ)
        os.wait()
        with pytest.raises(PowerCutError, match="more than one change"):
            os.mkdir(host / "three")
