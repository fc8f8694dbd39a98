"""macOS metadata against an imitation of libSystem that checks how it is called."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.tree.metadata import macos, posix
from mirrorkeep.tree.metadata.macos import Library

ACL = b"!#acl 1\ngroup:ABCDEFAB-CDEF-ABCD-EFAB-CDEF0000000C:everyone:12:deny:delete\n"


@dataclass
class Entry:
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    acl: bytes = b""
    flags: int = 0
    birth_ns: int = 0


class Function:
    """A library function: takes only what its declared argument types take."""

    def __init__(self, action: Callable[..., Any]) -> None:
        self.action = action
        self.restype: Any = None
        self.argtypes: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        assert len(arguments) == len(self.argtypes), self.action.__name__
        for kind, argument in zip(self.argtypes, arguments, strict=True):
            kind.from_param(argument)
        return self.action(*arguments)


NAMES = (
    "listxattr",
    "getxattr",
    "setxattr",
    "removexattr",
    "lchflags",
    "setattrlist",
    "acl_get_link_np",
    "acl_set_link_np",
    "acl_to_text",
    "acl_from_text",
    "acl_init",
    "acl_free",
)


class FakeMac:
    """One volume; fails the way the real functions do: -1 and an error number."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.error = 0
        self.memory: dict[int, Any] = {}
        self.system = SimpleNamespace(**{name: Function(getattr(self, name)) for name in NAMES})
        self.library = Library(self.system, lambda: self.error)
        macos.declare(self.library)

    def fail(self, error: int) -> int:
        self.error = error
        return -1

    def listxattr(self, path: bytes, buffer: Any, size: int, options: int) -> int:
        assert options == 1
        if path not in self.entries:
            return self.fail(errno.ENOENT)
        return self.fill(b"".join(n + b"\0" for n in self.entries[path].attributes), buffer, size)

    def getxattr(self, path: bytes, name: bytes, buffer: Any, size: int, at: int, options: int) -> int:
        assert (at, options) == (0, 1)
        if name not in self.entries[path].attributes:
            return self.fail(93)
        return self.fill(self.entries[path].attributes[name], buffer, size)

    def fill(self, value: bytes, buffer: Any, size: int) -> int:
        if buffer is not None:
            if size < len(value):
                return self.fail(errno.ERANGE)
            ctypes.memmove(buffer, value, len(value))
        return len(value)

    def setxattr(self, path: bytes, name: bytes, value: bytes, size: int, at: int, options: int) -> int:
        assert (size, at, options) == (len(value), 0, 1)
        if self.entries[path].flags & macos.PROTECTING_FLAGS:
            return self.fail(errno.EPERM)
        self.entries[path].attributes[name] = value
        return 0

    def removexattr(self, path: bytes, name: bytes, options: int) -> int:
        return 0 if self.entries[path].attributes.pop(name, None) is not None else self.fail(93)

    def lchflags(self, path: bytes, flags: int) -> int:
        self.entries[path].flags = flags
        return 0

    def setattrlist(self, path: bytes, wanted: bytes, value: bytes, size: int, options: int) -> int:
        assert (struct.unpack("=HHIIIII", wanted), options) == ((5, 0, 0x200, 0, 0, 0, 0), 1)
        seconds, nanoseconds = struct.unpack("=qq", value[:size])
        self.entries[path].birth_ns = seconds * 10**9 + nanoseconds
        return 0

    def keep(self, thing: Any) -> int:
        number = 0x7F00_0000_0000 + len(self.memory)
        self.memory[number] = thing
        return number

    def acl_get_link_np(self, path: bytes, kind: int) -> int | None:
        assert kind == 0x100
        return self.keep(self.entries[path].acl) if self.entries[path].acl else None

    def acl_set_link_np(self, path: bytes, kind: int, acl: int) -> int:
        self.entries[path].acl = self.memory[acl]
        return 0

    def acl_to_text(self, acl: int, length: None) -> int:
        buffer = ctypes.create_string_buffer(self.memory[acl])
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def acl_from_text(self, text: bytes) -> int:
        return self.keep(text)

    def acl_init(self, count: int) -> int:
        return self.keep(b"")

    def acl_free(self, memory: int) -> int:
        del self.memory[memory]
        return 0


def status(flags: int, birth_s: float) -> Any:
    return SimpleNamespace(st_flags=flags, st_birthtime=birth_s)


def test_everything_survives_a_record_and_nothing_is_left_allocated() -> None:
    mac = FakeMac()
    attributes = {b"com.apple.FinderInfo": bytes(32), macos.RESOURCE_FORK: b"\0fork,=&\n", b"empty": b""}
    mac.entries[b"/a"] = Entry(attributes, ACL)
    mac.entries[b"/b"] = Entry({b"old": b"x"}, b"other", 0x2)
    fields = macos.capture(b"/a", status(0x8000 | 0x2, 1_600_000_000.25), mac.library)
    assert fields[keys.STREAM_PREFIX + macos.RESOURCE_FORK] == b"\0fork,=&\n"
    assert fields[keys.BIRTH_TIME] == b"1600000000.25"
    assert fields[keys.MAC_FLAGS] == b"8002"
    fields = parse_record(format_record(b"a", fields)).fields
    assert macos.stamp(b"/b", fields, mac.library) == []
    assert mac.entries[b"/b"] == Entry(attributes, ACL, 0, 1_600_000_000_250_000_000)
    assert macos.stamp_flags(b"/b", fields, mac.library, protect=False)
    assert mac.entries[b"/b"].flags == 0x8000
    assert macos.stamp_flags(b"/b", fields, mac.library)
    assert mac.entries[b"/b"].flags == 0x8002
    assert mac.memory == {}


def test_a_plain_record_removes_what_is_too_much() -> None:
    mac = FakeMac()
    mac.entries[b"/b"] = Entry({b"old": b"x"}, ACL, 0x8000)
    assert macos.stamp(b"/b", {}, mac.library) == []
    assert mac.entries[b"/b"] == Entry()
    assert macos.capture(b"/b", status(0, 0), mac.library) == {}


def test_errors_are_told_or_named() -> None:
    mac = FakeMac()
    with pytest.raises(FileNotFoundError):
        macos.capture(b"/gone", status(0, 0), mac.library)
    mac.entries[b"/b"] = Entry()
    mac.system.setxattr.action = lambda *_: mac.fail(errno.EPERM)
    key = keys.XATTR_PREFIX + b"com.apple.rootless"
    assert macos.stamp(b"/b", {key: b"1"}, mac.library) == [key]


def test_the_common_functions_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``capture`` and ``stamp`` of ``posix``, as they run on macOS."""
    mac = FakeMac()
    path = os.fsencode(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"x")
    mac.entries[path] = Entry({b"note": b"1"}, ACL)
    monkeypatch.setattr(posix, "_mac", mac.library)
    monkeypatch.setattr(posix, "_mac_path", lambda fd, dir_fd, name: path)
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        stat = os.stat(path)
        fields = posix.capture(None, dir_fd, b"f", stat)
        assert (fields[keys.XATTR_PREFIX + b"note"], fields[keys.MAC_ACL]) == (b"1", ACL)
        fields |= {keys.MTIME: b"77.5", keys.MODE: b"100600", keys.MAC_FLAGS: b"2", keys.FLAGS: b"40"}
        mac.entries[path] = Entry()
        assert posix.stamp(dir_fd, b"f", fields, owner=False, protect=False) == [keys.FLAGS]
    finally:
        os.close(dir_fd)
    assert (mac.entries[path].attributes, mac.entries[path].acl) == ({b"note": b"1"}, ACL)
    assert (os.stat(path).st_mode, os.stat(path).st_mtime_ns) == (0o100600, 77_500_000_000)


def test_this_is_not_macos() -> None:
    with pytest.raises(OSError, match="not macOS"):
        macos.system_library()
