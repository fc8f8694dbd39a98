"""Records: what a line says, and which lines are refused, where."""

from __future__ import annotations

from zlib import crc32

import pytest

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import (
    Record,
    escape,
    format_record,
    format_time_ns,
    parse_record,
    parse_time_ns,
    unescape,
)


def sealed(body: bytes) -> bytes:
    """Return a line with a right CRC around any body."""
    line = body + b",_internal_record_crc="
    return line + b"%08x" % crc32(line + b"00000000")


def test_properties_of_a_record() -> None:
    fields = {
        b"type": b"file",
        b"st_size": b"43",
        b"st_mode": b"100644",
        b"st_mtime": b"-1.5",
        b"hash": b"ab",
    }
    record = parse_record(format_record(b"a/b", fields))
    assert record == Record(b"a/b", fields)
    assert (record.kind, record.size, record.mode) == (b"file", 43, 0o100644)
    assert (record.mtime_ns, record.hash) == (-1_500_000_000, b"ab")


def test_properties_of_a_bare_record() -> None:
    record = parse_record(format_record(b"", {}))
    assert (record.path, record.kind, record.size, record.mode) == (b"", b"", 0, 0)
    assert (record.mtime_ns, record.hash) == (0, b"")


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1_0", b" 1", b"9" * 5000])
def test_a_size_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedManifest):
        _ = Record(b"a", {b"st_size": value}).size


def test_a_mode_that_is_not_octal_is_refused() -> None:
    with pytest.raises(MalformedManifest):
        _ = Record(b"a", {b"st_mode": b"100648"}).mode


def test_keys_are_written_in_order_whatever_order_they_came_in() -> None:
    one = format_record(b"a", {b"c": b"1", b"a%d": b"2", b"b": b"3"})
    assert one == format_record(b"a", {b"a%d": b"2", b"b": b"3", b"c": b"1"})
    assert one.startswith(b"=a,a%d=2,b=3,c=1,_internal_record_crc=")


@pytest.mark.parametrize("key", [b"", b"_internal_record_crc"])
def test_keys_that_a_record_cannot_have(key: bytes) -> None:
    with pytest.raises(ValueError, match="neither empty"):
        format_record(b"a", {key: b"1"})


@pytest.mark.parametrize(
    ("line", "offset"),
    [
        (b"", 1000),
        (b"a", 1000),
        (b"=a", 1002),
        (b"=a,_internal_record_crc=00000000", 1000),
        (sealed(b"=a")[:-1], 1031),
        (sealed(b"a,b=c"), 1000),
        (sealed(b"=a,b"), 1003),
        (sealed(b"=a,b=c,"), 1007),
        (sealed(b"=a=b"), 1002),
        (sealed(b"=a,b=c=d"), 1006),
        (sealed(b"=a,b=&lt;"), 1005),
        (sealed(b"=a,b=&amp"), 1005),
        (sealed(b"=a,b=x\rc"), 1006),
        (sealed(b"=a\nb"), 1002),
        (sealed(b"=a,=c"), 1000),
        (sealed(b"=a,c=1,b=1"), 1000),
        (sealed(b"=a,b=1,b=1"), 1000),
        (sealed(b"=a,b=1,b=&amp;"), 1000),
        (sealed(b"=a,_internal_record_crc=1,b=1"), 1000),
        (sealed(b"=a").replace(b"crc=", b"crc=A")[:-1], 1000),
        (sealed(b"=a")[:-8] + sealed(b"=a")[-8:].upper(), 1000),
    ],
)
def test_malformed_lines_are_refused_with_their_offset(line: bytes, offset: int) -> None:
    with pytest.raises(MalformedManifest) as caught:
        parse_record(line, 1000)
    assert caught.value.fields["offset"] == offset


def test_only_the_crc_is_left_out_without_check() -> None:
    assert parse_record(b"=a,b=c,_internal_record_crc=00000000", check=False).fields == {b"b": b"c"}
    with pytest.raises(MalformedManifest):
        parse_record(b"=a,b,_internal_record_crc=00000000", check=False)


def test_many_shapes_do_not_grow_the_memory() -> None:
    from mirrorkeep.manifest import record

    for number in range(3000):
        line = format_record(b"a", {b"xattr:user.%d" % number: b""})
        assert parse_record(line).fields == {b"xattr:user.%d" % number: b""}
    assert len(record._parsed_shapes) <= 1024
    assert len(record._templates) <= 1024


def test_escapes() -> None:
    raw = b"a&b,c=d\ne\rf\x00\xff &amp;"
    assert escape(raw) == b"a&amp;b&#44;c&#61;d&#10;e&#13;f\x00\xff &amp;amp;"
    assert unescape(escape(raw)) == raw


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, b"0"),
        (1352141874_000000000, b"1352141874"),
        (1352141874_500000000, b"1352141874.5"),
        (1, b"0.000000001"),
        (-1, b"-0.000000001"),
        (-1_500_000_000, b"-1.5"),
        (10_000_000_000, b"10"),
    ],
)
def test_times(ns: int, text: bytes) -> None:
    assert format_time_ns(ns) == text
    assert parse_time_ns(text) == ns


@pytest.mark.parametrize("text", [b"", b"-", b".5", b"1.", b"1.1234567890", b"1e3", b"+1", b" 1", b"1" * 13])
def test_times_that_are_none(text: bytes) -> None:
    with pytest.raises(MalformedManifest):
        parse_time_ns(text)


def test_a_directory_comes_after_what_is_in_it_and_the_root_last() -> None:
    ordered = [b"a/b/c", b"a/b!", b"a/b", b"a/\xff/x", b"a/\xff", b"a", b"a!", b"b", b"\xff\xff", b""]
    ordered.remove(b"a/b!")
    ordered.insert(2, b"a/b!")  # "b" is a whole name, "b!" a longer one: it comes behind all of b
    assert sorted(ordered, key=order_key) == ordered
