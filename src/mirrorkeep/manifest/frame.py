"""One record of the binary form: paths share prefixes, keys are numbered, numbers and hashes packed.

A body is: length shared with the path before, length of the rest, the rest; the number of fields; for
each, in the order of keys, its key (number of a known key, or 0, length and the key itself) and its value.
Integers are LEB128.  A value begins with an integer whose two lowest bits say what it is: 0 raw bytes,
1 lowercase hex as bytes (the rest is the length), 2 a decimal number, 3 a time in nanoseconds (the rest
is the value).  Every record has exactly one body: a decoder encodes again what it read and compares.

Not here: the file around the bodies (``binary``).  A crash leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_time_ns, parse_time_ns

_RAW, _HEX, _NUMBER, _TIME = range(4)
_KEYS_NUMBERED: Final = 4096
"""Keys beyond these are always spelt out: trees with wild xattr names must not grow the memory."""
_HEX_VALUE: Final = re.compile(rb"(?:[0-9a-f]{2}){16,64}")
_NUMBER_VALUE: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
_TIME_VALUE: Final = re.compile(rb"(?:0|[1-9][0-9]{0,9})\.[0-9]{0,8}[1-9]")
_MAX_INTEGER_BITS: Final = 70


def encode_integer(value: int) -> bytes:
    """Return ``value`` (not negative) as LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class RecordCodec:
    """Encodes or decodes the records of one file, in its order; what came before shortens what follows."""

    def __init__(self) -> None:
        self._path = b""
        self._numbers: dict[bytes, int] = {}
        self._keys: list[bytes] = []

    def encode(self, path: bytes, fields: Mapping[bytes, bytes]) -> bytes:
        """Return the body of the next record."""
        shared = _shared_prefix(self._path, path)
        parts = [encode_integer(shared), encode_integer(len(path) - shared), path[shared:]]
        parts.append(encode_integer(len(fields)))
        for key in sorted(fields):
            parts += (self._encode_key(key), _encode_value(fields[key]))
        self._path = path
        return b"".join(parts)

    def _encode_key(self, key: bytes) -> bytes:
        number = self._numbers.get(key)
        if number is not None:
            return encode_integer(number)
        if len(self._keys) < _KEYS_NUMBERED:
            self._keys.append(key)
            self._numbers[key] = len(self._keys)
        return b"\x00" + encode_integer(len(key)) + key

    def decode(self, body: bytes, offset: int) -> Record:
        """Return the record of the next body, which stands at ``offset``; raises MalformedManifest."""
        cursor = _Cursor(body, offset)
        path = self._path[: cursor.integer()] + cursor.take(cursor.integer())
        fields: dict[bytes, bytes] = {}
        for _ in range(cursor.integer()):
            key = self._decode_key(cursor)
            fields[key] = _decode_value(cursor)
        if b"" in fields or keys.RECORD_CRC in fields or self.encode(path, fields) != body:
            raise MalformedManifest(offset=offset, detail="a binary record is not in its one proper form")
        return Record(path, fields)

    def _decode_key(self, cursor: _Cursor) -> bytes:
        number = cursor.integer()
        if not number:
            return cursor.take(cursor.integer())
        if number > len(self._keys):
            raise MalformedManifest(offset=cursor.offset, detail="a binary record names an unknown key")
        return self._keys[number - 1]


class _Cursor:
    """A place in a body."""

    def __init__(self, body: bytes, offset: int) -> None:
        self._body = body
        self._start = offset
        self._position = 0

    @property
    def offset(self) -> int:
        return self._start + self._position

    def integer(self) -> int:
        value = shift = 0
        while shift < _MAX_INTEGER_BITS:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise MalformedManifest(offset=self.offset, detail="an integer of a binary record is too long")

    def take(self, size_bytes: int) -> bytes:
        end = self._position + size_bytes
        if end > len(self._body):
            raise MalformedManifest(offset=self.offset, detail="a binary record is cut short")
        data = self._body[self._position : end]
        self._position = end
        return data


def _shared_prefix(one: bytes, other: bytes) -> int:
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit  # bisect: slices compare in C
    while high - low > 1:
        middle = (low + high) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle
    return low


def _encode_value(value: bytes) -> bytes:
    if _NUMBER_VALUE.fullmatch(value):
        return encode_integer(int(value) << 2 | _NUMBER)
    if _TIME_VALUE.fullmatch(value):
        return encode_integer(parse_time_ns(value) << 2 | _TIME)
    if _HEX_VALUE.fullmatch(value):
        packed = bytes.fromhex(value.decode("ascii"))
        return encode_integer(len(packed) << 2 | _HEX) + packed
    return encode_integer(len(value) << 2 | _RAW) + value


def _decode_value(cursor: _Cursor) -> bytes:
    head = cursor.integer()
    kind, rest = head & 3, head >> 2
    if kind == _NUMBER:
        return b"%d" % rest
    if kind == _TIME:
        return format_time_ns(rest)
    data = cursor.take(rest)
    return data.hex().encode("ascii") if kind == _HEX else data
