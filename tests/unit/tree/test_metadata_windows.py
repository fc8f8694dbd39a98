"""Windows metadata against an imitation of kernel32 and advapi32 that checks how it is called."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.tree.metadata import windows
from mirrorkeep.tree.metadata.windows import FileTime, Libraries, StreamData

SDDL = "O:BAG:SYD:PAI(A;;FA;;;BA)S:(AU;SA;FA;;;WD)"


@dataclass
class Entry:
    attributes: int = 0x20
    sddl: str = "O:BAG:SYD:"
    streams: dict[str, bytes] = field(default_factory=dict)
    times: tuple[int | None, ...] = ()


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


class FakeWindows:
    """One volume; serves as both libraries, and fails the way the real ones do."""

    def __init__(self, *, privileged: bool = True) -> None:
        self.entries: dict[str, Entry] = {}
        self.privileged = privileged
        self.error = 0
        self.handles: dict[int, Any] = {}
        for name in [name for name in dir(type(self)) if name[0].isupper()]:
            setattr(self, name, Function(getattr(self, name)))
        self.libraries = Libraries(self, self, lambda: self.error, self.open)
        windows.declare(self.libraries)

    def fail(self, error: int, answer: int = 0) -> int:
        self.error = error
        return answer

    def handle(self, thing: Any) -> int:
        number = 0x7F00_0000_0000 + len(self.handles)  # does not fit 32 bits, like the real ones
        self.handles[number] = thing
        return number

    def open(self, path: str, mode: str) -> Any:
        path, _, name = path.rpartition(":")
        entry = self.entries[path]
        if mode == "rb":
            return io.BytesIO(entry.streams[name])
        if entry.attributes & windows.READ_ONLY:
            raise PermissionError(13, "read-only")
        streams = entry.streams

        class Writer(io.BytesIO):
            def close(self) -> None:
                streams[name] = self.getvalue()
                super().close()

        return Writer()

    def GetFileAttributesW(self, path: str) -> int:
        return self.entries[path].attributes if path in self.entries else self.fail(2, 0xFFFFFFFF)

    def SetFileAttributesW(self, path: str, attributes: int) -> int:
        self.entries[path].attributes = attributes
        return 1

    def DeleteFileW(self, path: str) -> int:
        path, _, name = path.rpartition(":")
        return 1 if self.entries[path].streams.pop(name, None) is not None else self.fail(2)

    def FindFirstStreamW(self, path: str, level: int, data: Any, flags: int) -> int:
        assert (level, flags) == (0, 0)
        listed = [("::$DATA", 7)]
        listed += [(f":{name}:$DATA", len(value)) for name, value in self.entries[path].streams.items()]
        handle = self.handle(iter(listed))
        self.FindNextStreamW(handle, data)
        return handle

    def FindNextStreamW(self, handle: int, data: Any) -> int:
        found = data._obj
        assert isinstance(found, StreamData)
        item = next(self.handles[handle], None)
        if item is None:
            return self.fail(38)
        found.name, found.size = item
        return 1

    def FindClose(self, handle: int) -> int:
        del self.handles[handle]
        return 1

    def CreateFileW(self, path: str, access: int, share: int, *rest: Any) -> int:
        assert (access, rest) == (0x100, (None, 3, 0x02200000, None))
        return self.handle(self.entries[path])

    def SetFileTime(self, handle: int, *times: Any) -> int:
        values = [None if time is None else time._obj for time in times]
        assert all(value is None or isinstance(value, FileTime) for value in values)
        self.handles[handle].times = tuple(
            None if value is None else value.high << 32 | value.low for value in values
        )
        return 1

    def CloseHandle(self, handle: int) -> int:
        del self.handles[handle]
        return 1

    def GetNamedSecurityInfoW(self, path: str, kind: int, information: int, *rest: Any) -> int:
        assert kind == 1
        if information & 0x8 and not self.privileged:
            return 1314
        text = self.entries[path].sddl
        rest[-1]._obj.value = self.handle(text if information & 0x8 else text.partition("S:")[0])
        return 0

    def ConvertSecurityDescriptorToStringSecurityDescriptorW(
        self, descriptor: Any, revision: int, information: int, text: Any, length: None
    ) -> int:
        text._obj.value = self.handles[descriptor.value]
        return 1

    def ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: str, revision: int, descriptor: Any, length: None
    ) -> int:
        descriptor._obj.value = self.handle(text)
        return 1

    def SetFileSecurityW(self, path: str, information: int, descriptor: Any) -> int:
        if information & ~0x4 and not self.privileged:
            return self.fail(1307)
        self.entries[path].sddl = self.handles[descriptor.value]
        return 1

    def LocalFree(self, memory: Any) -> None:
        if isinstance(memory, ctypes.c_void_p):
            del self.handles[memory.value]


@pytest.fixture
def stat(tmp_path: Path) -> os.stat_result:
    os.utime(tmp_path, ns=(1_000_000_000, 2_000_000_000_500_000_000))
    return tmp_path.stat()


def test_everything_survives_and_nothing_is_left_open(stat: os.stat_result) -> None:
    source, target = FakeWindows(), FakeWindows()
    source.entries["C:\\f"] = Entry(0x27, SDDL, {"Zone.Identifier": b"\0\xff", "empty": b""})
    target.entries["D:\\f"] = Entry(0x80 | windows.READ_ONLY, "O:SYG:SYD:", {"old": b"x"})
    fields = windows.capture("C:\\f", stat, source.libraries)
    assert fields[keys.SDDL] == SDDL.encode()
    assert fields[keys.WINDOWS_ATTRIBUTES] == b"39"
    assert fields[keys.STREAM_PREFIX + b"Zone.Identifier"] == b"\0\xff"
    assert windows.stamp("D:\\f", fields, target.libraries) == []
    entry = target.entries["D:\\f"]
    assert (entry.sddl, entry.streams) == (SDDL, source.entries["C:\\f"].streams)
    assert entry.attributes == 0x27 | 0x80
    assert entry.times[2] == (2_000_000_000_500_000_000 // 100) + 116_444_736_000_000_000
    assert source.handles == target.handles == {}


def test_without_privileges_the_rest_is_read_and_set(stat: os.stat_result) -> None:
    weak = FakeWindows(privileged=False)
    weak.entries["f"] = Entry(sddl=SDDL)
    fields = windows.capture("f", stat, weak.libraries)
    assert fields[keys.SDDL] == b"O:BAG:SYD:PAI(A;;FA;;;BA)"
    assert windows.stamp("f", fields, weak.libraries) == [keys.SDDL]
    assert weak.handles == {}


def test_a_record_of_another_system_touches_times_only() -> None:
    system = FakeWindows()
    system.entries["f"] = Entry(0x21, SDDL, {"kept": b"1"})
    assert windows.stamp("f", {keys.MTIME: b"0", keys.MODE: b"100644"}, system.libraries) == []
    assert (system.entries["f"].attributes, system.entries["f"].sddl) == (0x21, SDDL)
    assert system.entries["f"].streams == {"kept": b"1"}
    assert system.entries["f"].times == (None, None, 116_444_736_000_000_000)


def test_a_vanished_entry_is_an_os_error(stat: os.stat_result) -> None:
    with pytest.raises(OSError, match="2"):
        windows.capture("gone", stat, FakeWindows().libraries)


def test_the_number_of_old_manifests_is_understood() -> None:
    system = FakeWindows()
    system.entries["f"] = Entry(0)
    assert windows.stamp("f", {keys.WINDOWS_ATTRIBUTES: b"32&"}, system.libraries) == []
    assert system.entries["f"].attributes == 32


def test_this_is_not_windows() -> None:
    with pytest.raises(OSError, match="not Windows"):
        windows.system_libraries()
