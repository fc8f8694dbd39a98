"""Every kind of damage is found, named, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mirrorkeep.store import examine
from mirrorkeep.store.change import Everything, Known
from mirrorkeep.store.examine import Examination, Setting
from tests.unit.store.stored_copy import copy_stored, make_source

ODD = os.fsdecode(b"bad-\xff-name\n")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    make_source(tmp_path / "source")
    copy_stored(tmp_path / "source", tmp_path / "stored")
    return tmp_path / "stored"


def look(root: Path, *, content: bool = True, processes: int = 1) -> dict[bytes, set[str]]:
    """Examine ``root`` and return the kinds of findings by path."""
    found: dict[bytes, set[str]] = {}

    def take(batch: list[examine.Found], tally: examine.Tally, last: bytes) -> None:
        for path, kind, _ in batch:
            found.setdefault(path, set()).add(kind)

    choice = Everything() if content else Known([])
    Examination(str(root), choice, take, Setting(processes=processes, polite=False)).run()
    return found


def test_an_undamaged_copy_has_no_findings_and_every_byte_was_read(stored: Path) -> None:
    tallies = []
    run = Examination(
        str(stored), Everything(), lambda found, tally, last: tallies.extend(found), Setting(polite=False)
    )
    tally = run.run()
    assert tallies == []
    assert tally.entries == 13
    assert tally.content_entries == 6
    assert tally.content_bytes == tally.bytes == 500 + 256 * 64 + 600_000 + 8 + 35


def flip(path: Path) -> None:
    """Change one byte in place and put every time back."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(status.st_size // 2)
        byte = stream.read(1)
        stream.seek(status.st_size // 2)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grow(path: Path) -> None:
    status = path.stat()
    with path.open("ab") as stream:
        stream.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def relink(path: Path) -> None:
    status = path.lstat()
    path.unlink()
    path.symlink_to("elsewhere")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sidecar_of(path: Path) -> Path:
    return path.parent / ".mirrorkeep" / path.name


def corrupt(path: Path) -> None:
    flip(sidecar_of(path))


DAMAGE: list[tuple[str, Callable[[Path], object], set[str]]] = [
    ("docs/a.txt", flip, {"content"}),
    ("media/film", flip, {"content"}),
    (ODD, flip, {"content"}),
    ("docs/a.txt", grow, {"size"}),
    ("docs/a.txt", lambda path: os.utime(path, ns=(0, 5)), {"mtime"}),
    ("docs/deep", lambda path: os.utime(path, ns=(0, 5)), {"mtime"}),
    ("docs/a.txt", lambda path: path.chmod(0o600), {"mode"}),
    ("docs/deep", lambda path: path.chmod(0o700), {"mode"}),
    ("docs/a.txt", lambda path: os.setxattr(path, "user.planted", b"1"), {"xattr"}),
    ("link", relink, {"link"}),
    ("docs/a.txt", Path.unlink, {"missing"}),
    ("empty", Path.rmdir, {"missing"}),
    ("docs/b.txt", become_folder, {"type"}),
    ("docs/a.txt", corrupt, {"sidecar"}),
    ("docs/deep", corrupt, {"sidecar"}),
    ("docs/a.txt", lambda path: sidecar_of(path).unlink(), {"sidecar"}),
    ("pipe", lambda path: sidecar_of(path).unlink(), {"missing"}),
    ("docs/new", lambda path: path.write_bytes(b"planted"), {"extra"}),
    ("docs/deep/folder", Path.mkdir, {"extra"}),
]


@pytest.mark.parametrize(
    ("name", "damage", "kinds"), DAMAGE, ids=[f"{sorted(kinds)[0]}-{name!a}" for name, _, kinds in DAMAGE]
)
def test_damage_is_named_and_nothing_else(
    stored: Path, name: str, damage: Callable[[Path], object], kinds: set[str]
) -> None:
    if name == "empty":
        for inside in (stored / "empty").iterdir():
            inside.rmdir()
    damage(stored / name)
    assert look(stored) == {os.fsencode(name): kinds}


@pytest.mark.root
def test_a_changed_owner_is_named(stored: Path) -> None:
    os.chown(stored / "docs/a.txt", 12345, -1)
    assert look(stored) == {b"docs/a.txt": {"owner"}}


def test_all_entries_below_a_lost_directory_are_missing(stored: Path) -> None:
    import shutil

    shutil.rmtree(stored / "docs")
    kinds = look(stored)
    lost = (b"docs", b"docs/a.txt", b"docs/b.txt", b"docs/deep", b"docs/deep/c.bin")
    assert {path: kinds[path] for path in kinds} == {
        b"docs": {"missing"},
        **{path: {"missing"} for path in lost},
    }


def test_a_planted_directory_is_extra_with_everything_in_it(stored: Path) -> None:
    (stored / "planted" / "below").mkdir(parents=True)
    (stored / "planted" / "below" / "x").write_bytes(b"x")
    assert look(stored) == {path: {"extra"} for path in (b"planted", b"planted/below", b"planted/below/x")}


def test_a_directory_time_that_was_set_on_purpose_is_named_beside_a_damaged_child(stored: Path) -> None:
    flip(stored / "docs/a.txt")
    os.utime(stored / "docs", ns=(10**18, 10**18 + 5))
    assert look(stored) == {b"docs/a.txt": {"content"}, b"docs": {"mtime"}}


def test_metadata_only_reads_no_content_but_of_known_findings(stored: Path) -> None:
    flip(stored / "docs/a.txt")
    flip(stored / "media/film")
    (stored / "docs/b.txt").chmod(0o600)
    assert look(stored, content=False) == {b"docs/b.txt": {"mode"}}
    found: list[bytes] = []
    run = Examination(
        str(stored),
        Known([b"media/film"]),
        lambda batch, tally, last: found.extend(one[0] for one in batch),
        Setting(polite=False),
    )
    assert run.run().content_entries == 1
    assert found == [b"docs/b.txt", b"media/film"]


def test_files_whose_content_is_read_are_read_ahead(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected"

    class Noted(examine.Prefetch):
        def expect(self, paths: Sequence[bytes]) -> bool:
            with expected.open("ab") as stream:  # in a worker's process
                stream.write(b"".join(path + b"\n" for path in paths))
            return super().expect(paths)

    monkeypatch.setattr(examine, "Prefetch", Noted)
    assert look(stored) == {}
    small = sorted(expected.read_bytes().split())
    assert b"docs/a.txt" in small and b"docs" not in small
    expected.unlink()
    assert look(stored, content=False) == {}
    assert expected.read_bytes() == b""


def test_a_worker_that_dies_costs_only_the_entry_that_killed_it(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(stored / "media/film")
    check = examine.StoredTree.check

    def deadly(self: examine.StoredTree, path: bytes, line: bytes, *, content: bool) -> object:
        if path == b"docs/a.txt":
            os._exit(9)
        return check(self, path, line, content=content)

    monkeypatch.setattr(examine.StoredTree, "check", deadly)
    assert look(stored) == {b"docs/a.txt": {"unreadable"}, b"media/film": {"content"}}


def test_huge_directories_are_sorted_in_spilled_runs(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirrorkeep.tree import stored_names

    monkeypatch.setattr(stored_names, "MAX_NAMES_IN_MEMORY", 2)
    (stored / "docs/new").write_bytes(b"planted")
    assert look(stored) == {b"docs/new": {"extra"}}


def test_a_file_that_the_disk_does_not_give_out_is_unreadable(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrorkeep.tree import stored_check

    read = stored_check.hash_open_file

    def bad_sector(fd: int, fields: Mapping[bytes, bytes]) -> bytes:
        if os.fstat(fd).st_size == 600_000:
            raise OSError(5, "Input/output error")
        return read(fd, fields)

    monkeypatch.setattr(stored_check, "hash_open_file", bad_sector)
    assert look(stored) == {b"media/film": {"unreadable"}}


def test_results_that_wait_for_a_slow_batch_are_few(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "BATCH_ENTRIES", 1)
    monkeypatch.setattr(examine, "MAX_AHEAD", 3)
    monkeypatch.setattr(examine, "_MAX_HURT", 0)
    ahead: list[int] = []

    def slowest_first(run: Examination, pool: object, timeout_s: float) -> None:
        """Give every result but the oldest one out, as long as the coordinator may go on without it."""
        ahead.append(run._submitted - run._taken)
        collect(run, _OldestLast(pool, run, held), timeout_s)  # type: ignore[arg-type]

    held: list[examine.Completed] = []
    collect = Examination._collect
    monkeypatch.setattr(Examination, "_collect", slowest_first)
    flip(stored / "media/film")
    assert look(stored) == {b"media/film": {"content"}}
    assert max(ahead) == 4


class _OldestLast:
    """A pool whose oldest result comes when nothing else can be done."""

    def __init__(self, pool: examine.WorkerPool, run: Examination, held: list[examine.Completed]) -> None:
        self._pool, self._run, self._held = pool, run, held

    def completed(self, timeout_s: float) -> list[examine.Completed]:
        self._held += self._pool.completed(timeout_s)
        oldest = [one for one in self._held if one.sequence == self._run._taken]
        others = [one for one in self._held if one.sequence != self._run._taken]
        if self._run._is_far_ahead or not self._pool.outstanding:
            others += oldest
        self._held[:] = [one for one in self._held if one not in others]
        return others
