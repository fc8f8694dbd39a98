"""The manifest formats are frozen: these files stay readable, and are written the same, for ever."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.convert import convert_manifest, open_manifest
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.writer import ManifestWriter

HERE = Path(__file__).parent
DOCUMENT_LINES = sorted(HERE.glob("document-*.lines"))
MANIFESTS = sorted(HERE.glob("*.manifest"))
MANUAL = HERE.parents[2] / "docs" / "reference" / "manifest.md"


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


@pytest.mark.parametrize("line", [line for path in DOCUMENT_LINES for line in lines_of(path)])
def test_lines_of_the_document_round_trip(line: bytes) -> None:
    record = parse_record(line)
    assert format_record(record.path, record.fields) == line


def test_there_are_all_eleven_lines_of_the_document() -> None:
    assert len({line for path in DOCUMENT_LINES for line in lines_of(path)}) == 11


def test_the_document_s_own_order_is_ours() -> None:
    paths = [parse_record(line).path for line in lines_of(HERE / "document-unix.lines")[1:-1]]
    assert paths == [b"ad/1d", b"ad/2d/wf", b"ad/2d/xf", b"ad/2d", b"ad/3f", b"ad", b""]
    assert sorted(paths, key=order_key) == paths


@pytest.mark.parametrize("path", DOCUMENT_LINES, ids=lambda p: p.stem)
def test_the_document_s_examples_can_be_read_but_for_their_file_hash(path: Path) -> None:
    with pytest.raises(MalformedManifest, match="does not match its hash"):
        list(ManifestReader(io.BytesIO(path.read_bytes())))
    reader = ManifestReader(io.BytesIO(path.read_bytes()), check_hash=False)
    assert len(list(reader)) == len(lines_of(path)) - 2
    assert reader.trailer[b"_internal_type"] == b"trailer"


def test_the_windows_example_means_what_it_says() -> None:
    record = parse_record(lines_of(HERE / "document-windows.lines")[1])
    assert record.path == b"1998 Pie Guys Band/1998 Pie Guys Band 2009.mov"
    assert record.fields[b"attrs"] == b"32&"
    assert record.fields[b"acl_list"].endswith(b"(A;;0x1200a9;;;BU)")
    assert (record.size, record.mode, record.mtime_ns) == (105, 0o100000, 1232316311 * 10**9)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_text_and_binary_are_frozen_and_lossless(path: Path) -> None:
    text, binary = path.read_bytes(), path.with_suffix(".binary").read_bytes()
    packed, unpacked = io.BytesIO(), io.BytesIO()
    assert convert_manifest(io.BytesIO(text), packed) == convert_manifest(io.BytesIO(binary), unpacked)
    assert packed.getvalue() == binary
    assert unpacked.getvalue() == text


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_a_frozen_manifest_is_written_again_byte_for_byte(path: Path) -> None:
    text = path.read_bytes()
    reader = ManifestReader(io.BytesIO(text))
    out = io.BytesIO()
    header = {k: v for k, v in reader.header.items() if not k.startswith(b"_internal_") and k != b"digest"}
    writer = ManifestWriter(out, header, digest=reader.digest_name, checkpoint_every=32)
    plain = b"entries" not in (list(reader) and reader.trailer)
    if plain:  # the document's form has neither checkpoints nor a count
        writer = ManifestWriter(out := io.BytesIO(), header, digest=reader.digest_name, checkpoint_every=0)
    writer.add_many([line for _, line in ManifestReader(io.BytesIO(text)).lines()])
    summary = writer.finish(count_entries=not plain)
    assert out.getvalue() == text
    assert summary.digest == reader.file_digest


def test_every_byte_of_a_manifest_is_guarded() -> None:
    for path in (HERE / "unix-sha1.manifest", HERE / "unix-sha1.binary"):
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(MalformedManifest):
                list(open_manifest(io.BytesIO(bytes(damaged))))


def manual_script() -> str:
    """Return the reader in twenty lines that the reference manual prints."""
    return MANUAL.read_text("utf-8").split("```perl\n")[1].split("```")[0]


@pytest.mark.engine("perl")
@pytest.mark.parametrize("path", [*MANIFESTS, *DOCUMENT_LINES], ids=lambda p: p.name)
def test_the_reader_in_the_manual_reads_the_golden_files(path: Path, tmp_path: Path) -> None:
    perl = shutil.which("perl")
    assert perl is not None
    script = tmp_path / "read.pl"
    script.write_text(manual_script(), "utf-8")
    assert len(manual_script().splitlines()) <= 20
    told = subprocess.run([perl, script, path], capture_output=True, check=True).stdout
    expected = b""
    for record in ManifestReader(io.BytesIO(path.read_bytes()), check_hash=False):
        expected += (
            record.path + b"\0" + b"".join(k + b"\0" + v + b"\0" for k, v in record.fields.items()) + b"\0"
        )
    assert told == expected
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes().replace(b"type=", b"tyqe=", 1))
    assert subprocess.run([perl, script, damaged], capture_output=True, check=False).returncode != 0
