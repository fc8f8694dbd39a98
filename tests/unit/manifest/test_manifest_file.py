"""Whole files: reading, writing, copying, cutting anywhere, resuming."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import reader as reader_module
from mirrorkeep.manifest.binary import BinaryReader
from mirrorkeep.manifest.convert import convert_manifest, open_manifest
from mirrorkeep.manifest.reader import ManifestReader, find_last_record
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.writer import ManifestWriter
from tests.unit.manifest.trial import entry_lines, written

DIGESTS = ["sha256", "sha1", "blake3"]


@pytest.fixture(autouse=True, params=[200, 256 * 1024])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read in blocks shorter than a line, and in the usual ones."""
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(reader_module, "_TAIL_BLOCK_BYTES", request.param)
    size: int = request.param
    return size


@pytest.mark.parametrize("digest", DIGESTS)
def test_what_is_written_is_read(digest: str) -> None:
    lines = entry_lines(500)
    whole = written(lines, digest=digest)
    reader = ManifestReader(io.BytesIO(whole))
    assert reader.header[b"part"] == b"p"
    assert [format_record(r.path, r.fields) for r in reader] == lines
    assert reader.entries == 500
    assert reader.trailer[b"entries"] == b"500"
    assert reader.file_digest == hashlib.sha256(whole).hexdigest()
    assert whole.count(b"\n=checkpoint,") > 5


def test_lines_come_with_their_offsets() -> None:
    lines = entry_lines(300)
    whole = written(lines)
    got = list(ManifestReader(io.BytesIO(whole)).lines())
    assert [line for _, line in got] == lines
    assert all(whole[offset : offset + len(line) + 1] == line + b"\n" for offset, line in got)


@pytest.mark.parametrize("digest", DIGESTS)
def test_hashes_are_those_of_the_rule(digest: str) -> None:
    def hashed(data: bytes) -> bytes:
        if digest == "blake3":
            from blake3 import blake3

            return blake3(data).hexdigest().encode()
        return hashlib.new(digest, data).hexdigest().encode()

    whole = written(entry_lines(300), digest=digest)
    lines = whole.split(b"\n")
    position = 0
    checkpoints = 0
    for line in lines[:-2]:
        if line.startswith(b"=checkpoint,"):
            checkpoints += 1
            assert parse_record(line).fields[f"_internal_running_{digest}_hash".encode()] == hashed(
                whole[:position]
            )
        position += len(line) + 1
    assert checkpoints
    trailer = lines[-2]
    stated = parse_record(trailer).fields[f"_internal_file_{digest}_hash".encode()]
    blank = trailer.replace(stated, b"0" * len(stated))[:-8] + b"00000000"
    assert stated == hashed(whole[:position] + blank + b"\n")


def test_the_plain_header_is_the_document_s() -> None:
    out = io.BytesIO()
    ManifestWriter(out, None, digest="sha1").flush()
    assert (
        out.getvalue() == b"=header,_internal_type=header,_internal_version=1,_internal_record_crc=917e1394\n"
    )


def test_a_manifest_says_nothing_of_the_run_that_made_it() -> None:
    assert written(entry_lines(50)) == written(entry_lines(50))


def test_unknown_keys_of_header_and_trailer_are_kept() -> None:
    out = io.BytesIO()
    writer = ManifestWriter(out, {b"fs_inodes": b"12", b"_internal_later": b"x"})
    writer.finish({b"Comment": b"a,b"})
    reader = ManifestReader(io.BytesIO(out.getvalue()))
    assert list(reader) == []
    assert (reader.header[b"fs_inodes"], reader.header[b"_internal_later"]) == (b"12", b"x")
    assert reader.trailer[b"Comment"] == b"a,b"


@pytest.mark.parametrize(
    "fields",
    [
        {b"_internal_type": b"header", b"_internal_version": b"2"},
        {b"_internal_type": b"header"},
        {b"_internal_type": b"trailer", b"_internal_version": b"1"},
        {b"_internal_type": b"header", b"_internal_version": b"1", b"digest": b"md5"},
    ],
)
def test_unknown_headers_are_refused(fields: dict[bytes, bytes]) -> None:
    for partial in (False, True):
        with pytest.raises(MalformedManifest):
            ManifestReader(io.BytesIO(format_record(b"header", fields) + b"\n"), partial=partial)


def test_files_named_like_special_lines_are_entries() -> None:
    lines = [format_record(name, {b"type": b"file"}) for name in (b"checkpoint", b"header", b"trailer")]
    assert [line for _, line in ManifestReader(io.BytesIO(written(lines, every=1))).lines()] == lines


# --- damage -----------------------------------------------------------------------------------


def test_disorder_and_repetition_are_refused() -> None:
    lines = entry_lines(10)
    for wrong in ([lines[1], lines[0]], [lines[0], lines[0]]):
        with pytest.raises(MalformedManifest, match="out of order"):
            list(ManifestReader(io.BytesIO(written(wrong))))


def test_swapped_lines_are_found_without_parsing_them() -> None:
    whole = written(entry_lines(200), every=16)
    lines = whole.split(b"\n")
    lines[50], lines[51] = lines[51], lines[50]
    with pytest.raises(MalformedManifest):
        list(ManifestReader(io.BytesIO(b"\n".join(lines))).lines())
    with pytest.raises(MalformedManifest):
        list(ManifestReader(io.BytesIO(b"\n".join(lines)), partial=True).lines())


@pytest.mark.parametrize("more", [b"x", b"\n", entry_lines(1)[0] + b"\n", written([])])
def test_bytes_behind_the_trailer_are_refused(more: bytes) -> None:
    for partial in (False, True):
        with pytest.raises(MalformedManifest):
            list(ManifestReader(io.BytesIO(written(entry_lines(3)) + more), partial=partial).lines())


def test_a_missing_entry_is_found_by_the_count_alone() -> None:
    whole = written(entry_lines(5), every=0).split(b"\n")
    del whole[2]
    with pytest.raises(MalformedManifest, match="4 entries"):
        list(ManifestReader(io.BytesIO(b"\n".join(whole)), check_hash=False))


@pytest.mark.parametrize("form", ["text", "binary"])
def test_cut_at_every_byte(form: str, tmp_path: Path) -> None:
    lines = entry_lines(6)
    whole = written(lines, every=2)
    if form == "binary":
        packed = io.BytesIO()
        convert_manifest(io.BytesIO(whole), packed)
        whole = packed.getvalue()
    counts = []
    for cut in range(len(whole)):
        with pytest.raises(MalformedManifest):
            list(open_manifest(io.BytesIO(whole[:cut])))
        reader = open_manifest(io.BytesIO(whole[:cut]), partial=True)
        read = [format_record(r.path, r.fields) for r in reader]
        assert read == lines[: len(read)]
        assert not reader.trailer
        counts.append(len(read))
        if isinstance(reader, ManifestReader):
            assert len(list(ManifestReader(io.BytesIO(whole[:cut]), partial=True).lines())) == len(read)
        else:
            assert isinstance(reader, BinaryReader)
    assert counts == sorted(counts)
    assert counts[-1] == 6


# --- copying ----------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", DIGESTS)
def test_copied_stretches_give_the_bytes_that_adding_gives(digest: str, tmp_path: Path) -> None:
    lines = entry_lines(400)
    old = tmp_path / "old"
    old.write_bytes(written(lines, every=7, digest="sha1"))  # with other checkpoints than those to come
    places = dict(ManifestReader(io.BytesIO(old.read_bytes())).lines())
    offsets = list(places)
    fresh = format_record(b"d00001/f50!", {b"type": b"file"})
    out = io.BytesIO()
    with old.open("rb") as source:
        writer = ManifestWriter(out, {b"part": b"p"}, digest=digest, checkpoint_every=64)
        writer.copy(source.fileno(), offsets[0], offsets[150] + len(places[offsets[150]]) + 1, 151)
        writer.add(fresh)
        writer.copy(source.fileno(), offsets[151], old.read_bytes().rindex(b"\n=trailer") + 1, 249)
        assert writer.entries == 401
        writer.finish()
    assert out.getvalue() == written([*lines[:151], fresh, *lines[151:]], digest=digest)


def test_a_stretch_that_is_not_whole_lines_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(written(entry_lines(10), every=0))
    start = old.read_bytes().index(b"\n") + 1
    end = old.read_bytes().index(b"\n=trailer") + 1
    with old.open("rb") as source:
        for bad_end, records in ((end - 1, 10), (end, 9), (end + 10**6, 10)):
            with pytest.raises(MalformedManifest):
                ManifestWriter(io.BytesIO(), {}).copy(source.fileno(), start, bad_end, records)


def test_a_line_with_a_newline_is_not_written() -> None:
    writer = ManifestWriter(io.BytesIO(), {})
    writer.add(b"=a\nb")
    with pytest.raises(ValueError, match="newline"):
        writer.flush()


def test_checkpoints_are_dense_at_first_and_then_sparse() -> None:
    lines = entry_lines(20_000)
    numbers = [
        int(parse_record(line).fields[b"entries"])
        for line in written(lines, every=256).split(b"\n")
        if line.startswith(b"=checkpoint,")
    ]
    first = [number for number in numbers if number <= 4096]
    assert 150 < len(first) < 400  # 256 expected
    assert 30 < len(numbers) - len(first) < 100  # 62 expected
    assert numbers == sorted(set(numbers))


# --- from the end -----------------------------------------------------------------------------


def test_the_last_record_at_every_cut(tmp_path: Path, block_bytes: int) -> None:
    lines = entry_lines(5)
    whole = written(lines, every=2)
    behind = [offset + len(line) + 1 for offset, line in ManifestReader(io.BytesIO(whole)).lines()]
    path = tmp_path / "m"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = find_last_record(str(path))
        count = sum(end <= cut for end in behind)
        if not count:
            assert found is None
        else:
            assert found == (parse_record(lines[count - 1]), behind[count - 1])


def test_rubbish_at_the_end_is_passed_over(tmp_path: Path) -> None:
    lines = entry_lines(300)
    whole = written(lines)[:20_000]
    path = tmp_path / "m"
    path.write_bytes(whole)
    good = find_last_record(os.fsencode(path))
    for rubbish in (
        bytes(5000),
        b"\n" * 900,
        b"x" * 1000 + b"\n",
        b"=a,b=c,_internal_record_crc=00000000\n" * 9,
    ):
        path.write_bytes(whole[: whole.rindex(b"\n") + 1] + rubbish)
        assert find_last_record(str(path)) == good


def test_only_the_end_of_a_large_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    path = tmp_path / "m"
    path.write_bytes(written(entry_lines(5000))[:-500])
    read = []
    pread = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        read.append(offset)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert find_last_record(str(path)) is not None
    assert min(read) >= path.stat().st_size - max(block_bytes, 1000)


# --- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", DIGESTS)
def test_resumed_manifests_are_the_bytes_of_uninterrupted_ones(digest: str, tmp_path: Path) -> None:
    lines = entry_lines(60)
    whole = written(lines, every=16, digest=digest)
    path = tmp_path / "m"
    for cut in [*range(500, len(whole) - 250, 331), whole.index(b"\n=checkpoint") + 1]:
        path.write_bytes(whole[:cut])
        found = find_last_record(str(path))
        assert found is not None
        writer = ManifestWriter.resume(str(path), found[1], checkpoint_every=16)
        for line in lines[writer.entries :]:
            writer.add(line)
        writer.finish()
        writer.close()
        assert path.read_bytes() == whole


def test_a_damaged_manifest_is_not_resumed_and_not_touched(tmp_path: Path) -> None:
    whole = written(entry_lines(100), every=512)
    path = tmp_path / "m"
    for position in (150, 3000, 9000):
        damaged = bytearray(whole[:10_000])
        damaged[position] ^= 1
        path.write_bytes(damaged)
        found = find_last_record(str(path))
        assert found is not None
        with pytest.raises(MalformedManifest):
            ManifestWriter.resume(str(path), found[1])
        assert path.read_bytes() == damaged


def test_resuming_needs_a_line_s_end_and_no_trailer(tmp_path: Path) -> None:
    whole = written(entry_lines(10))
    path = tmp_path / "m"
    path.write_bytes(whole)
    for offset in (len(whole), len(whole) - 300, 5, 0, len(whole) + 10):
        with pytest.raises(MalformedManifest):
            ManifestWriter.resume(str(path), offset)
    assert path.read_bytes() == whole
