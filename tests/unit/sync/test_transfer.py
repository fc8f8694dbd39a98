"""What a transfer makes of what the other side answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.errors import NoSpace
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.store.findings import unknown_record, write_partial
from mirrorkeep.sync import sending
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.sync.orders import Action, Apply, Send, Wanted
from mirrorkeep.sync.transfer import Transfer
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Op, Segment
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from tests.property.sync.loop import Loop


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


@pytest.mark.parametrize("leader", [b"", b"another name"])
def test_content_that_changed_and_nothing_else_is_no_repair(tmp_path: Path, leader: bytes) -> None:
    """Also of a name that was a link to another, and now brings the content for both."""
    (tmp_path / "a").write_bytes(b"content")
    tree = NativeTree(str(tmp_path))
    frame = next(tree.frames([b"a"]))
    assert isinstance(frame, Frame)
    fields = {**parse_record(frame.line).fields, keys.HASH: b"0" * 64}
    if leader:
        fields[keys.HARD_LINK] = leader
    wanted = Wanted(b"a", format_record(b"a", fields), forced=True)
    slave = cast(Any, Refusing([]))
    report = Transfer(tree, slave, signatures=SignatureCache(str(tmp_path)))(Send([wanted]))
    assert [(one.action, one.code) for one in report.outcomes] == [(Action.FAILED, "source_altered")]


def test_content_of_a_large_file_that_changed_and_nothing_else_is_no_repair(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    large = loop.source / "large"
    large.write_bytes(os.urandom(3 * SMALL_FILE_BYTES))
    loop.sync()
    before = large.read_bytes()
    (loop.copy / "large").write_bytes(b"damaged")
    patch = os.fsdecode(LocalSession(os.fspath(loop.copy)).patch_path)
    write_partial(patch, [unknown_record(b"large")])

    def rot(fd: int, segment: Segment) -> bytes:  # as a disk does: no time of the file moves
        data = bytearray(read(fd, segment))
        data[7] ^= 1
        return bytes(data)

    read = sending.read_segment
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sending, "read_segment", rot)
        result = loop.sync()
    assert [failure[:2] for failure in result.failures] == [(b"large", "source_altered")]
    assert (loop.copy / "large").read_bytes() == b"damaged"
    write_partial(patch, [unknown_record(b"large")])
    assert loop.sync().status == "complete"
    assert (loop.copy / "large").read_bytes() == before


@pytest.mark.parametrize(("there", "expected"), [(True, Action.FAILED), (False, Action.VANISHED)])
def test_only_what_the_source_has_no_more_has_vanished(tmp_path: Path, there: bool, expected: Action) -> None:
    (tmp_path / "a").write_bytes(b"content")

    class Missing(Refusing):
        def apply(self, frames: Sequence[Frame]) -> list[Failure]:
            if not there:
                (tmp_path / "a").unlink()
            return self.failures

    slave = cast(Any, Missing([Failure(0, b"a", "not_found", "not found: its folder")]))
    transfer = Transfer(NativeTree(str(tmp_path)), slave, signatures=SignatureCache(str(tmp_path)))
    report = transfer(Send([Wanted(b"a"), Wanted(b"never was")]))
    assert [one.action for one in report.outcomes] == [expected, Action.VANISHED]
