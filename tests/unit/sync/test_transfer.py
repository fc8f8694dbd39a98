"""What a transfer makes of what the other side answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.errors import NoSpace
from mirrorkeep.sync.orders import Apply
from mirrorkeep.sync.transfer import Transfer
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Op


class Refusing:
    """A slave that refuses what it is given."""

    sent_bytes = 0

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures

    def apply(self, frames: Sequence[Frame]) -> list[Failure]:
        return self.failures


def apply(tmp_path: Path, *failures: Failure) -> list[Failure]:
    slave = cast(Any, Refusing(list(failures)))
    transfer = Transfer(NativeTree(str(tmp_path)), slave, signatures=SignatureCache(str(tmp_path)))
    return transfer(Apply([Frame(Op.DIRECTORY, b"a")])).failures


def test_one_entry_that_is_refused_is_reported(tmp_path: Path) -> None:
    refused = Failure(0, b"a", "path_refused", "not a place for a file")
    assert apply(tmp_path, refused) == [refused]


def test_a_full_store_ends_the_run_and_says_so_once(tmp_path: Path) -> None:
    said = str(NoSpace(detail="a: No space left on device"))
    with pytest.raises(NoSpace) as raised:
        apply(tmp_path, Failure(0, b"a", NoSpace.code, said))
    assert str(raised.value) == said
