"""What an NTFS entry carries: security descriptor, attributes, alternate streams, creation time.

Written to the public interface of kernel32 and advapi32, which are handed in as :class:`Libraries`, so
that any system can test the calls against an imitation.  **Not run on real Windows systems yet.**

Stamping goes streams, security, times, attributes: a read-only attribute forbids everything else.  A
crash in between leaves an entry with some of its metadata; stamping again completes it.

Not here: SDDL as a language (``sddl``), content, links and directories of paths.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_time_ns, parse_time_ns

READ_ONLY: Final = 0x1
SETTABLE_ATTRIBUTES: Final = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x1000 | 0x2000
"""Read-only, hidden, system, archive, temporary, offline, not content indexed."""
MAX_STREAM_BYTES: Final = 64 * 1024 * 1024
"""Larger alternate streams do not fit into a record; they are reported instead."""

_INVALID_ATTRIBUTES: Final = 0xFFFFFFFF
_INVALID_HANDLE: Final = ctypes.c_void_p(-1).value
_ERROR_HANDLE_EOF: Final = 38
_ERROR_PRIVILEGE: Final = (5, 1314)
_SE_FILE_OBJECT: Final = 1
_SDDL_REVISION: Final = 1
_OWNER_GROUP_DACL: Final = 0x1 | 0x2 | 0x4
_SACL: Final = 0x8
_WRITE_ATTRIBUTES: Final = 0x100
_SHARE_ALL: Final = 0x7
_OPEN_EXISTING: Final = 3
_DIRECTORY_OR_LINK_ITSELF: Final = 0x02000000 | 0x00200000
_EPOCH_TICKS: Final = 116_444_736_000_000_000
"""1970 in the clock of Windows: ticks of 100 ns since 1601."""


class StreamData(ctypes.Structure):
    """``WIN32_FIND_STREAM_DATA``."""

    _fields_ = (("size", ctypes.c_int64), ("name", ctypes.c_wchar * 296))


class FileTime(ctypes.Structure):
    """``FILETIME``."""

    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_uint32))


@dataclass(frozen=True)
class Libraries:
    """The system libraries in use, and how a stream is opened (by ``PATH:NAME``)."""

    kernel32: Any
    advapi32: Any
    last_error: Callable[[], int]
    open: Callable[[str, str], BinaryIO] = open  # type: ignore[assignment]


def system_libraries() -> Libraries:
    """Return the real libraries; OSError on any other system than Windows."""
    loader = getattr(ctypes, "WinDLL", None)
    if loader is None:
        raise OSError("this is not Windows")
    libraries = Libraries(
        loader("kernel32", use_last_error=True),
        loader("advapi32", use_last_error=True),
        getattr(ctypes, "get_last_error"),  # noqa: B009  (unknown to type checkers elsewhere)
    )
    declare(libraries)
    return libraries


def declare(libraries: Libraries) -> None:
    """Declare result and argument types; without them handles are cut to 32 bits."""
    pointer, wide, word, flag = ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32, ctypes.c_int
    table: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
        "GetFileAttributesW": (libraries.kernel32, word, (wide,)),
        "SetFileAttributesW": (libraries.kernel32, flag, (wide, word)),
        "DeleteFileW": (libraries.kernel32, flag, (wide,)),
        "FindFirstStreamW": (libraries.kernel32, pointer, (wide, flag, pointer, word)),
        "FindNextStreamW": (libraries.kernel32, flag, (pointer, pointer)),
        "FindClose": (libraries.kernel32, flag, (pointer,)),
        "CreateFileW": (libraries.kernel32, pointer, (wide, word, word, pointer, word, word, pointer)),
        "SetFileTime": (libraries.kernel32, flag, (pointer, pointer, pointer, pointer)),
        "CloseHandle": (libraries.kernel32, flag, (pointer,)),
        "LocalFree": (libraries.kernel32, pointer, (pointer,)),
        "GetNamedSecurityInfoW": (libraries.advapi32, word, (wide, flag, word, *[pointer] * 5)),
        "ConvertSecurityDescriptorToStringSecurityDescriptorW": (
            libraries.advapi32,
            flag,
            (pointer, word, word, pointer, pointer),
        ),
        "ConvertStringSecurityDescriptorToSecurityDescriptorW": (
            libraries.advapi32,
            flag,
            (wide, word, pointer, pointer),
        ),
        "SetFileSecurityW": (libraries.advapi32, flag, (wide, word, pointer)),
    }
    for name, (library, result, arguments) in table.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def capture(path: str, stat: os.stat_result, libraries: Libraries) -> dict[bytes, bytes]:
    """Return the fields that only Windows knows, and the times; OSError when the entry vanished.

    A descriptor that may not be read in full is read without its audit list (``S:``).
    """
    fields = {
        keys.MTIME: format_time_ns(stat.st_mtime_ns),
        keys.ATIME: format_time_ns(stat.st_atime_ns),
        keys.BIRTH_TIME: format_time_ns(getattr(stat, "st_birthtime_ns", stat.st_ctime_ns)),
    }
    attributes = libraries.kernel32.GetFileAttributesW(path)
    if attributes == _INVALID_ATTRIBUTES:
        raise _failure(libraries.last_error(), path)
    fields[keys.WINDOWS_ATTRIBUTES] = b"%d" % attributes
    fields[keys.SDDL] = read_sddl(path, libraries).encode()
    for name, size_bytes in streams(path, libraries):
        if size_bytes <= MAX_STREAM_BYTES:
            with libraries.open(f"{path}:{name}", "rb") as stream:
                fields[keys.STREAM_PREFIX + name.encode("utf-8", "surrogatepass")] = stream.read()
    return fields


def stamp(path: str, fields: Mapping[bytes, bytes], libraries: Libraries) -> list[bytes]:
    """Make the entry agree with ``fields``; return the keys that could not be restored.

    Alternate streams that the record does not have are removed.  Records made on other systems have no
    such fields, and nothing but times is touched for them.
    """
    missed = []
    kernel32 = libraries.kernel32
    attributes = kernel32.GetFileAttributesW(path)
    if attributes == _INVALID_ATTRIBUTES:
        raise _failure(libraries.last_error(), path)
    if attributes & READ_ONLY:
        kernel32.SetFileAttributesW(path, attributes & ~READ_ONLY)
    if keys.WINDOWS_ATTRIBUTES in fields:
        missed += _write_streams(path, fields, libraries)
    if keys.SDDL in fields and not write_sddl(path, fields[keys.SDDL].decode(), libraries):
        missed.append(keys.SDDL)
    if keys.MTIME in fields and not _write_times(path, fields, libraries):
        missed.append(keys.MTIME)
    wanted = _parse_attributes(fields.get(keys.WINDOWS_ATTRIBUTES, b"%d" % attributes))
    kept = attributes & ~SETTABLE_ATTRIBUTES
    if not kernel32.SetFileAttributesW(path, kept | wanted & SETTABLE_ATTRIBUTES):
        missed.append(keys.WINDOWS_ATTRIBUTES)
    return missed


def read_sddl(path: str, libraries: Libraries) -> str:
    """Return the descriptor as text, with its audit list where this process may see that."""
    for information in (_OWNER_GROUP_DACL | _SACL, _OWNER_GROUP_DACL):
        descriptor = ctypes.c_void_p()
        error = libraries.advapi32.GetNamedSecurityInfoW(
            path, _SE_FILE_OBJECT, information, None, None, None, None, ctypes.byref(descriptor)
        )
        if error in _ERROR_PRIVILEGE and information & _SACL:
            continue
        if error:
            raise _failure(error, path)
        try:
            text = ctypes.c_wchar_p()
            if not libraries.advapi32.ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, _SDDL_REVISION, information, ctypes.byref(text), None
            ):
                raise _failure(libraries.last_error(), path)
            value = text.value or ""
            libraries.kernel32.LocalFree(text)
            return value
        finally:
            libraries.kernel32.LocalFree(descriptor)
    raise AssertionError("unreachable: the second reading returns or raises")


def write_sddl(path: str, text: str, libraries: Libraries) -> bool:
    """Set the descriptor of ``text``; return whether all of it was taken.

    Without the privilege for owners or audit lists the rest is set, and the answer is False.
    """
    descriptor = ctypes.c_void_p()
    if not libraries.advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW(
        text, _SDDL_REVISION, ctypes.byref(descriptor), None
    ):
        return False
    try:
        information = _information(text)
        if libraries.advapi32.SetFileSecurityW(path, information, descriptor):
            return True
        libraries.advapi32.SetFileSecurityW(path, information & 0x4, descriptor)
        return False
    finally:
        libraries.kernel32.LocalFree(descriptor)


def streams(path: str, libraries: Libraries) -> Iterator[tuple[str, int]]:
    """Yield name and size of the alternate streams; none where the file system has no streams."""
    data = StreamData()
    handle = libraries.kernel32.FindFirstStreamW(path, 0, ctypes.byref(data), 0)
    if handle is None or handle == _INVALID_HANDLE:
        return
    try:
        while True:
            # ":NAME:$DATA"; the content itself is "::$DATA".
            name, _, kind = data.name[1:].rpartition(":")
            if name and kind == "$DATA":
                yield name, data.size
            if not libraries.kernel32.FindNextStreamW(handle, ctypes.byref(data)):
                if libraries.last_error() != _ERROR_HANDLE_EOF:
                    raise _failure(libraries.last_error(), path)
                return
    finally:
        libraries.kernel32.FindClose(handle)


def _write_streams(path: str, fields: Mapping[bytes, bytes], libraries: Libraries) -> list[bytes]:
    missed = []
    wanted = {key: value for key, value in fields.items() if key.startswith(keys.STREAM_PREFIX)}
    for name, _ in list(streams(path, libraries)):
        if keys.STREAM_PREFIX + name.encode("utf-8", "surrogatepass") not in wanted:
            libraries.kernel32.DeleteFileW(f"{path}:{name}")
    for key, value in wanted.items():
        name = key[len(keys.STREAM_PREFIX) :].decode("utf-8", "surrogatepass")
        try:
            with libraries.open(f"{path}:{name}", "wb") as stream:
                stream.write(value)
        except OSError:
            missed.append(key)
    return missed


def _write_times(path: str, fields: Mapping[bytes, bytes], libraries: Libraries) -> bool:
    kernel32 = libraries.kernel32
    handle = kernel32.CreateFileW(
        path, _WRITE_ATTRIBUTES, _SHARE_ALL, None, _OPEN_EXISTING, _DIRECTORY_OR_LINK_ITSELF, None
    )
    if handle is None or handle == _INVALID_HANDLE:
        return False
    try:
        times = [_file_time(fields.get(key)) for key in (keys.BIRTH_TIME, keys.ATIME, keys.MTIME)]
        return bool(kernel32.SetFileTime(handle, *[time and ctypes.byref(time) for time in times]))
    finally:
        kernel32.CloseHandle(handle)


def _file_time(text: bytes | None) -> FileTime | None:
    if text is None:
        return None
    ticks = max(parse_time_ns(text) // 100 + _EPOCH_TICKS, 1)
    return FileTime(ticks & 0xFFFFFFFF, ticks >> 32)


def _information(text: str) -> int:
    """Return which parts a descriptor text holds, as the bits of SECURITY_INFORMATION."""
    from mirrorkeep.tree.metadata.sddl import parse_sddl

    parsed = parse_sddl(text)
    parts = ((parsed.owner, 0x1), (parsed.group, 0x2), (parsed.dacl, 0x4), (parsed.sacl, _SACL))
    return sum(bit for part, bit in parts if part is not None)


def _parse_attributes(text: bytes) -> int:
    """Return the bits of ``attrs``; old manifests end the number with ``&``."""
    return int(text.rstrip(b"&") or b"0")


def _failure(number: int, path: str) -> OSError:
    make = getattr(ctypes, "WinError", None)
    return make(number) if make else OSError(number, f"Windows error {number}", path)
