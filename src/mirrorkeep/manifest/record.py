"""One record: how the description of an entry becomes a line of bytes, and back.

A line is ``=PATH,key=value,...,_internal_record_crc=XXXXXXXX``: keys in byte order, the CRC-32 of the
line (with its own digits as zeros, without the newline) last.  ``& , = LF CR`` are written as
``&amp; &#44; &#61; &#10; &#13;`` in paths, keys and values; every other byte stands for itself, so any
name survives, whatever its encoding.  A record has exactly one line: what :func:`parse_record` accepts,
:func:`format_record` writes again byte for byte, and everything else is refused.

Parsing and formatting run once for every entry of a tree, so both remember the *shapes* they have seen
(tuples of keys); a shape is checked once, a line of a known shape costs two or three microseconds.

Not here: the order of records (``order``), the file around them (``reader``, ``writer``).
Pure functions: a crash leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Final
from zlib import crc32

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import keys

CRC_TAG: Final = b"," + keys.RECORD_CRC + b"="
CRC_DIGITS: Final = 8
_TAIL_BYTES: Final = len(CRC_TAG) + CRC_DIGITS
_ZEROS: Final = b"0" * CRC_DIGITS
_SHAPES_KEPT: Final = 1024
"""Shapes remembered before the memory is emptied: trees with wild xattr names must not grow it."""

_ENTITIES: Final = {b"amp": b"&", b"#44": b",", b"#61": b"=", b"#10": b"\n", b"#13": b"\r"}
_ENTITY: Final = re.compile(rb"&(amp|#44|#61|#10|#13);")
_ORDINARY: Final = bytes(set(range(256)) - set(b"&,=\n\r"))
"""Every byte that needs no escape; deleting them from a line leaves its separators (and its faults)."""
_TIME: Final = re.compile(rb"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?")


class Record:
    """One entry of a tree: its path and its fields, both raw bytes without escapes.

    ``fields`` never holds the CRC.  The properties raise MalformedManifest when a field is not what its
    name says; a missing number reads as 0, a missing hash or type as ``b""``.
    """

    __slots__ = ("fields", "path")

    def __init__(self, path: bytes, fields: dict[bytes, bytes]) -> None:
        self.path = path
        self.fields = fields

    @property
    def kind(self) -> bytes:
        """``file``, ``directory``, ``link`` ... (``keys``)."""
        return self.fields.get(keys.TYPE, b"")

    @property
    def size(self) -> int:
        """Apparent size in bytes."""
        return self._number(keys.SIZE, 10)

    @property
    def mode(self) -> int:
        """``st_mode``, type bits included; octal on disk."""
        return self._number(keys.MODE, 8)

    @property
    def mtime_ns(self) -> int:
        """Time of the last change of content, nanoseconds since the epoch."""
        return parse_time_ns(self.fields.get(keys.MTIME, b"0"))

    @property
    def hash(self) -> bytes:
        """Lowercase hex digest of the content, ``b""`` where there is none."""
        return self.fields.get(keys.HASH, b"")

    def _number(self, key: bytes, base: int) -> int:
        text = self.fields.get(key, b"0")
        try:
            if text.isdigit() and len(text) <= 20:
                return int(text, base)
        except ValueError:  # a digit that the base does not have
            pass
        raise MalformedManifest(offset=0, detail=f"{key.decode()} of {self.path!r} is not a number")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return self.path == other.path and self.fields == other.fields

    __hash__ = None  # type: ignore[assignment]  # fields are a dictionary

    def __repr__(self) -> str:
        return f"Record({self.path!r}, {self.fields!r})"


# --- escapes ----------------------------------------------------------------------------------


def escape(raw: bytes) -> bytes:
    """Return ``raw`` as it stands in a line."""
    return (
        raw.replace(b"&", b"&amp;")
        .replace(b",", b"&#44;")
        .replace(b"=", b"&#61;")
        .replace(b"\n", b"&#10;")
        .replace(b"\r", b"&#13;")
    )


def unescape(text: bytes) -> bytes:
    """Undo :func:`escape`; raises MalformedManifest (offset inside ``text``) for anything else."""
    if not text.translate(None, _ORDINARY):
        return text
    raw = _ENTITY.sub(lambda match: _ENTITIES[match[1]], text)
    if escape(raw) != text:
        raise MalformedManifest(offset=_first_fault(text), detail="a byte that must be escaped is not")
    return raw


def _first_fault(text: bytes) -> int:
    """Return the position of the first special byte that is not part of a known entity."""
    position = 0
    while position < len(text):
        if text[position] in b"&,=\n\r":
            entity = _ENTITY.match(text, position)
            if entity is None:
                return position
            position = entity.end()
        else:
            position += 1
    return 0


# --- parsing ----------------------------------------------------------------------------------

_parsed_shapes: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}


def parse_record(line: bytes, offset: int = 0, *, check: bool = True) -> Record:
    """Return the record of ``line`` (without newline), which stands at byte ``offset`` of its file.

    Raises MalformedManifest, with the offset in the file, for any line that :func:`format_record` would
    not have written.  ``check=False`` skips only the CRC, for lines that were checked a moment ago.
    """
    if line[-_TAIL_BYTES:-CRC_DIGITS] != CRC_TAG or line[0] != 0x3D:
        raise _shape_fault(line, offset)
    if check and b"%08x" % crc32(_ZEROS, crc32(line[:-CRC_DIGITS])) != line[-CRC_DIGITS:]:
        raise MalformedManifest(offset=offset, detail="the record's CRC does not match")
    body = line[1:-_TAIL_BYTES]
    items = body.replace(b"=", b",").split(b",")
    if body.translate(None, _ORDINARY) != b",=" * (len(items) >> 1):
        return _parse_escaped(body, offset)
    shape = tuple(items[1::2])
    names = _parsed_shapes.get(shape)
    if names is None:
        names = _admit_shape(shape, offset)
    return Record(items[0], dict(zip(names, items[2::2])))  # noqa: B905  # equal: checked above, and hot


def _parse_escaped(body: bytes, offset: int) -> Record:
    """Parse a body that holds entities, or is malformed; every fault is found here."""
    position = offset + 1
    first, *items = body.split(b",")
    path = _unescape_at(first, position)
    position += len(first) + 1
    fields: dict[bytes, bytes] = {}
    for item in items:
        name, equals, value = item.partition(b"=")
        if not equals:
            raise MalformedManifest(offset=position, detail="an item has no '='")
        fields[_unescape_at(name, position)] = _unescape_at(value, position + len(name) + 1)
        position += len(item) + 1
    if len(fields) != len(items):
        raise MalformedManifest(offset=offset, detail="a key stands twice in a record")
    _check_shape(tuple(fields), offset)
    return Record(path, fields)


def _unescape_at(text: bytes, offset: int) -> bytes:
    try:
        return unescape(text)
    except MalformedManifest as fault:
        inside = fault.fields["offset"]
        raise MalformedManifest(offset=offset + inside, detail=fault.fields["detail"]) from None


def _admit_shape(shape: tuple[bytes, ...], offset: int) -> tuple[bytes, ...]:
    _check_shape(shape, offset)
    if len(_parsed_shapes) >= _SHAPES_KEPT:
        _parsed_shapes.clear()
    return _parsed_shapes.setdefault(shape, shape)


def _check_shape(shape: tuple[bytes, ...], offset: int) -> None:
    previous = b""
    for name in shape:
        if name <= previous:
            raise MalformedManifest(offset=offset, detail="keys are empty, repeated or not in order")
        previous = name
    if keys.RECORD_CRC in shape:
        raise MalformedManifest(offset=offset, detail="the record's CRC is not its last item")


def _shape_fault(line: bytes, offset: int) -> MalformedManifest:
    if line[:1] != b"=":
        return MalformedManifest(offset=offset, detail="a record does not begin with '='")
    return MalformedManifest(offset=offset + len(line), detail="a record does not end with its CRC")


# --- formatting -------------------------------------------------------------------------------

_Pick = Callable[[Mapping[bytes, bytes]], tuple[bytes, ...]]
_templates: dict[tuple[bytes, ...], tuple[bytes, bytes, _Pick | None]] = {}
"""By the keys as they come: a pattern for ``%``, the separators a clean line has, and how to bring the
values into the order of the keys (None: they are)."""


def format_record(path: bytes, fields: Mapping[bytes, bytes]) -> bytes:
    """Return the line (without newline) of a record with raw ``path`` and ``fields``.

    Keys may come in any order.  Raises ValueError for an empty key and for a CRC among the fields.
    """
    known = _templates.get(tuple(fields))
    if known is None:
        known = _make_template(tuple(fields))
    template, separators, pick = known
    values = fields.values() if pick is None else pick(fields)
    line = template % (path, *values)
    if line.translate(None, _ORDINARY) != separators:
        line = template % (escape(path), *[escape(value) for value in values])
    return line + b"%08x" % crc32(_ZEROS, crc32(line))


def _make_template(shape: tuple[bytes, ...]) -> tuple[bytes, bytes, _Pick | None]:
    if b"" in shape or keys.RECORD_CRC in shape:
        raise ValueError("a key may be neither empty nor the record's own CRC")
    ordered = sorted(shape)
    template = b"=%b" + b"".join(b"," + escape(k).replace(b"%", b"%%") + b"=%b" for k in ordered) + CRC_TAG
    separators = (template % (b"", *[b""] * len(ordered))).translate(None, _ORDINARY)
    pick: Any = None if tuple(ordered) == shape else itemgetter(*ordered)
    if len(_templates) >= _SHAPES_KEPT:
        _templates.clear()
    return _templates.setdefault(shape, (template, separators, pick))


# --- times ------------------------------------------------------------------------------------


def format_time_ns(ns: int) -> bytes:
    """Return nanoseconds since the epoch as decimal seconds, without a fraction where it is zero."""
    if ns < 0:
        return b"-" + format_time_ns(-ns)
    seconds, fraction = divmod(ns, 1_000_000_000)
    if not fraction:
        return b"%d" % seconds
    return (b"%d.%09d" % (seconds, fraction)).rstrip(b"0")


def parse_time_ns(text: bytes) -> int:
    """Return decimal seconds as nanoseconds; raises MalformedManifest when ``text`` is no such time."""
    whole, _, fraction = text.partition(b".")
    if whole.isdigit() and len(whole) <= 12 and fraction.isdigit() and len(fraction) <= 9:  # nearly always
        return int(whole) * 1_000_000_000 + int(fraction.ljust(9, b"0"))
    match = _TIME.fullmatch(text)
    if match is None:
        raise MalformedManifest(offset=0, detail=f"{text[:40]!r} is not a time in seconds")
    sign, seconds, fraction = match.groups()
    ns = int(seconds) * 1_000_000_000
    if fraction:
        ns += int(fraction.ljust(9, b"0"))
    return -ns if sign else ns
