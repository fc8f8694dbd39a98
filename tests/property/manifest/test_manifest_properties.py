"""Properties of the manifest that hold for any bytes; also the entry points for fuzzing its parsers."""

from __future__ import annotations

import io
from zlib import crc32

from hypothesis import example, given
from hypothesis import strategies as st

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.binary import MAGIC, BinaryReader
from mirrorkeep.manifest.convert import convert_manifest, open_manifest
from mirrorkeep.manifest.frame import RecordCodec
from mirrorkeep.manifest.merge import merge_records
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import digest_of, inode_of, is_hard_link, kind_of, path_of, size_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import (
    Record,
    escape,
    format_record,
    format_time_ns,
    parse_record,
    parse_time_ns,
    unescape,
)
from mirrorkeep.manifest.writer import ManifestWriter

NASTY = st.one_of(
    st.binary(max_size=30), st.lists(st.sampled_from([b"&", b",", b"=", b"\n", b"\r", b"amp;"])).map(b"".join)
)
VALUE = st.one_of(
    NASTY,
    st.integers(-5, 10**20).map(lambda n: b"%d" % n),
    st.integers(-(10**12), 10**22).map(format_time_ns),
    st.binary(min_size=15, max_size=33).map(lambda b: b.hex().encode()),
)
KEY = st.one_of(
    st.sampled_from([b"hash", b"hard_link", b"st_size", b"type", b"a%b", b"a:type"]), NASTY
).filter(lambda k: k not in (b"", b"_internal_record_crc", b"_internal_type"))
FIELDS = st.dictionaries(KEY, VALUE, max_size=6)
NAME = st.binary(min_size=1, max_size=6).map(lambda b: b.replace(b"/", b"|").replace(b"\0", b"0"))
PATH = st.lists(NAME, max_size=4).map(b"/".join)
TREE = st.dictionaries(PATH, FIELDS, max_size=12).map(
    lambda tree: [Record(path, tree[path]) for path in sorted(tree, key=order_key)]
)
LINE_BYTES = st.lists(
    st.sampled_from([b"=", b",", b"&amp;", b"&#", b";", b"a", b"b", b"\r", b"\xff", b",a=b"])
).map(b"".join)


def manifest_of(records: list[Record], digest: str, every: int) -> bytes:
    out = io.BytesIO()
    writer = ManifestWriter(out, {}, digest=digest, checkpoint_every=every)
    writer.add_many([format_record(record.path, record.fields) for record in records])
    writer.finish()
    return out.getvalue()


@given(NASTY, FIELDS)
def test_a_record_is_its_line_and_its_line_is_the_record(path: bytes, fields: dict[bytes, bytes]) -> None:
    line = format_record(path, fields)
    assert b"\n" not in line
    record = parse_record(line)
    assert (record.path, record.fields) == (path, fields)
    assert list(record.fields) == sorted(fields)


@given(NASTY, FIELDS)
@example(
    b"a,b", {b"hash": b"0a", b"st_size": b"12", b"type": b"file", b"x": b",type=link", b"xattr:type": b"d"}
)
@example(b"", {b"st_size": b""})
def test_a_peek_at_a_line_sees_what_parsing_it_gives(path: bytes, fields: dict[bytes, bytes]) -> None:
    line = format_record(path, fields)
    record = parse_record(line)
    assert path_of(line) == record.path
    assert kind_of(line) == escape(record.kind)
    assert is_hard_link(line) == (b"hard_link" in record.fields)
    if digest_of(line):
        assert digest_of(line) == record.hash
    else:
        assert not record.hash or record.hash.strip(b"0123456789abcdef")
    try:
        size = record.size
    except MalformedManifest:
        size = -1
    try:
        assert size_of(line) == size
    except MalformedManifest:
        assert size == -1


@given(st.integers(0, 2**128 - 1))
def test_a_peek_sees_any_inode(number: int) -> None:
    assert inode_of(format_record(b"x", {b"st_ino": b"%d" % number, b"type": b"file"})) == number
    assert inode_of(format_record(b"x", {b"type": b"file", b"z": b",st_ino=7"})) == -1


@given(st.binary(max_size=60))
def test_escaping_is_undone_by_unescaping(raw: bytes) -> None:
    assert unescape(escape(raw)) == raw
    assert not set(escape(raw)) & set(b",=\n\r")


@given(LINE_BYTES)
@example(b"=a,b=&amp;&#44;")
def test_what_is_parsed_is_written_the_same(body: bytes) -> None:
    line = body + b",_internal_record_crc="
    line += b"%08x" % crc32(line + b"00000000")
    try:
        record = parse_record(line)
    except MalformedManifest as fault:
        assert 0 <= fault.fields["offset"] <= len(line)
    else:
        assert format_record(record.path, record.fields) == line


@given(st.binary(max_size=200))
def test_fuzz_records(line: bytes) -> None:
    for check in (True, False):
        try:
            record = parse_record(line, check=check)
        except MalformedManifest:
            continue
        assert record.path is not None


@given(st.binary(max_size=40))
def test_fuzz_unescape_and_times(raw: bytes) -> None:
    for parse in (unescape, parse_time_ns):
        try:
            assert parse(raw) is not None
        except MalformedManifest:
            pass


@given(st.integers(-(10**20), 10**20))
def test_times_survive(ns: int) -> None:
    assert parse_time_ns(format_time_ns(ns)) == ns


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda b: MAGIC + b)), st.booleans())
def test_fuzz_files(data: bytes, partial: bool) -> None:
    try:
        list(open_manifest(io.BytesIO(data), partial=partial))
    except MalformedManifest as fault:
        assert 0 <= fault.fields["offset"] <= len(data)


@given(TREE, st.sampled_from(["sha256", "sha1", "blake3"]), st.binary(max_size=8), st.data())
def test_fuzz_damaged_files(records: list[Record], digest: str, splice: bytes, data: st.DataObject) -> None:
    """Any splice into either form is refused, or is the very same file."""
    whole = manifest_of(records, digest, 1)
    if data.draw(st.booleans()):
        packed = io.BytesIO()
        convert_manifest(io.BytesIO(whole), packed)
        whole = packed.getvalue()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + splice + whole[end:]
    try:
        read = list(open_manifest(io.BytesIO(damaged)))
    except MalformedManifest as fault:
        assert 0 <= fault.fields["offset"] <= len(damaged)
    else:
        assert damaged == whole
        assert read == records


@given(st.binary(max_size=60))
def test_fuzz_binary_records(body: bytes) -> None:
    try:
        record = RecordCodec().decode(body, 0)
    except MalformedManifest:
        return
    assert RecordCodec().encode(record.path, record.fields) == body


@given(TREE, st.sampled_from(["sha256", "sha1", "blake3"]), st.sampled_from([0, 1, 2, 64]))
def test_text_and_binary_hold_the_same(records: list[Record], digest: str, every: int) -> None:
    text = manifest_of(records, digest, every)
    assert list(ManifestReader(io.BytesIO(text))) == records
    packed, unpacked = io.BytesIO(), io.BytesIO()
    convert_manifest(io.BytesIO(text), packed)
    assert list(BinaryReader(io.BytesIO(packed.getvalue()))) == records
    convert_manifest(io.BytesIO(packed.getvalue()), unpacked)
    assert unpacked.getvalue() == text


@given(st.lists(PATH, max_size=20))
def test_order_is_that_of_a_walk_that_ends_with_each_directory(paths: list[bytes]) -> None:
    ordered = sorted(set(paths), key=order_key)

    def after_its_children(path: bytes) -> list[tuple[int, bytes]]:
        return [*((0, part) for part in path.split(b"/") if path), (1, b"")]

    assert ordered == sorted(set(paths), key=after_its_children)
    assert len({order_key(path) for path in paths}) == len(set(paths))


@given(st.lists(TREE, max_size=4))
def test_merging_is_updating_a_dictionary(trees: list[list[Record]]) -> None:
    union: dict[bytes, Record] = {}
    for tree in trees:
        union.update({record.path: record for record in tree})
    expected = [union[path] for path in sorted(union, key=order_key) if union[path].kind != b"absent"]
    assert list(merge_records(*trees)) == expected
