"""The sidecar's format is frozen: what was once written stays readable, and is still what we write."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorkeep.tree.sidecar import decode_sidecar, encode_sidecar

HERE = Path(__file__).parent
RECORD = (
    b"=ad/2d/wf,hash=52d7173aca089119fa309bb0fdf290388579b820,st_atime=1352141874,st_gid=100,"
    b"st_ino=2697433,st_mode=100644,st_mtime=1352141874,st_size=43,st_uid=1012,type=file,"
    b"_internal_record_crc=373e829e"
)
KNOWN = {
    "empty-1": (0, {}),
    "record-1": (1_352_141_874_000_000_000, {b"record": RECORD}),
    "properties-1": (
        2**64 - 1,
        {
            b"record": RECORD,
            b"dav:{http://example.org/ns}author": b"Zo\xc3\xab",
            b"lock:opaquelocktoken:1": b"",
            b"native:recorded_only": b"xattr:a\0xattr:b",
            b"": b"an empty key",
            b"\xff": bytes(range(256)),
        },
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_frozen_bytes_are_read_and_written(name: str) -> None:
    data = bytes.fromhex((HERE / f"{name}.hex").read_text("ascii"))
    generation, entries = KNOWN[name]
    sidecar = decode_sidecar(data)
    assert (sidecar.generation, sidecar.entries) == (generation, entries)
    assert encode_sidecar(generation, entries) == data
