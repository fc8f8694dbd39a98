"""Change detection: one walk against one old side, with and without a patch."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.detect import LOOK_AGAIN, RETRY_RUN, Detector
from mirrorkeep.sync.index import Head, IndexWriter, OldSide, empty_old_side, open_index, seal_index
from mirrorkeep.sync.journal import Stretch
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure
from mirrorkeep.tree.walk import Directory, Event, Siblings, Unmounted, Unreadable, walk


@dataclass
class Seen:
    """A sink that remembers."""

    stretches: list[Stretch] = field(default_factory=list)
    actions: list[tuple[str, bytes]] = field(default_factory=list)
    forced: set[bytes] = field(default_factory=set)
    lines: dict[bytes, bytes] = field(default_factory=dict)

    def unchanged(self, stretch: Stretch) -> None:
        self.stretches.append(stretch)

    def changed(self, path: bytes, blob: bytes, head: Head, *, forced: bool, doubted: bool) -> None:
        assert head.path == path
        self._note("changed", path, forced)

    def new(self, path: bytes, blob: bytes, *, forced: bool) -> None:
        self._note("new", path, forced)

    def removed(self, path: bytes, line: bytes) -> None:
        self.lines[path] = line
        self._note("removed", path, False)

    def unreadable(self, path: bytes, detail: str) -> None:
        self._note("unreadable", path, False)

    def unmounted(self, path: bytes, detail: str) -> None:
        self._note("unmounted", path, False)

    def undecided(self, record: Record) -> None:
        self._note("undecided", record.path, False)

    def _note(self, action: str, path: bytes, forced: bool) -> None:
        self.actions.append((action, path))
        if forced:
            self.forced.add(path)

    def of(self, action: str) -> list[bytes]:
        return [path for what, path in self.actions if what == action]


class Tree:
    """A source, and the manifest of it at one instant."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "source"
        self.root.mkdir()
        self.manifest = str(folder / "manifest")
        self.index = str(folder / "index")

    def write(self, path: str, data: bytes = b"x") -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def events(self) -> list[Event]:
        return list(walk(str(self.root)))

    def paths(self) -> list[bytes]:
        return paths_of(self.events())

    def record(self) -> None:
        """Write the manifest and the index of the tree as it is."""
        with open(self.manifest, "wb") as stream:
            writer = ManifestWriter(stream, {b"source": b"test"})
            for frame in NativeTree(str(self.root)).frames(self.paths()):
                assert not isinstance(frame, Failure)
                writer.add(frame.line)
            self.digest = writer.finish().digest
        blobs = IndexWriter(self.index + ".blobs")
        blobs.add(b"".join(blobs_of(self.events())))
        blobs.close()
        seal_index(blobs.path, self.index, self.digest, len(self.paths()))

    def old(self) -> OldSide:
        opened = open_index(self.index, self.digest)
        assert opened is not None
        return OldSide(self.manifest, *opened)

    def detect(self, patch: Iterable[Record] = (), events: Iterable[Event] | None = None) -> Seen:
        seen, old = Seen(), self.old()
        detector = Detector(old, seen, sorted(patch, key=lambda one: order_key(one.path)))
        detector.run(iter(self.events() if events is None else events))
        old.close()
        seen.nothing_differs = detector.nothing_differs  # type: ignore[attr-defined]
        return seen


def paths_of(events: Iterable[Event]) -> list[bytes]:
    paths: list[bytes] = []
    for event in events:
        if isinstance(event, Siblings):
            paths += [event.parent + b"/" + name if event.parent else name for name in event.names]
        elif isinstance(event, Directory):
            paths.append(event.path)
    return paths


def blobs_of(events: Iterable[Event]) -> list[bytes]:
    blobs: list[bytes] = []
    for event in events:
        if isinstance(event, Siblings):
            blobs += event.blobs
        elif isinstance(event, Directory):
            blobs.append(event.blob)
    return blobs


def unknown(path: bytes, kind: bytes = keys.UNKNOWN) -> Record:
    return Record(path, {keys.TYPE: kind})


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    for number in range(100):
        tree.write(f"many/file{number:03}")
    tree.write("deep/er/one")
    tree.write("deep/er/two")
    tree.write("zero", b"")
    (tree.root / "empty").mkdir()
    tree.record()
    return tree


def test_a_tree_that_did_not_change_makes_no_difference(tree: Tree) -> None:
    seen = tree.detect()
    assert (seen.actions, seen.stretches) == ([], [])
    assert seen.nothing_differs  # type: ignore[attr-defined]


def test_everything_is_new_on_nothing(tree: Tree) -> None:
    seen = Seen()
    detector = Detector(empty_old_side(), seen)
    detector.run(iter(tree.events()))
    assert seen.of("new") == tree.paths()
    assert not detector.nothing_differs


@pytest.mark.parametrize("folder", ["another", "zzz/below"])  # before what is old, and behind it
def test_what_is_new_as_a_whole_is_compared_once(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    for number in range(3 * RETRY_RUN):
        tree.write(f"{folder}/{number:04}")
    asked: list[int] = []
    match = OldSide.match

    def counting(self: OldSide, blobs: bytes, count: int) -> bool:
        asked.append(count)
        return match(self, blobs, count)

    monkeypatch.setattr(OldSide, "match", counting)
    seen = tree.detect()
    inside = os.fsencode(folder) + b"/"
    assert sum(path.startswith(inside) for path in seen.of("new")) == 3 * RETRY_RUN
    assert seen.of("removed") == []
    # Each stretch of siblings once; the rest of the tree has 104 files and five folders.
    assert asked.count(RETRY_RUN) == 3
    assert len(asked) < 40


def test_new_changed_and_removed_entries_are_told_in_order(tree: Tree) -> None:
    tree.write("many/file050", b"longer")
    tree.write("many/file0505")
    (tree.root / "many" / "file099").unlink()
    seen = tree.detect()
    assert seen.actions == [
        ("changed", b"many/file050"),
        ("new", b"many/file0505"),
        ("removed", b"many/file099"),
        ("changed", b"many"),
    ]
    kept = sum(stretch.records for stretch in seen.stretches)
    assert kept == len(tree.paths()) - 3


def test_stretches_cover_exactly_the_records_that_stay(tree: Tree) -> None:
    tree.write("many/file050", b"longer")
    (tree.root / "deep" / "er" / "one").unlink()
    seen = tree.detect()
    manifest = Path(tree.manifest).read_bytes()
    kept = b"".join(manifest[one.text_start : one.text_end] for one in seen.stretches)
    names = [line[1 : line.index(b",")] for line in kept.splitlines() if b"_internal_type=" not in line]
    touched = {b"many/file050", b"many", b"deep/er/one", b"deep/er"}
    assert names == [path for path in paths_of_manifest(tree) if path not in touched]


def paths_of_manifest(tree: Tree) -> list[bytes]:
    lines = Path(tree.manifest).read_bytes().splitlines()
    return [line[1 : line.index(b",")] for line in lines if b"_internal_type=" not in line]


def test_the_children_of_a_renamed_directory_are_other_entries(tree: Tree) -> None:
    (tree.root / "deep" / "er").rename(tree.root / "deep" / "est")
    seen = tree.detect()
    assert set(seen.of("removed")) == {b"deep/er/one", b"deep/er/two", b"deep/er"}
    assert seen.of("new") == [b"deep/est/one", b"deep/est/two", b"deep/est"]
    assert b"deep" in seen.of("changed")


@pytest.mark.parametrize("other", ["folder", "link"])
def test_a_changed_type_is_a_change_of_one_path(tree: Tree, other: str) -> None:
    place = tree.root / "many" / "file050"
    place.unlink()
    if other == "folder":
        place.mkdir()
    else:
        place.symlink_to("elsewhere")
    seen = tree.detect()
    assert seen.of("changed") == [b"many/file050", b"many"]
    assert (seen.of("removed"), seen.of("new")) == ([], [])


def test_a_directory_that_becomes_a_file_loses_what_was_in_it(tree: Tree) -> None:
    for name in ("one", "two"):
        (tree.root / "deep" / "er" / name).unlink()
    (tree.root / "deep" / "er").rmdir()
    tree.write("deep/er")
    seen = tree.detect()
    assert set(seen.of("removed")) == {b"deep/er/one", b"deep/er/two"}
    assert seen.of("changed") == [b"deep/er", b"deep"]


def lose_access(event: Event, path: bytes) -> list[Event]:
    """Return what a walk says of a directory that it cannot read, and nothing of what is inside."""
    if isinstance(event, Directory) and event.path == path:
        return [Unreadable(path, "Permission denied"), event]
    inside = event.parent if isinstance(event, Siblings) else event.path
    return [] if (inside + b"/").startswith(path + b"/") else [event]


@pytest.mark.parametrize("folder", [b"deep", b"deep/er", b"many"])
def test_an_unreadable_directory_keeps_its_records(tree: Tree, folder: bytes) -> None:
    events = [one for event in tree.events() for one in lose_access(event, folder)]
    seen = tree.detect(events=events)
    assert seen.actions == [("unreadable", folder)]
    assert seen.nothing_differs  # type: ignore[attr-defined]


def test_an_unreadable_directory_keeps_what_the_patch_names_in_it(tree: Tree) -> None:
    events = [one for event in tree.events() for one in lose_access(event, b"deep")]
    patch = [unknown(b"deep/er/one"), unknown(b"deep/er/stray"), unknown(b"many/file003")]
    seen = tree.detect(patch, events)
    assert seen.of("removed") == []
    assert seen.of("changed") == [b"many/file003", b"many"]
    assert seen.of("undecided") == [b"deep/er/one", b"deep/er/stray"]


def test_an_unreadable_directory_does_not_keep_what_lay_beside_it(tree: Tree) -> None:
    (tree.root / "empty").rmdir()
    events = [one for event in tree.events() for one in lose_access(event, b"many")]
    assert tree.detect(events=events).of("removed") == [b"empty"]


def lose_mount(event: Event, path: bytes) -> list[Event]:
    """Return what a walk says of a mount point that lost its mount, and nothing of what is inside."""
    if isinstance(event, Directory) and event.path == path:
        return [Unmounted(path, "not mounted")]
    return lose_access(event, path)


@pytest.mark.parametrize("folder", [b"deep", b"deep/er", b"many"])
def test_a_directory_that_is_not_mounted_keeps_its_records_and_its_own(tree: Tree, folder: bytes) -> None:
    events = [one for event in tree.events() for one in lose_mount(event, folder)]
    seen = tree.detect(events=events)
    assert seen.actions == [("unmounted", folder)]
    assert seen.nothing_differs  # type: ignore[attr-defined]
    patch = [unknown(folder), unknown(folder + b"/stray"), unknown(b"zero")]
    seen = tree.detect(patch, events)
    doubts = [("undecided", folder + b"/stray"), ("undecided", folder)]
    assert seen.actions == [("unmounted", folder), *doubts, ("changed", b"zero"), ("changed", b"")]


def test_a_patch_forces_what_did_not_change(tree: Tree) -> None:
    seen = tree.detect([unknown(b"many/file010"), unknown(b"deep"), unknown(b"")])
    assert seen.of("changed") == [b"deep", b"many/file010", b"many", b""]
    assert seen.forced == {b"deep", b"many/file010", b""}


def test_a_patch_of_something_missing_on_the_mirror_sends_it_again(tree: Tree) -> None:
    seen = tree.detect([unknown(b"zero", keys.ABSENT)])
    assert seen.of("changed") == [b"zero", b""]
    assert seen.forced == {b"zero"}


@pytest.mark.parametrize("path", [b"a first", b"many/file0505", b"many/zz", b"zz last", b"empty/stray"])
def test_something_extra_on_the_mirror_is_removed(tree: Tree, path: bytes) -> None:
    seen = tree.detect([unknown(path, keys.FILE)])
    assert seen.of("removed") == [path]
    assert seen.lines[path] == format_record(path, {keys.TYPE: keys.FILE})
    assert path.rpartition(b"/")[0] in seen.of("changed")


def test_an_absence_of_what_neither_side_has_is_nothing(tree: Tree) -> None:
    assert tree.detect([unknown(b"never", keys.ABSENT)]).of("removed") == []


@pytest.mark.parametrize("doubted", [True, False])
def test_a_patched_entry_that_the_source_lost_is_removed_once(tree: Tree, doubted: bool) -> None:
    (tree.root / "zero").unlink()
    patched = unknown(b"zero")
    if doubted:
        patched.fields[LOOK_AGAIN] = b"1"
    seen = tree.detect([patched])
    assert seen.of("removed") == [b"zero"]
    line = seen.lines[b"zero"]
    assert b",type=file," in line  # its record, not the patch's
    assert (b"hash=" in line) == doubted  # what is damaged is no content to use again


def test_a_patched_entry_behind_one_that_the_source_lost_is_looked_at_and_stays(tree: Tree) -> None:
    (tree.root / "many" / "file010").unlink()
    seen = tree.detect([unknown(b"many/file010"), unknown(b"many/file011"), unknown(b"many")])
    assert seen.of("removed") == [b"many/file010"]
    assert seen.forced == {b"many/file011", b"many"}


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_patched_is_looked_at_and_nothing_that_is_there_goes(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tree = Tree(tmp_path)
    names = [f"{folder}f{number}" for folder in ("", "a/", "a/b/", "c/") for number in range(4)]
    for name in chance.sample(names, 12):
        tree.write(name)
    tree.record()
    before = set(tree.paths())
    for name in names:
        if chance.random() < 0.3:
            (tree.root / name).unlink(missing_ok=True)
    if chance.random() < 0.3:
        shutil.rmtree(tree.root / "a" / "b", ignore_errors=True)
    for name in chance.sample(names, 2):
        tree.write(name)
    there = set(tree.paths())
    every = sorted(before | there | {b"a/b", b"c/extra", b"zz"})
    patched = {path for path in every if chance.random() < 0.4}
    patch = [unknown(path) for path in patched]
    seen = tree.detect(patch)
    removed = seen.of("removed")
    assert sorted(removed) == sorted((before | patched) - there)
    assert set(seen.of("new")) == there - before
    assert patched & there == seen.forced


Change = Callable[[Tree], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: os.chmod(tree.root / "zero", 0o600),
        lambda tree: os.utime(tree.root / "zero", ns=(1, 1)),
        lambda tree: os.setxattr(tree.root / "zero", "user.note", b"1"),
        lambda tree: os.link(tree.root / "zero", tree.root / "zero2"),
    ],
)
def test_metadata_alone_are_a_change(tree: Tree, change: Change) -> None:
    before = stat.S_IFMT((tree.root / "zero").lstat().st_mode)
    change(tree)
    assert stat.S_IFMT((tree.root / "zero").lstat().st_mode) == before
    assert b"zero" in tree.detect().of("changed")


def test_removed_directories_are_not_remembered(tree: Tree) -> None:
    shutil.rmtree(tree.root / "deep")
    shutil.rmtree(tree.root / "many")
    old = tree.old()
    detector = Detector(old, Seen(), [unknown(b"gone/x"), unknown(b"gone", keys.DIRECTORY)])
    detector.run(iter(tree.events()))
    old.close()
    assert detector._touched == set()
