"""What a Windows client wrote is validated here: read on one system, proven on another (VAL-14)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.store.local_copy import validate_directory
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree

DOCUMENT = Path(__file__).parents[2] / "golden" / "manifest" / "document-windows.lines"
SDDL = (
    b"O:S-1-5-21-761903142-759465075-2234511197-1000G:S-1-5-21-761903142-759465075-2234511197-513"
    b"D:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)"
)
COMMON = {b"acl_list": SDDL, b"version": b"1", keys.BIRTH_TIME: b"1335308694", keys.MTIME: b"1232316311"}
FILES = {
    b"Users/Ann/Notes.txt": b"notes\r\n" * 300,
    b"Users/Ann/ntuser.dat": b"regf" + bytes(8000),
    "Users/Ann/Übersicht & Pläne.doc".encode(): b"\xd0\xcf\x11\xe0" * 700,
}
FOLDERS = (b"Users/Ann", b"Users", b"")


def file_line(path: bytes, content: bytes, number: int) -> bytes:
    """Return a record with the keys, and the bare mode, of the document's Windows example."""
    fields = {
        **COMMON,
        b"attrs": b"32&",
        keys.HASH: hashlib.sha1(content).hexdigest().encode(),
        keys.INODE: b"%d" % (24182 + number),
        keys.MODE: b"100000",
        keys.LINKS: b"1",
        keys.SIZE: b"%d" % len(content),
        keys.TYPE: keys.FILE,
    }
    return format_record(path, fields)


def folder_line(path: bytes) -> bytes:
    fields = {**COMMON, b"attrs": b"16&", keys.MODE: b"40000", keys.SIZE: b"0", keys.TYPE: keys.DIRECTORY}
    return format_record(path, fields)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a stored tree as a Windows client's run leaves it, its manifest in the document's plain form."""
    root = tmp_path / "stored"
    root.mkdir()
    files = [(file_line(path, data, n), data) for n, (path, data) in enumerate(sorted(FILES.items()))]
    folders = [folder_line(path) for path in FOLDERS]
    with StoredTree(os.fspath(root)) as tree:
        frames = [Frame(Op.PUT, line, data) for line, data in files]
        assert tree.apply(frames) == []
        assert tree.apply([Frame(Op.STAMP, line) for line in folders]) == []
    with (root / ".mirrorkeep" / ".mirrorkeep.manifest").open("wb") as stream:
        writer = ManifestWriter(stream, None, digest="sha1", checkpoint_every=0)
        writer.add_many([line for line, _ in files] + folders)
        writer.finish(count_entries=False)
    return root


def look(root: Path) -> list[tuple[bytes, str]]:
    found: list[tuple[bytes, str]] = []
    outcome = validate_directory(os.fspath(root), lambda one: found.append(one[:2]))
    assert outcome.tally.entries == len(FILES) + len(FOLDERS)
    return found


def test_the_records_have_the_keys_of_the_document_s_example() -> None:
    example = parse_record(DOCUMENT.read_bytes().split(b"\n")[1])
    ours = parse_record(file_line(b"a", b"x", 0))
    assert set(ours.fields) == set(example.fields)
    assert (ours.mode, ours.fields[b"attrs"]) == (example.mode, example.fields[b"attrs"])


def test_what_a_windows_client_sent_is_verified_here(stored: Path) -> None:
    assert look(stored) == []
    head = (stored / ".mirrorkeep" / ".mirrorkeep.manifest").read_bytes().split(b"\n")[0]
    assert head == DOCUMENT.read_bytes().split(b"\n")[0]


def test_damage_in_it_is_found(stored: Path) -> None:
    notes, hive = stored / "Users/Ann/Notes.txt", stored / "Users/Ann/ntuser.dat"
    times = notes.stat()
    with notes.open("r+b") as stream:
        stream.write(b"N")
    os.utime(notes, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(hive, ns=(1, 1))
    next((stored / "Users/Ann").glob("*.doc")).unlink()
    (stored / "Users" / "planted.exe").write_bytes(b"MZ")
    lost = next(path for path in FILES if path.endswith(b".doc"))
    assert sorted(look(stored)) == sorted(
        [
            (b"Users/Ann/Notes.txt", "content"),
            (b"Users/Ann/ntuser.dat", "mtime"),
            (lost, "missing"),
            (b"Users/planted.exe", "extra"),
        ]
    )


def test_a_permission_list_that_was_changed_behind_the_back_is_found(stored: Path) -> None:
    """What this system cannot set is only in the sidecar: that too is compared."""
    sidecar = stored / "Users/Ann/.mirrorkeep/Notes.txt"
    other = StoredTree(os.fspath(stored))
    line = file_line(b"Users/Ann/Notes.txt", FILES[b"Users/Ann/Notes.txt"], 0)
    weaker = line.replace(b"(A;;0x1200a9;;;BU)", b"(A;;FA;;;BU)")
    record = parse_record(weaker, check=False)
    before = sidecar.read_bytes()
    with other:
        stamped = format_record(record.path, record.fields)
        assert other.apply([Frame(Op.STAMP, stamped)]) == []
    assert sidecar.read_bytes() != before
    assert [path for path, _ in look(stored)] == [b"Users/Ann/Notes.txt"]
