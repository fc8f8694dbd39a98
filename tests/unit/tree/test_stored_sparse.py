"""What a record calls a hole: what is no range is refused, and no content is lost to a wrong claim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import MalformedRequest
from mirrorkeep.tree.protocol import Frame, Op, Segment
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.transaction import segment_digest
from tests.unit.tree.stored_trial import file_line, put


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        yield opened


BAD_RANGES = [b"1_0+2", b"0+-4", b"-5+10", b"0+4;2+4", b"0+0", b"4090+7", b"0", b" 0+4", b"x"]


@pytest.mark.parametrize("sparse", BAD_RANGES)
def test_ranges_that_make_no_sense_are_refused(tree: StoredTree, root: Path, sparse: bytes) -> None:
    content = b"x" * 4096
    tree.apply([put(b"old", b"old")])
    frames = [put(b"new", content, sparse=sparse), put(b"old", content, sparse=sparse)]
    assert [failure.code for failure in tree.apply(frames)] == ["malformed_request"] * 2
    assert not (root / "new").exists()
    assert tree.check(b"old", file_line(b"old", b"old"), content=True) == []
    transaction = tree.begin(file_line(b"old", content), on_base=False)
    transaction.write(Segment(0, 4096), content, delta=False, digest=segment_digest(content))
    with pytest.raises(MalformedRequest):
        transaction.finish(file_line(b"old", content, sparse=sparse), [Segment(0, 4096)])
    assert tree.check(b"old", file_line(b"old", b"old"), content=True) == []


@pytest.mark.parametrize("sparse", [b"", b"4096+4096", b"0+4096", b"8192+4096"])
def test_a_wrong_claim_of_holes_loses_nothing(tree: StoredTree, sparse: bytes) -> None:
    content = b"x" * 8192 + bytes(1 << 21)
    bundled, large = (file_line(path, content, sparse=sparse) for path in (b"bundled", b"large"))
    assert tree.apply([Frame(Op.PUT, bundled, content), Frame(Op.PUT, bundled, memoryview(content))]) == []
    assert tree.check(b"bundled", bundled, content=True) == []
    whole = Segment(0, len(content))
    for base in (False, True):
        transaction = tree.begin(large, on_base=base)
        transaction.write(whole, content, delta=False, digest=segment_digest(content))
        transaction.finish(large, [whole])
        assert tree.check(b"large", large, content=True) == []
