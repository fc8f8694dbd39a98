"""The names that one file has: found by inode, whatever is named of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.groups import other_names
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record

INODES = {b"a": b"5", b"b/deep": b"6", b"b/one": b"5", b"c": b"7", b"d,e": b"5", b"z": b"6"}


def line(path: bytes, inode: bytes, links: bytes = b"3", kind: bytes = keys.FILE) -> bytes:
    return format_record(path, {keys.INODE: inode, keys.LINKS: links, keys.TYPE: kind})


def others(named: list[bytes], folder: Path) -> list[bytes]:
    lines = [line(path, inode) for path, inode in INODES.items()]
    lines += [line(b"zz alone", b"5", b"1"), line(b"zz folder", b"5", kind=keys.DIRECTORY), line(b"", b"9")]
    return list(other_names(lines, map(order_key, named), str(folder)))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([b"b/one"], [b"a", b"d,e"]),
        ([b"a", b"d,e"], [b"b/one"]),
        ([b"0 not there", b"b/deep", b"d,e"], [b"a", b"b/one", b"z"]),
        ([b"c"], []),
        ([b"zz alone"], []),
        ([], []),
    ],
)
def test_the_other_names_of_what_is_named_come_in_order(
    named: list[bytes], expected: list[bytes], tmp_path: Path
) -> None:
    assert others(named, tmp_path) == expected
    assert list(tmp_path.iterdir()) == []
