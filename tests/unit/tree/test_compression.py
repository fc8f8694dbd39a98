"""When an upload is compressed (TX-07..10)."""

from __future__ import annotations

import gzip
import os

import pytest

from mirrorkeep.tree import remote
from mirrorkeep.tree.client import StoreClient
from mirrorkeep.tree.compression import MIN_BYTES, SLOW_LINK_BYTES_PER_S, Compressor, Policy
from mirrorkeep.tree.protocol import Frame, Op

TEXT = b"what shrinks " * 10_000


def on_a_link(bytes_per_s: float, policy: Policy = "auto") -> Compressor:
    compressor = Compressor(policy)
    compressor.note_sent(1 << 20, (1 << 20) / bytes_per_s)
    return compressor


def test_a_slow_link_gets_what_shrinks_packed_and_a_fast_one_as_it_is() -> None:
    slow, fast = on_a_link(SLOW_LINK_BYTES_PER_S / 10), on_a_link(SLOW_LINK_BYTES_PER_S * 10)
    packed = slow.pack(TEXT)
    assert packed is not None and gzip.decompress(packed) == TEXT
    assert slow.pack(TEXT, packed=True) is None
    assert slow.pack(os.urandom(len(TEXT))) is None
    assert slow.pack(TEXT[: MIN_BYTES - 1]) is None
    assert fast.pack(TEXT) is None


def test_who_asks_for_it_always_or_never_gets_that() -> None:
    assert on_a_link(SLOW_LINK_BYTES_PER_S * 10, "always").pack(TEXT)
    assert on_a_link(SLOW_LINK_BYTES_PER_S / 10, "never").pack(TEXT) is None


@pytest.mark.parametrize(("share", "looked_at"), [(10, 0), (0.1, 2)])
def test_file_types_are_looked_at_only_where_packing_is_a_question(
    monkeypatch: pytest.MonkeyPatch, share: float, looked_at: int
) -> None:
    """On a fast link that is a microsecond for each file, for nothing."""
    asked: list[bytes] = []
    monkeypatch.setattr(remote, "packed_by_type", lambda path: asked.append(path) is None)
    tree = remote.RemoteTree(StoreClient.__new__(StoreClient))
    tree._compressor = on_a_link(SLOW_LINK_BYTES_PER_S * share)
    sent: list[bool] = []

    def upload(method: str, url: str, body: bytes, headers: dict[str, str], *, packed: bool) -> bytes:
        sent.append(packed)
        return b'{"applied": 2, "failed": []}'

    monkeypatch.setattr(tree, "_upload", upload)
    monkeypatch.setattr(StoreClient, "url", lambda self: "/")
    frames = [Frame(Op.PUT, b"=%d.zip,type=file" % number, TEXT) for number in (1, 2)]
    assert tree.apply(frames) == []
    assert (len(asked), sent) == (looked_at, [bool(looked_at)])
