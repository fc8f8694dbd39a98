"""Names that part from a hard-linked file, or stay with it: what happens to one reaches no stranger."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compare import Comparer
from tests.property.sync.loop import Loop

CONTENT = b"the same content"
OLD, NEW = (1_600_000_000,) * 2, (1_500_000_000,) * 2


def replace(path: Path, *more: Path) -> None:
    """Put a private file of the same content at ``path``, with these further names."""
    made = path.parent.parent / "made"
    made.write_bytes(CONTENT)
    made.chmod(0o600)
    os.utime(made, NEW)
    made.rename(path)
    for name in more:
        os.link(path, name)


def last_name_goes(source: Path) -> None:
    replace(source / "b", source / "d")


def first_name_goes(source: Path) -> None:
    replace(source / "a", source / "d")


def first_of_three_goes(source: Path) -> None:
    os.link(source / "b", source / "c")
    replace(source / "a", source / "d")


def all_names_change(source: Path) -> None:
    (source / "a").chmod(0o600)
    os.utime(source / "b", NEW)


@pytest.mark.parametrize("change", [last_name_goes, first_name_goes, first_of_three_goes, all_names_change])
def test_each_name_of_the_copy_is_what_it_is_at_the_source(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "a").write_bytes(CONTENT)
    os.link(loop.source / "a", loop.source / "b")
    os.utime(loop.source / "a", OLD)
    loop.sync()
    change(loop.source)
    assert loop.sync().status == "complete"
    comparer = Comparer(str(loop.source), str(loop.copy), skip=(b".mirrorkeep",))
    assert [str(one) for one in comparer.differences()] == []
    loop.check()
    loop.check_unchanged()
