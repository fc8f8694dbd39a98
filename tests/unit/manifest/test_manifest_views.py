"""What is made of manifests: merges, differences, usage, sets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.difference import EntryDifference, compare_manifests
from mirrorkeep.manifest.merge import merge_lines, merge_records
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.parts import find_missing_parts
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.manifest.usage import DirectoryUsage, summarise_usage
from mirrorkeep.sync.describe import describe_tree


def record(path: bytes, **fields: bytes) -> Record:
    return Record(path, {b"type": b"file", **{k.encode(): v for k, v in fields.items()}})


def keyed(records: list[Record]) -> list[tuple[bytes, bytes]]:
    return [(order_key(r.path), format_record(r.path, r.fields)) for r in records]


OLD = [record(b"a", v=b"1"), record(b"b", v=b"1"), record(b"c", v=b"1"), record(b"d", v=b"1")]
NEW = [record(b"a!", v=b"2"), record(b"b", v=b"2")]
PATCH = [record(b"b", type=b"absent"), record(b"c", type=b"unknown"), record(b"zz", type=b"absent")]


def test_the_newer_record_wins() -> None:
    merged = [OLD[0], NEW[0], NEW[1], OLD[2], OLD[3]]
    assert list(merge_records(OLD, NEW)) == merged
    assert list(merge_lines(keyed(OLD), keyed(NEW))) == keyed(merged)


def test_a_patch_removes_and_marks() -> None:
    merged = [OLD[0], PATCH[1], OLD[3]]
    assert list(merge_records(OLD, PATCH)) == merged
    assert list(merge_lines(keyed(OLD), keyed(PATCH))) == keyed(merged)


def test_three_streams_one_and_none() -> None:
    merged = [OLD[0], NEW[0], PATCH[1], OLD[3]]
    assert list(merge_records(OLD, NEW, PATCH)) == merged
    assert list(merge_records(OLD, PATCH, NEW)) == [OLD[0], NEW[0], NEW[1], PATCH[1], OLD[3]]
    assert list(merge_lines(keyed(OLD), keyed(NEW), keyed(PATCH))) == keyed(merged)
    assert list(merge_records(OLD)) == OLD
    assert list(merge_records()) == []
    assert list(merge_records([], OLD)) == list(merge_records(OLD, [])) == OLD


def test_a_path_that_says_absent_is_not_absent() -> None:
    tricky = [record(b"x,type=absent,", name=b",type=absent,")]
    assert list(merge_lines(keyed(tricky), [])) == keyed(tricky)


def test_merging_reads_no_more_than_it_must() -> None:
    def endless(prefix: bytes) -> object:
        number = 0
        while True:
            yield record(b"%b%09d" % (prefix, number))
            number += 1

    merged = merge_records(endless(b"a"), endless(b"b"))  # type: ignore[arg-type]
    assert [next(merged).path for _ in range(3)] == [b"a000000000", b"a000000001", b"a000000002"]


def test_differences() -> None:
    old = [record(b"a", st_size=b"1"), record(b"b"), record(b"c", st_atime=b"1"), record(b"", st_ino=b"1")]
    new = [
        record(b"a", st_size=b"2", x=b""),
        record(b"bb"),
        record(b"c", st_atime=b"2"),
        record(b"", st_ino=b"1"),
    ]
    assert list(compare_manifests(old, new)) == [
        EntryDifference(b"a", "changed", (b"st_size", b"x")),
        EntryDifference(b"b", "removed"),
        EntryDifference(b"bb", "new"),
    ]
    everything = list(compare_manifests(old, new, ignored=frozenset()))
    assert everything[-1] == EntryDifference(b"c", "changed", (b"st_atime",))
    assert list(compare_manifests([], NEW)) == [EntryDifference(r.path, "new") for r in NEW]
    assert list(compare_manifests(OLD, [])) == [EntryDifference(r.path, "removed") for r in OLD]


def test_usage_of_a_part_without_directories() -> None:
    records = [record(b"a/b/c", st_size=b"5"), record(b"a/d", st_size=b"7"), record(b"e", st_size=b"11")]
    assert list(summarise_usage(records)) == [DirectoryUsage(b"", 23, 3)]
    assert list(summarise_usage([])) == [DirectoryUsage(b"", 0, 0)]


@pytest.mark.engine("du")
def test_usage_is_what_du_says(tmp_path: Path) -> None:
    for number, name in enumerate([b"a/b/c/f", b"a/b/g", b"a/\xff\xfe", b"a b", b"a!/x", b"z/z/z/z/z"], 1):
        file = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as stream:
            stream.write(bytes(number * 1001))
    (tmp_path / "empty").mkdir()
    os.link(tmp_path / "a/b/g", tmp_path / "a/b/h")
    os.symlink("a/b", tmp_path / "link")
    told = subprocess.run(["du", "-b", "-0", "."], cwd=tmp_path, capture_output=True, check=True).stdout
    by_du = {}
    for line in told.split(b"\0")[:-1]:
        size, _, path = line.partition(b"\t")
        by_du[path[2:]] = int(size)
    records = [parse_record(line) for line in describe_tree(os.fspath(tmp_path), lambda path, detail: None)]
    if subprocess.run(["du", "-b", tmp_path / "empty"], capture_output=True, check=True).stdout[:2] == b"0\t":
        for item in records:  # coreutils since 9.2 count no directories
            if item.kind == b"directory":
                item.fields[b"st_size"] = b"0"
    assert {usage.path: usage.size_bytes for usage in summarise_usage(records)} == by_du


def test_missing_parts_of_a_set() -> None:
    def header(index: bytes, count: bytes = b"3", name: bytes = b"s") -> dict[bytes, bytes]:
        return {b"set": name, b"set_index": index, b"set_count": count}

    assert find_missing_parts([header(b"1"), header(b"3"), {}, header(b"1", b"1", b"t")]) == {
        b"s": [2],
        b"t": [],
    }
    for wrong in ([header(b"4")], [header(b"0")], [header(b"x")], [header(b"1"), header(b"2", b"2")]):
        with pytest.raises(MalformedManifest):
            find_missing_parts(wrong)
