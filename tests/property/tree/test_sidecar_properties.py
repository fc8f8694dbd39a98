"""Whatever the bytes: a sidecar decodes to what was encoded, or says that it is malformed."""

from __future__ import annotations

import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorkeep.errors import MalformedSidecar
from mirrorkeep.tree.sidecar import MAGIC, decode_sidecar, encode_sidecar, look_up

entries = st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=15)
generations = st.integers(0, 2**64 - 1)


@given(generations, entries)
def test_decoding_undoes_encoding(generation: int, values: dict[bytes, bytes]) -> None:
    sidecar = decode_sidecar(encode_sidecar(generation, values))
    assert (sidecar.generation, sidecar.entries) == (generation, values)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_decode_or_are_malformed(data: bytes, with_magic: bool) -> None:
    data = MAGIC + data if with_magic else data
    try:
        sidecar = decode_sidecar(data)
    except MalformedSidecar:
        return
    assert encode_sidecar(sidecar.generation, sidecar.entries) == data


@given(generations, entries, st.data())
def test_one_changed_byte_never_passes(
    generation: int, values: dict[bytes, bytes], data: st.DataObject
) -> None:
    encoded = bytearray(encode_sidecar(generation, values))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        sidecar = decode_sidecar(bytes(encoded))
    except MalformedSidecar:
        return
    raise AssertionError(f"a change at {position} passed as {sidecar}")


@settings(max_examples=50)
@given(entries, st.binary(max_size=40))
def test_random_access_agrees_with_decoding(values: dict[bytes, bytes], other: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(encode_sidecar(1, values))
        file.flush()
        for key in [*values, other]:
            assert look_up(file.fileno(), key) == values.get(key)


@settings(max_examples=100)
@given(entries, st.data())
def test_random_access_in_damaged_bytes_never_fails_otherwise(
    values: dict[bytes, bytes], data: st.DataObject
) -> None:
    encoded = bytearray(encode_sidecar(1, values))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryFile() as file:
        os.write(file.fileno(), encoded)
        for key in [*values, b"other"]:
            try:
                found = look_up(file.fileno(), key)
            except MalformedSidecar:
                continue
            assert found is None or isinstance(found, bytes)
