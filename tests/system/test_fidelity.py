"""What survives a copy: a nasty tree is read and written back through frames, then compared whole.

Everything that is compared is read here with system calls of our own, not through the code under test.
The table in ``docs/reference/fidelity.md`` is made from the same data; run this file to write it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Op
from rig.mirrored import Mirrored
from rig.served import Served, checked

ROOT = os.geteuid() == 0
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "fidelity.md"
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
VISIBLE_FLAGS = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80  # s u S i a d A
DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class Case:
    """One row of the table: what it is about, how to make it under a directory, who can."""

    row: str
    key: str
    make: Callable[[bytes], None]
    root: bool = False
    note: str = ""


def write(path: bytes, data: bytes = b"content\n", mode: int = 0o644) -> bytes:
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    return path


def every_byte(at: bytes) -> None:
    for byte in range(1, 256):
        if byte != ord("/"):
            write(at + b"/name-%c-end" % byte)
    write(at + b"/line\nbreak\r,=&amp;"), write(at + b"/\xff\xfe\xc3"), write(at + b"/ ")
    write(at + b"/...")


def long_names(at: bytes) -> None:
    deep = at
    for letter in b"abcdef":
        deep += b"/" + bytes([letter]) * 200
        os.mkdir(deep)
    write(at + b"/" + b"n" * 255)
    write(deep + b"/" + b"\xc3\xa9" * 127 + b"x")


def hidden(at: bytes) -> None:
    os.mkdir(at + b"/.mirrorkeep")
    write(at + b"/.mirrorkeep/.mirrorkeep.manifest")


def hard_links(at: bytes) -> None:
    os.mkdir(at + b"/sub")
    write(at + b"/first")
    os.link(at + b"/first", at + b"/second")
    os.link(at + b"/first", at + b"/sub/third")
    os.symlink(b"target", at + b"/link1")
    os.link(at + b"/link1", at + b"/link2", follow_symlinks=False)


def sparse(at: bytes) -> None:
    for name, size, pieces in (
        (b"middle", 1_000_000, ((0, b"a" * 4096), (524_288, b"b" * 8192))),
        (b"all-hole", 777_777, ()),
        (b"tail", 900_000, ((892_928, b"c" * 7072),)),
    ):
        with open(at + b"/" + name, "wb") as file:
            file.truncate(size)
            for offset, data in pieces:
                os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())


def nodes(at: bytes) -> None:
    os.mkfifo(at + b"/fifo", 0o640)
    server = socket.socket(socket.AF_UNIX)
    here = os.open(at, os.O_RDONLY)
    try:
        server.bind(f"/proc/self/fd/{here}/socket")
    finally:
        server.close()
        os.close(here)


def devices(at: bytes) -> None:
    os.mknod(at + b"/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(at + b"/block", stat.S_IFBLK | 0o660, os.makedev(259, 1_000_000))


def owners(at: bytes) -> None:
    os.chown(write(at + b"/somebody"), 12_345, 54_321)
    os.symlink(b"x", at + b"/link")
    os.lchown(at + b"/link", 1_234, 4_321)
    os.mkdir(at + b"/folder")
    os.chown(at + b"/folder", 4_000_000_000, 7)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 7, NOBODY), (2, 5, 1000), (4, 4, NOBODY), (8, 2, 2000), (16, 7, NOBODY), (32, 0, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (2, 7, 1001), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY))


def access_lists(at: bytes) -> None:
    os.setxattr(write(at + b"/file"), "system.posix_acl_access", ACCESS)
    os.mkdir(at + b"/folder")
    write(at + b"/folder/older-than-the-default")
    os.setxattr(at + b"/folder", "system.posix_acl_access", ACCESS)
    os.setxattr(at + b"/folder", "system.posix_acl_default", DEFAULT)


def attributes(at: bytes) -> None:
    write(at + b"/file")
    os.setxattr(at + b"/file", b"user.plain", b"value")
    os.setxattr(at + b"/file", b"user.empty", b"")
    os.setxattr(at + b"/file", b"user.bin\xff,=&", bytes(range(256)))
    os.mkdir(at + b"/folder")
    os.setxattr(at + b"/folder", b"user.of.a.folder", b"\0\n")


def privileged_attributes(at: bytes) -> None:
    write(at + b"/tool", mode=0o755)
    os.setxattr(
        at + b"/tool", b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    )
    os.setxattr(at + b"/tool", b"trusted.note", b"x")
    os.symlink(b"nowhere", at + b"/link")
    os.setxattr(at + b"/link", b"trusted.of.a.link", b"y", follow_symlinks=False)
    os.mkfifo(at + b"/fifo")
    os.setxattr(at + b"/fifo", b"trusted.of.a.fifo", b"z")


def times(at: bytes) -> None:
    for name, mtime_ns in (
        (b"nanoseconds", 1_600_000_000_123_456_789),
        (b"epoch", 0),
        (b"1969", -1),
        (b"1905", -23_725 * DAY_NS + 5),
        (b"2038", 2**31 * 10**9 + 7),
        (b"2106", 2**32 * 10**9 + 999_999_999),
        (b"2400", 157_000 * DAY_NS),
    ):
        os.utime(write(at + b"/" + name), ns=(mtime_ns - 1, mtime_ns))
    os.symlink(b"x", at + b"/link")
    os.utime(at + b"/link", ns=(5, 1_111_111_111_222_222_222), follow_symlinks=False)
    os.mkdir(at + b"/folder")
    write(at + b"/folder/later")
    os.utime(at + b"/folder", ns=(9, 999_999_999_999_999_999))


def modes(at: bytes) -> None:
    for mode in (0o000, 0o001, 0o400, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
        if ROOT or mode & 0o400:  # nobody but root reads the others
            write(at + b"/%o" % mode, mode=mode)
    for mode in (0o000, 0o1777, 0o2775, 0o500, 0o4711):
        os.mkdir(at + b"/folder-%o" % mode)
        if mode & 0o700 == 0o700:
            write(at + b"/folder-%o/inside" % mode)
        os.chmod(at + b"/folder-%o" % mode, mode)


def set_flags(path: bytes, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        (current,) = struct.unpack("=Q", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
        fcntl.ioctl(fd, SET_FLAGS, struct.pack("=Q", current | flags))
    finally:
        os.close(fd)


def flags(at: bytes) -> None:
    set_flags(write(at + b"/no-dump"), 0x40)
    set_flags(write(at + b"/no-atime-sync"), 0x80 | 0x8)
    os.mkdir(at + b"/folder")
    set_flags(at + b"/folder", 0x40)


def protecting_flags(at: bytes) -> None:
    set_flags(write(at + b"/immutable"), 0x10)
    set_flags(write(at + b"/append-only"), 0x20)
    os.mkdir(at + b"/folder")
    write(at + b"/folder/inside")
    set_flags(at + b"/folder", 0x10)


def empty(at: bytes) -> None:
    write(at + b"/file", b"")
    os.mkdir(at + b"/folder")


def links(at: bytes) -> None:
    os.symlink(b"does/not/exist", at + b"/dangling")
    os.symlink(b"/etc/passwd", at + b"/absolute")
    os.symlink(b"..", at + b"/upwards")
    os.symlink(b"a\nb\xff,=&" + b"x" * 3000, at + b"/strange")


CASES = [
    Case("Names: any byte but NUL and slash, newline and invalid UTF-8 included", "the path", every_byte),
    Case("Names of 255 bytes, paths beyond 1000", "the path", long_names),
    Case("A folder that is called `.mirrorkeep`", "the path", hidden),
    Case("Empty files and folders", "`st_size`", empty),
    Case("Symbolic links: dangling, absolute, strange targets", "`link_target`", links),
    Case("Hard links", "`hard_link`, `st_nlink`", hard_links,
         note="of files; names of a symbolic link, FIFO, socket or device come back each by itself"),
    Case("Holes in sparse files", "`sparse`", sparse, note="to the block size of the file system"),
    Case("FIFOs and sockets", "`type`", nodes),
    Case("Character and block devices", "`st_rdev`", devices, root=True),
    Case("Modes: set-id and sticky bits, 000", "`st_mode`", modes,
         note="without root, set-id bits are dropped where the owner could not be set"),
    Case("User and group", "`st_uid`, `st_gid`, `uname`, `gname`", owners, root=True),
    Case("Times to the nanosecond, before 1970 and after 2106", "`st_mtime`, `st_atime`", times),
    Case("POSIX access control lists, access and default", "`posix_acl_access`, `posix_acl_default`",
         access_lists),
    Case("Extended attributes of users", "`xattr:user.*`", attributes),
    Case("Capabilities and trusted attributes, of links and FIFOs too",
         "`xattr:security.*`, `xattr:trusted.*`", privileged_attributes, root=True),
    Case("File flags (`chattr`)", "`flags`", flags),
    Case("Immutable and append-only", "`flags`", protecting_flags, root=True),
]  # fmt: skip

RECORDED_ONLY = [
    ("Birth time", "`st_ctime`", "no system call sets it"),
    ("Inode change time and number", "`inode_ctime`, `st_ino`", "the system's own; used to see changes"),
    ("NTFS access lists and attributes", "`acl_list`, `attrs`", "set when restored on Windows"),
    ("Alternate streams, resource forks", "`stream:*`", "set when restored on Windows or macOS"),
]


# --- looking, without the code under test ---------------------------------------------------------


def observe(root: bytes) -> dict[bytes, dict[str, object]]:
    """Return everything that must survive, by path; links to one inode share a group."""
    found: dict[bytes, dict[str, object]] = {}
    groups: dict[int, list[bytes]] = {}
    for path in all_paths(root):
        full = root + b"/" + path if path else root
        status = os.lstat(full)
        facts: dict[str, object] = {
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "mtime": status.st_mtime_ns,
            "rdev": status.st_rdev,
            "attributes": read_attributes(full),
        }
        if stat.S_ISLNK(status.st_mode):
            facts["target"] = os.readlink(full)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            facts |= look_inside(full, status)
        if not stat.S_ISDIR(status.st_mode):
            groups.setdefault(status.st_ino, []).append(path)
            facts["links"] = status.st_nlink
        found[path] = facts
    for members in groups.values():
        for path in members:
            found[path]["group"] = sorted(members)
    return found


def look_inside(full: bytes, status: os.stat_result) -> dict[str, object]:
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        return {}
    try:
        (word,) = struct.unpack("=Q", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
        inside: dict[str, object] = {"flags": hex(word & VISIBLE_FLAGS), "atime": status.st_atime_ns}
        if stat.S_ISREG(status.st_mode):
            inside["content"] = os.pread(fd, status.st_size + 1, 0)
            inside["data"] = data_ranges(fd, status.st_size)
        else:
            del inside["atime"]  # looking for names changes it
        return inside
    finally:
        os.close(fd)


def data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    ranges, position = [], 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, position))
    return ranges


def read_attributes(full: bytes) -> dict[str, bytes]:
    return {
        name: os.getxattr(full, name, follow_symlinks=False)
        for name in os.listxattr(full, follow_symlinks=False)
        if name != "security.selinux"
    }


def all_paths(root: bytes) -> list[bytes]:
    """Return all paths, children before their folder, the root last; needs no right to look inside."""
    paths = []
    for folder, folders, files in os.walk(root, topdown=False):
        below = folder[len(root) + 1 :]
        prefix = below + b"/" if below else b""
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        paths += [prefix + name for name in sorted(files + linked)]
        paths.append(below)
    closed = [
        path + b"/" + entry.name if path else entry.name
        for path in paths
        if os.path.isdir(root + b"/" + path) and not os.path.islink(root + b"/" + path)
        for entry in scan(root + b"/" + path)
        if entry.is_dir(follow_symlinks=False)
    ]
    return [*[path for path in closed if path not in set(paths)], *paths]


def scan(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        return list(os.scandir(folder))
    except PermissionError:
        return []


# --- copying, in plain code -----------------------------------------------------------------------


def copy_tree(source: NativeTree, target: NativeTree) -> list[Failure]:
    """Copy everything: folders first, then content, then the folders' metadata from the inside out."""
    leaders: dict[bytes, bytes] = {}
    folders, others = [], []
    for frame in source.frames(all_paths(source.root)):
        assert isinstance(frame, Frame), frame
        record = parse_record(frame.line)
        if record.kind == keys.DIRECTORY:
            folders.append(frame)
            continue
        leader = leaders.setdefault(record.fields[keys.INODE], record.path)
        if leader != record.path:
            fields = {**record.fields, keys.HARD_LINK: leader}
            others.append(Frame(Op.HARD_LINK, format_record(record.path, fields)))
        else:
            others.append(frame)
    made = [Frame(Op.DIRECTORY, frame.line) for frame in reversed(folders)]
    return target.apply([*made, *others, *folders])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[bytes]:
    yield os.fsencode(tmp_path)
    for folder, folders, files in os.walk(os.fsencode(tmp_path)):
        for name in [b".", *folders, *files]:
            make_removable(folder + b"/" + name)


def make_removable(path: bytes) -> None:
    mode = os.lstat(path).st_mode
    if ROOT and stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR):
        fd = os.open(path, os.O_RDONLY)
        (word,) = struct.unpack("=Q", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
        if word & 0x30:
            fcntl.ioctl(fd, SET_FLAGS, struct.pack("=Q", word & ~0x30))
        os.close(fd)
    elif stat.S_ISDIR(mode):
        os.chmod(path, 0o700)


def parameters() -> list[object]:
    marks = {False: (), True: (pytest.mark.root,)}
    return [pytest.param(case, marks=marks[case.root], id=case.make.__name__) for case in CASES]


@pytest.mark.must_run
@pytest.mark.parametrize("case", parameters())
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_survives(place: bytes, case: Case, again: bool) -> None:
    source, target = place + b"/source", place + b"/target"
    os.mkdir(source)
    try:
        case.make(source)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system has no such thing (a tmpfs, perhaps)")
    expected = observe(source)
    tree = NativeTree(target)
    for _ in range(1 + again):
        assert copy_tree(NativeTree(source), tree) == []
    assert observe(target) == expected
    assert not tree.shortfalls
    assert observe(source) == expected


@pytest.mark.root
@pytest.mark.parametrize("driver", ["dir", "btrfs"])
def test_all_of_it_survives_a_store(place: bytes, make_served: Callable[..., Served], driver: str) -> None:
    mirrored = Mirrored(make_served(driver=driver), Path(os.fsdecode(place)))
    source, back = os.fsencode(mirrored.source), place + b"/back"
    os.mkdir(source)
    for case in CASES:
        folder = source + b"/" + case.make.__name__.encode()
        os.mkdir(folder)
        with contextlib.suppress(OSError):
            case.make(folder)
    expected = observe_files(source)
    mirrored.sync()
    mirrored.check_verdict()
    for _ in range(2):  # the second over the first
        argv = ("restore", mirrored.volume.url, os.fsdecode(back), "--json")
        assert checked(*argv, environment=mirrored.volume.environment).last["failed"] == 0
        assert observe_files(back) == expected


def observe_files(root: bytes) -> dict[bytes, dict[str, object]]:
    """Observe, without the other names of what is no regular file: they come back each by itself."""
    found = observe(root)
    for facts in found.values():
        if "content" not in facts:
            facts.pop("links", None), facts.pop("group", None)
    return found


def test_without_root_the_rest_survives_and_the_owner_is_named_as_missing(place: bytes) -> None:
    source, target = place + b"/source", place + b"/target"
    os.mkdir(source)
    os.mkdir(target)
    write(source + b"/tool", mode=0o6755)
    os.chown(source + b"/tool", 12_345, 12_345)
    os.chmod(source + b"/tool", 0o6755)
    os.setxattr(source + b"/tool", b"user.kept", b"1")
    tree = NativeTree(target, set_owner=False)
    assert copy_tree(NativeTree(source), tree) == []
    status = os.stat(target + b"/tool")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o755)
    assert os.getxattr(target + b"/tool", b"user.kept") == b"1"
    assert tree.shortfalls[keys.UID] == tree.shortfalls[keys.GID] == 1


def test_the_document_shows_this_table() -> None:
    assert DOCUMENT.read_text() == make_document()


def make_document() -> str:
    """Return the reference page, from the cases that this file tests."""
    lines = [
        "# What survives",
        "",
        "Made by `python tests/system/test_fidelity.py --write`; the same file tests every row of the first",
        "table on Linux: from a native tree to a native tree, and by `sync` and `restore` through a store",
        "(`dir` and btrfs). All that can be seen is compared.",
        "",
        "## Recorded and set again",
        "",
        "| what | keys in the record | needs root | remark |",
        "|---|---|---|---|",
        *[f"| {c.row} | {c.key} | {'yes' if c.root else 'no'} | {c.note} |" for c in CASES],
        "",
        "What the destination cannot hold, or this user may not set, is told by key when a restore ends; it",
        "is never silently lost: the record in the mirror keeps it.",
        "",
        "## Recorded only (on Linux)",
        "",
        "| what | keys in the record | why |",
        "|---|---|---|",
        *[f"| {what} | {key} | {why} |" for what, key, why in RECORDED_ONLY],
        "",
        "## Windows and macOS",
        "",
        "The modules for Windows (security descriptors, attributes, alternate streams) and macOS",
        "(attributes, resource forks, flags) are written to the systems' public interfaces and tested",
        "against faithful imitations of them. They have **not been run on real Windows or macOS systems**.",
        "Their keys survive a store on Linux unchanged. The native tree reaches entries by descriptor,",
        "which Windows does not offer to Python: on Windows the metadata functions are there, a tree that",
        "walks, reads and writes with them is not.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
        DOCUMENT.write_text(make_document())
    else:
        sys.stdout.write(make_document())
