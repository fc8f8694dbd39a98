"""When an upload is compressed (TX-07..10)."""

from __future__ import annotations

import gzip
import os

import pytest

from mirrorkeep.tree.compression import MIN_BYTES, SLOW_LINK_BYTES_PER_S, Compressor, Policy

TEXT = b"what shrinks " * 10_000


def on_a_link(bytes_per_s: float, policy: Policy = "auto") -> Compressor:
    compressor = Compressor(policy)
    compressor.note_sent(1 << 20, (1 << 20) / bytes_per_s)
    return compressor


def test_a_slow_link_gets_what_shrinks_packed_and_a_fast_one_as_it_is() -> None:
    slow, fast = on_a_link(SLOW_LINK_BYTES_PER_S / 10), on_a_link(SLOW_LINK_BYTES_PER_S * 10)
    packed = slow.pack(TEXT)
    assert packed is not None and gzip.decompress(packed) == TEXT
    assert slow.pack(TEXT, lambda: True) is None
    assert slow.pack(os.urandom(len(TEXT))) is None
    assert slow.pack(TEXT[: MIN_BYTES - 1]) is None
    assert fast.pack(TEXT) is None


def test_who_asks_for_it_always_or_never_gets_that() -> None:
    assert on_a_link(SLOW_LINK_BYTES_PER_S * 10, "always").pack(TEXT)
    assert on_a_link(SLOW_LINK_BYTES_PER_S / 10, "never").pack(TEXT) is None


@pytest.mark.parametrize(("share", "asked"), [(10, 0), (0.1, 1)])
def test_whether_content_is_packed_already_is_asked_only_where_it_matters(share: float, asked: int) -> None:
    """The answer costs a microsecond for each file of a bundle."""
    answers = [True]

    assert on_a_link(SLOW_LINK_BYTES_PER_S * share).pack(TEXT, answers.pop) is None
    assert len(answers) == 1 - asked
