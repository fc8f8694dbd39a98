"""The benchmark's input has the shape it claims, and is the same for the same seed."""

from __future__ import annotations

import gzip
from pathlib import Path

from bench import trees
from rig.compare import Comparer


def content_differences(left: Path, right: Path) -> list[bytes]:
    kinds = ("content", "size", "missing", "extra")
    return [d.path for d in Comparer(str(left), str(right)).differences() if d.kind in kinds]


def test_small_files_have_the_promised_sizes_and_folders(tmp_path: Path) -> None:
    total = trees.make_small_files(str(tmp_path), 3000)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3000
    assert total == sum(path.stat().st_size for path in files)
    assert 0.9 * trees.MEAN_BYTES < total / 3000 < 1.1 * trees.MEAN_BYTES
    folders = {path.parent for path in files}
    assert len(folders) == 3000 // trees.FILES_IN_FOLDER
    text = b"".join(path.read_bytes() for path in files if path.suffix == ".txt")
    noise = b"".join(path.read_bytes() for path in files if path.suffix == ".jpg")
    assert len(gzip.compress(text, 1)) < 0.7 * len(text)
    assert len(gzip.compress(noise, 1)) > 0.99 * len(noise)


def test_the_same_seed_makes_the_same_tree(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        trees.make_small_files(str(tmp_path / name), 200, seed=seed)
    assert content_differences(tmp_path / "one", tmp_path / "two") == []
    assert len(content_differences(tmp_path / "one", tmp_path / "other")) > 190


def test_a_change_touches_exactly_its_share(tmp_path: Path) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        trees.make_small_files(str(tmp_path / name), 1000)
    changed = trees.change_small_files(str(tmp_path / "after"), 1000, 0.01, seed=7)
    assert changed == 10
    assert len(content_differences(tmp_path / "before", tmp_path / "after")) == 10


def test_an_edit_rewrites_its_share_of_blocks_and_inserts_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 8 << 20
    trees.make_large_file(str(path), size)
    before = path.read_bytes()
    trees.edit_large_file(str(path), 0.01, seed=3)
    after = path.read_bytes()
    assert len(after) == size + trees.INSERTION_BYTES
    middle = size // 2
    without = after[:middle] + after[middle + trees.INSERTION_BYTES :]
    step = trees.EDIT_BYTES
    edited = [at for at in range(0, size, step) if before[at : at + step] != without[at : at + step]]
    assert len(edited) == size // step // 100
