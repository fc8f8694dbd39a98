"""What a power cut leaves of a folder of small files: each legal state at each instant of the work on it.

Answers for: watching this process's calls that change something below a folder or make it durable, and
building any state that a cut at an instant between two of them may leave.  What a disk keeps, by the rules
that portable programs have to expect:

- Of a file's content, what its last ``fsync`` wrote is there.  What was written since may be lost, torn (the
  first half of it) or there; a file that was never flushed is empty when its content is lost.
- A change of names is there once its folder was flushed.  Before, it may be lost or there, each folder's
  changes in their order.  A rename is one change, kept or lost as a whole.
- A flush of a file system (:meth:`Watch.flushed_below`, which the caller hooks in) makes all of it durable.

A state that two programs share is what a reader of the present files would see, so that mistakes of the
model are noticed: every instant's own state is read from the folder, never computed.

Not here: other processes and threads, devices and other special files.  What other calls change
is noticed with the next wrapped one; two changes of names at once are refused, for their order is not known.
"""

from __future__ import annotations

import builtins
import io
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = (
    "open",
    "write",
    "writev",
    "pwrite",
    "ftruncate",
    "truncate",
    "rename",
    "replace",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "link",
    "symlink",
)
FLUSHES = ("fsync", "fdatasync")
ROOT = 0
"""The identity of the folder itself."""
_OPEN = open
MOST_CHANGES, MOST_CONTENTS = 6, 3
"""Of up to so many unflushed changes of names, and of files, all combinations are tried."""


class PowerCutError(RuntimeError):
    """The watch cannot account for what happened in the folder; the message says what."""


@dataclass(frozen=True)
class Thing:
    """A file, folder or link: what it is and what it holds (a link: its target, a folder: nothing)."""

    kind: str
    mode: int
    mtime_ns: int
    content: bytes


Names = dict[tuple[int, str], int]
"""(identity of a folder, name) to the identity of what has that name."""
Change = Mapping[tuple[int, str], int | None]
"""One change of names: what each of them stands for afterwards, None for nothing."""
State = dict[str, tuple[Thing, int]]
"""Path to what is there, and its identity: paths of one identity are hard links."""


@dataclass(frozen=True)
class Instant:
    """What is so, and what is durable, between two calls.  ``call`` is the one before."""

    call: str
    names: Names
    things: dict[int, Thing]
    durable_names: Names
    durable_contents: dict[int, bytes]
    pending: tuple[Change, ...]


class Watch:
    """Watches ``folder`` (which exists and is taken as durable); ``instants`` grows by one a call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._device = folder.stat().st_dev
        self._identities = {folder.stat().st_ino: ROOT}
        self._fresh = itertools.count(ROOT + 1)
        self._end: tuple[int, Callable[[], None]] | None = None
        self._process = 0
        names, things = self._look()
        contents = {one: thing.content for one, thing in things.items()}
        self.instants = [Instant("", names, things, dict(names), contents, ())]

    @property
    def now(self) -> int:
        """Index of the newest instant."""
        return len(self.instants) - 1

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch the calls of this process, not of those that it forks, for as long as this is open."""
        self._process = os.getpid()
        before = {name: getattr(os, name) for name in (*CALLS, *FLUSHES)}
        for name, call in before.items():
            setattr(os, name, self._wrapped(name, call))
        builtins.open = io.open = self._wrapped_open(open)
        try:
            yield self
        finally:
            builtins.open = io.open = _OPEN
            for name, call in before.items():
                setattr(os, name, call)

    def end_after(self, calls: int, end: Callable[[], None]) -> None:
        """Have ``end``, which does not return, be called in place of the call that follows so many more."""
        self._end = (self.now + calls, end)

    def _wrapped(self, name: str, call: Any) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            reads = name == "open" and not arguments[1] & (os.O_CREAT | os.O_TRUNC)
            if reads or os.getpid() != self._process:
                return call(*arguments, **named)
            self._end_if_due()
            result = call(*arguments, **named)
            if name in FLUSHES:
                self._flushed(name, arguments[0])
            else:
                self._step(name)
            return result

        return watched

    def end(self) -> None:
        """Call the ``end`` of :meth:`end_after` now, if it was not called yet."""
        if self._end is not None:
            end, self._end = self._end[1], None
            end()

    def _end_if_due(self) -> None:
        if self._end is not None and self.now >= self._end[0]:
            self.end()

    def _wrapped_open(self, call: Any) -> Any:
        def watched(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or os.getpid() != self._process:
                return call(file, mode, *arguments, **named)
            self._end_if_due()
            stream = call(file, mode, *arguments, **named)
            self._step("open")
            return stream

        return watched

    # --- what happens ----------------------------------------------------------------------------

    def flushed_below(self, folder: Path) -> None:
        """Note that the file system that ``folder`` is the top of was flushed."""
        self._end_if_due()
        self._step("syncfs")
        last = self.instants[-1]
        inside = _below(self._identities[folder.stat().st_ino], last)
        names, pending = dict(last.durable_names), []
        for change in last.pending:
            if _folders_of(change) <= inside:
                _apply(names, change)
            else:
                pending.append(change)
        contents = {one: last.things[one].content for one in inside & last.things.keys()}
        self._replace_last(
            durable_names=names, durable_contents=last.durable_contents | contents, pending=tuple(pending)
        )

    def settle(self) -> None:
        """Note that everything became durable, as it does by and by when nothing asks for it."""
        self._step("")
        last = self.instants[-1]
        contents = {one: thing.content for one, thing in last.things.items()}
        self._replace_last(durable_names=dict(last.names), durable_contents=contents, pending=())

    def _flushed(self, name: str, fd: int) -> None:
        status = os.fstat(fd)
        self._step(name)
        identity = self._identities.get(status.st_ino)
        if status.st_dev != self._device or identity is None:
            return
        last = self.instants[-1]
        if stat.S_ISDIR(status.st_mode):
            names, needed = dict(last.durable_names), _needed(last.pending, identity)
            for change in needed:
                _apply(names, change)
            left = tuple(one for one in last.pending if not any(one is other for other in needed))
            self._replace_last(durable_names=names, pending=left)
        elif identity in last.things:
            contents = last.durable_contents | {identity: last.things[identity].content}
            self._replace_last(durable_contents=contents)

    def _replace_last(self, **changes: Any) -> None:
        self.instants[-1] = Instant(**{**vars(self.instants[-1]), **changes})

    def _step(self, call: str) -> None:
        last = self.instants[-1]
        names, things = self._look()
        changed: dict[tuple[int, str], int | None] = {
            place: names.get(place)
            for place in names.keys() | last.names.keys()
            if names.get(place) != last.names.get(place)
        }
        pending = last.pending
        if changed:
            if not _is_one_change(changed, last.names):
                raise PowerCutError(f"more than one change of names up to {call}: {changed}")
            pending = (*pending, changed)
        self.instants.append(Instant(call, names, things, last.durable_names, last.durable_contents, pending))

    def _look(self) -> tuple[Names, dict[int, Thing]]:
        """Read the folder as it is; inodes that are gone lose their identity, for they are used again."""
        names: Names = {}
        things: dict[int, Thing] = {}
        there = {self._folder.stat().st_ino: ROOT}
        folders = [(str(self._folder), ROOT)]
        while folders:
            path, parent = folders.pop()
            with os.scandir(path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != self._device:
                        continue
                    known = self._identities.get(status.st_ino)
                    identity = there.get(status.st_ino, known if known is not None else next(self._fresh))
                    there[status.st_ino] = identity
                    names[parent, entry.name] = identity
                    if identity not in things:
                        things[identity] = _read(entry, status)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, identity))
        self._identities = there
        return names, things


def _read(entry: os.DirEntry[str], status: os.stat_result) -> Thing:
    if stat.S_ISDIR(status.st_mode):
        return Thing("folder", stat.S_IMODE(status.st_mode), status.st_mtime_ns, b"")
    if stat.S_ISLNK(status.st_mode):
        return Thing("link", 0o777, status.st_mtime_ns, os.fsencode(os.readlink(entry.path)))
    if not stat.S_ISREG(status.st_mode):
        raise PowerCutError(f"{entry.path} is no file, folder or link")
    with open(entry.path, "rb") as stream:
        return Thing("file", stat.S_IMODE(status.st_mode), status.st_mtime_ns, stream.read())


def _is_one_change(changed: Change, before: Names) -> bool:
    """Whether the names that changed belong together: a creation, a removal, a rename, an exchange."""
    if len(changed) == 1:
        return True
    old = {before.get(place) for place in changed} - {None}
    new = set(changed.values()) - {None}
    return len(changed) == 2 and len(new & old) >= 1


def _folders_of(change: Change) -> set[int]:
    return {folder for folder, _ in change}


def _below(folder: int, instant: Instant) -> set[int]:
    """Return the identity of a folder and of all that is below it, or was below it and may be again."""
    places = [*instant.names.items(), *instant.durable_names.items()]
    for change in instant.pending:
        places += [(place, one) for place, one in change.items() if one is not None]
    inside = {folder}
    while more := {one for (parent, _), one in places if parent in inside} - inside:
        inside |= more
    return inside


def _needed(pending: Iterable[Change], folder: int) -> list[Change]:
    """Return the changes that a flush of ``folder`` makes durable: its own, and what came before those."""
    needed: list[Change] = []
    folders = {folder}
    for change in reversed(list(pending)):
        if _folders_of(change) & folders:
            folders |= _folders_of(change)
            needed.insert(0, change)
    return needed


def _apply(names: Names, change: Change) -> None:
    for place, identity in change.items():
        if identity is None:
            names.pop(place, None)
        else:
            names[place] = identity


# --- what a cut leaves ----------------------------------------------------------------------------


def states_after_cut(instants: list[Instant], index: int) -> Iterator[State]:
    """Yield every state that a power cut at that instant may leave."""
    instant = instants[index]
    for kept in _kept_changes(instant.pending):
        names = dict(instant.durable_names)
        for change in kept:
            _apply(names, change)
        yield from _states_of(names, instant, _last_things(instants, index, names))


def state_at(instant: Instant) -> State:
    """Return what is there at an instant, for a process that looks."""
    return _tree(instant.names, instant.things)


def _kept_changes(pending: tuple[Change, ...]) -> Iterator[list[Change]]:
    """Yield choices of changes that keep every folder's changes in order: all of them, or of many changes
    those that lose what came after an instant, and those that lose or keep one folder's alone."""
    if len(pending) > MOST_CHANGES:
        yield from (list(pending[:count]) for count in range(len(pending) + 1))
        for folder in sorted(set().union(*map(_folders_of, pending))):
            yield _needed(pending, folder)
            yield _unless(pending, folder)
        return

    def choose(number: int, kept: list[Change], lost: set[int]) -> Iterator[list[Change]]:
        if number == len(pending):
            yield kept
            return
        change = pending[number]
        yield from choose(number + 1, kept, lost | _folders_of(change))
        if not _folders_of(change) & lost:
            yield from choose(number + 1, [*kept, change], lost)

    yield from choose(0, [], set())


def _unless(pending: Iterable[Change], folder: int) -> list[Change]:
    """Return the changes that can be there although those of ``folder`` are lost."""
    kept: list[Change] = []
    lost = {folder}
    for change in pending:
        if _folders_of(change) & lost:
            lost |= _folders_of(change)
        else:
            kept.append(change)
    return kept


def _last_things(instants: list[Instant], index: int, names: Names) -> dict[int, Thing]:
    """Return what everything named is, or was when it was last there."""
    things: dict[int, Thing] = {}
    wanted = set(names.values())
    for instant in reversed(instants[: index + 1]):
        things = {one: instant.things[one] for one in wanted & instant.things.keys()} | things
        if len(things) == len(wanted):
            break
    return things


def _states_of(names: Names, instant: Instant, things: dict[int, Thing]) -> Iterator[State]:
    tree = _tree(names, things)
    reached = {identity for _, identity in tree.values()}
    choices: dict[int, list[bytes]] = {}
    for identity in sorted(reached):
        thing = things[identity]
        durable = instant.durable_contents.get(identity, b"")
        if thing.kind == "file" and thing.content != durable:
            choices[identity] = [durable, thing.content[: len(thing.content) // 2], thing.content]
    for pick in _picks(len(choices)):
        contents = {one: choices[one][number] for one, number in zip(choices, pick, strict=True)}
        yield {
            path: (Thing(thing.kind, thing.mode, thing.mtime_ns, contents.get(one, thing.content)), one)
            for path, (thing, one) in tree.items()
        }


def _picks(files: int) -> Iterable[tuple[int, ...]]:
    """Choose what becomes of the unflushed content of each file: 0 lost, 1 torn, 2 there."""
    if files <= MOST_CONTENTS:
        return itertools.product(range(3), repeat=files)
    return [
        *((every,) * files for every in range(3)),
        *(
            tuple(one if at == number else every for at in range(files))
            for number in range(files)
            for one, every in ((0, 2), (1, 2), (2, 0))
        ),
    ]


def _tree(names: Names, things: Mapping[int, Thing]) -> State:
    """Return the paths that lead from the root through ``names``."""
    below: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), identity in names.items():
        below.setdefault(folder, []).append((name, identity))
    found: State = {}
    folders = [("", ROOT)]
    while folders:
        path, folder = folders.pop()
        for name, identity in sorted(below.get(folder, [])):
            found[path + name] = (things[identity], identity)
            if things[identity].kind == "folder":
                folders.append((f"{path}{name}/", identity))
    return found


def fingerprint(state: State) -> frozenset[tuple[str, str, int, bytes, int]]:
    """Return what tells states apart: everything but times."""
    return frozenset((path, one.kind, one.mode, one.content, who) for path, (one, who) in state.items())


def build(state: State, place: Path) -> None:
    """Make the state at ``place``, which is made anew."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    made: dict[int, Path] = {}
    for path in sorted(state):
        thing, identity = state[path]
        target = place / path
        if thing.kind == "folder":
            target.mkdir()
        elif identity in made:
            os.link(made[identity], target, follow_symlinks=False)
        elif thing.kind == "link":
            target.symlink_to(os.fsdecode(thing.content))
        else:
            target.write_bytes(thing.content)
        made.setdefault(identity, target)
    for path in sorted(state, reverse=True):
        thing, _ = state[path]
        if thing.kind != "link":
            (place / path).chmod(thing.mode)
        os.utime(place / path, ns=(thing.mtime_ns, thing.mtime_ns), follow_symlinks=False)
