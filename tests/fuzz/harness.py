"""Coverage-guided fuzzing of what reads bytes from elsewhere, with atheris (the optional extra ``fuzz``).

``python tests/fuzz/harness.py TARGET SECONDS [libFuzzer options]``; ``scripts/fuzz`` runs them all.  Every
input is refused with an error of ours or read as what it is: written again it gives the same bytes.
Anything else (another exception, a hang, memory that explodes) ends the run and leaves the input behind.

Not collected by pytest: the same parsers have property tests of their own, which always run.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
from collections.abc import Callable
from zlib import crc32

import atheris

with atheris.instrument_imports(include=["mirrorkeep"]):
    from mirrorkeep.delta.patch import build_delta, delta_operations
    from mirrorkeep.delta.signature import Signature
    from mirrorkeep.errors import MirrorkeepError
    from mirrorkeep.manifest.binary import MAGIC
    from mirrorkeep.manifest.convert import open_manifest
    from mirrorkeep.manifest.record import format_record, parse_record
    from mirrorkeep.server.address import check_part_path, parse_address
    from mirrorkeep.server.dav_locks import parse_if, parse_timeout, submitted_tokens
    from mirrorkeep.server.dav_xml import parse_lock, parse_propfind, parse_proppatch
    from mirrorkeep.server.extensions import parse_content_range
    from mirrorkeep.server.request import unpack
    from mirrorkeep.store.runs import parse_header
    from mirrorkeep.tree import sidecar
    from mirrorkeep.tree.wire import pack_bundle, unpack_bundle

HEADER = b"=header,_internal_type=header,_internal_version=1"
CRC = b",_internal_record_crc="


def sealed(line: bytes) -> bytes:
    """Return a line with the checksum that it ought to have, so that what lies behind that is reached."""
    return line + CRC + b"%08x" % crc32(line + CRC + b"0" * 8)


def manifest(data: bytes) -> None:
    """Text and binary manifests, whole and partial, and single records."""
    lines = b"".join(sealed(line) + b"\n" for line in [HEADER, *data.split(b"\n")])
    for file in (data, MAGIC + data, lines):
        for partial in (False, True):
            with contextlib.suppress(MirrorkeepError):
                for record in open_manifest(io.BytesIO(file), partial=partial):
                    assert parse_record(format_record(record.path, record.fields)).fields == record.fields
    with contextlib.suppress(MirrorkeepError):
        line = sealed(data)
        record = parse_record(line)
        assert format_record(record.path, record.fields) == line
    with contextlib.suppress(MirrorkeepError):
        parse_record(data, check=False)


def sidecars(data: bytes) -> None:
    """Sidecars: as they come, and with a head that is right."""
    for file in (data, sidecar.MAGIC + data, headed(data)):
        with contextlib.suppress(MirrorkeepError):
            found = sidecar.decode_sidecar(file)
            assert sidecar.encode_sidecar(found.generation, found.entries) == file


def headed(data: bytes) -> bytes:
    """Return the head of a sidecar of up to three entries, with its checksum, before the bytes."""
    count, rest = (data[0] & 3 if data else 0), data[1:]
    index = rest[: sidecar.INDEX_BYTES * count]
    guarded = struct.pack(">QII", 1, count, sidecar.HEAD_BYTES + len(rest)) + index
    return sidecar.MAGIC + crc32(guarded).to_bytes(4, "big") + guarded + rest[len(index) :]


def delta(data: bytes) -> None:
    """Deltas and signatures."""
    for start in (b"", b"rs\x026"):
        with contextlib.suppress(MirrorkeepError):
            built = build_delta(delta_operations(start + data))  # neighbouring copies are joined
            assert build_delta(delta_operations(built)) == built
    for start in (b"", b"rs\x01\x47", b"rs\x01\x37"):
        with contextlib.suppress(MirrorkeepError):
            Signature.load(start + data)


def request(data: bytes) -> None:
    """Addresses, headers, WebDAV bodies, bundles, packed bodies."""
    with contextlib.suppress(MirrorkeepError):
        path = parse_address(b"/volumes/v/" + data).path
        components = path.split(b"/") if path else []
        assert not {b"", b".", b".."} & set(components) and b"\0" not in path
    text = data.decode("latin-1")
    readers: list[Callable[[], object]] = [
        lambda: check_part_path(data),
        lambda: parse_if(text),
        lambda: submitted_tokens(parse_if(text)),
        lambda: parse_timeout(text),
        lambda: parse_content_range(text),
        lambda: parse_header(text),
        lambda: parse_propfind(data),
        lambda: parse_proppatch(data),
        lambda: parse_lock(data),
        lambda: unpack(data, gzipped=True, limit_bytes=1 << 20),
    ]
    for read in readers:
        with contextlib.suppress(MirrorkeepError):
            read()
    with contextlib.suppress(MirrorkeepError):
        assert pack_bundle(unpack_bundle(data)) == data


TARGETS = {"manifest": manifest, "sidecar": sidecars, "delta": delta, "request": request}

if __name__ == "__main__":
    chosen, seconds, *options = sys.argv[1:]
    limits = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=1500", f"-max_total_time={seconds}"]
    atheris.Setup([sys.argv[0], *limits, *options], TARGETS[chosen])
    atheris.Fuzz()
