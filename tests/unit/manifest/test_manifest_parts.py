"""Manifests of trees of this machine, of parts of them, and of sets of several (MAN-03, MAN-12)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirrorkeep.cli.manifest import manifest
from mirrorkeep.errors import BadUsage, MalformedManifest, NotFound
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import Record

BIG = os.urandom(700_000)


def run(*argv: str | Path) -> Result:
    result = CliRunner().invoke(manifest, [str(one) for one in argv])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def records(path: Path) -> dict[bytes, Record]:
    with path.open("rb") as stream:
        return {record.path: record for record in ManifestReader(stream)}


def header(path: Path) -> dict[bytes, bytes]:
    with path.open("rb") as stream:
        return ManifestReader(stream).header


def found(result: Result) -> dict[str, str]:
    return {row["path"]: row["change"] for row in map(json.loads, result.output.splitlines())}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "a/deep").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a/leader").write_bytes(b"one file")
    (top / "b/first").hardlink_to(top / "a/leader")
    (top / "b/second").hardlink_to(top / "a/leader")
    (top / "b/big").write_bytes(BIG)
    (top / "a/deep/x\n\udcff").write_bytes(b"odd")
    (top / "a/link").symlink_to("../b")
    return top


@pytest.fixture
def whole(tree: Path, tmp_path: Path) -> Path:
    target = tmp_path / "whole.manifest"
    assert run("create", tree, "-o", target).exit_code == 0
    return target


def test_a_tree_is_described_whole(tree: Path, whole: Path) -> None:
    assert run("check", whole).exit_code == 0
    described = records(whole)
    assert len(described) == 10
    assert described[b"b/first"].fields[keys.HARD_LINK] == b"a/leader"
    assert keys.HARD_LINK not in described[b"a/leader"].fields
    assert described[b"b/big"].size == len(BIG) and len(described[b"b/big"].hash) == 64
    assert header(whole)[b"source"] == os.fsencode(tree)


def test_a_part_made_by_reading_is_the_part_of_the_whole(tree: Path, whole: Path, tmp_path: Path) -> None:
    read, cut = tmp_path / "read", tmp_path / "cut"
    assert run("create", tree, "--path", "b", "-o", read).exit_code == 0
    assert run("extract", whole, "b", "-o", cut).exit_code == 0
    assert records(read) == records(cut)
    assert header(read) == header(cut)
    assert header(cut)[b"subtree"] == b"b"
    inside = records(cut)
    assert list(inside) == [b"big", b"first", b"second", b""]
    assert inside[b"second"].fields[keys.HARD_LINK] == b"first"
    assert keys.HARD_LINK not in inside[b"first"].fields
    assert run("check", cut).exit_code == 0


def test_a_part_of_a_part_is_named_from_the_whole(whole: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run("extract", whole, "a", "-o", one)
    run("extract", one, "deep", "-o", two)
    assert header(two)[b"subtree"] == b"a/deep"
    assert list(records(two)) == [b"x\n\xff", b""]


def test_a_copy_of_a_part_holds_against_the_whole_and_against_the_part(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    cut, copy = tmp_path / "cut", tmp_path / "copy"
    run("extract", whole, "a", "-o", cut)
    shutil.copytree(tree / "a", copy, symlinks=True)
    link, root = os.lstat(tree / "a/link"), os.stat(tree / "a")
    os.utime(copy / "link", ns=(link.st_atime_ns, link.st_mtime_ns), follow_symlinks=False)
    os.utime(copy, ns=(root.st_atime_ns, root.st_mtime_ns))
    assert run("verify", whole, copy, "--path", "a").output == ""
    assert run("verify", cut, copy).exit_code == 0
    shutil.rmtree(copy / "deep")
    result = run("verify", cut, copy, "--json")
    assert result.exit_code == 4
    names = found(result)
    assert names["deep"] == names["deep/x\n\udcff"] == "missing"
    assert names[""] == "changed"


def test_damage_is_named_and_an_undamaged_tree_holds(tree: Path, whole: Path) -> None:
    assert run("verify", whole, tree).exit_code == 0
    before = os.stat(tree / "b/big")
    (tree / "b/big").write_bytes(BIG[:-1] + b"?")
    os.utime(tree / "b/big", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found(run("verify", whole, tree, "--json")) == {"b/big": "changed"}
    (tree / "b/second").unlink()
    shutil.copy2(tree / "a/leader", tree / "b/second")
    apart = found(run("verify", whole, tree, "--json"))
    assert apart["b/second"] == "changed", "it is no further name any more"


def test_a_set_of_trees_misses_a_part_by_its_number(tree: Path, tmp_path: Path) -> None:
    into = tmp_path / "set"
    assert run("create", tree / "a", tree / "b", "--into", into, "--name", "laptop").exit_code == 0
    first, second = sorted(into.iterdir())
    assert header(second)[b"set"] == b"laptop" and header(second)[b"set_index"] == b"2"
    assert run("check", first, second).exit_code == 0
    missing = run("check", first)
    assert missing.exit_code == 1 and "part 2 is missing" in missing.output


def test_manifests_that_are_there_become_a_set(tree: Path, whole: Path, tmp_path: Path) -> None:
    other, into = tmp_path / "other", tmp_path / "set"
    run("create", tree / "b", "-o", other, "--hash", "sha1")
    assert run("set", whole, other, "--into", into).exit_code == 0
    first, second = sorted(into.iterdir())
    assert records(first) == records(whole) and records(second) == records(other)
    assert header(first)[b"set"] == header(second)[b"set"]
    assert run("check", second).exit_code == 1
    assert run("check", first, second).exit_code == 0
    again = tmp_path / "cut"
    run("extract", second, "", "-o", again)
    assert b"set" not in header(again), "a part of a set's part is no part of the set"


def test_what_is_no_part_of_the_tree_is_refused(tree: Path, whole: Path, tmp_path: Path) -> None:
    for path in ("../tree", "a/link", "a/leader", "nowhere"):
        with pytest.raises(BadUsage, match="no directory inside"):
            run("create", tree, "--path", path)
    for path in ("nowhere", "a/leader"):
        with pytest.raises(NotFound):
            run("extract", whole, path, "-o", tmp_path / "cut")
        with pytest.raises(NotFound):
            run("verify", whole, tree, "--path", path)
    with pytest.raises(BadUsage, match="--into"):
        run("create", tree / "a", tree / "b")
    assert sorted(os.listdir(tmp_path)) == ["tree", "whole.manifest"]


def test_a_part_of_a_damaged_manifest_is_not_handed_out(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[: data.rindex(b"\n=trailer") + 1])
    with pytest.raises(MalformedManifest):
        run("extract", whole, "a", "-o", tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_named_and_left_out(tree: Path, tmp_path: Path) -> None:
    (tree / "b/big").chmod(0)
    result = run("create", tree, "-o", tmp_path / "some")
    assert result.exit_code == 3 and "b/big" in result.stderr
    assert b"b/big" not in records(tmp_path / "some")
