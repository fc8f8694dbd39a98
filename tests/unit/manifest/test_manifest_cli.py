"""The command ``mirrorkeep manifest``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirrorkeep.cli.manifest import manifest
from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record
from tests.unit.manifest.trial import written

ENTRIES = {
    b"a/\xff\n": {b"type": b"file", b"st_size": b"3", b"st_mode": b"100644", b"st_mtime": b"1352141874.5"},
    b"a": {b"type": b"directory", b"st_size": b"10", b"_internal_seen": b"x"},
    b"": {b"type": b"directory", b"st_size": b"20"},
}


def lines(entries: dict[bytes, dict[bytes, bytes]]) -> list[bytes]:
    return [format_record(path, entries[path]) for path in sorted(entries, key=order_key)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "m"
    path.write_bytes(written(lines(ENTRIES)))
    return str(path)


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(manifest, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("command", ["show", "check", "diff", "merge", "convert", "summary"])
def test_every_command_helps_with_an_example_and_speaks_json(command: str) -> None:
    said = run(command, "--help").output
    assert "Example: mirrorkeep manifest" in " ".join(said.split())
    assert "--json" in said


def test_show(file: str) -> None:
    shown = run("show", file).output.splitlines()
    assert shown[0].split() == [
        "100644",
        "3",
        "2012-11-05",
        "18:57:54",
        r"a/\\xff\n".replace(r"\\x", r"\udc"),
    ]
    header, entry, _, root, trailer = objects(run("show", "--json", file))
    assert header["header"]["part"] == "p"
    assert entry["path"].encode("utf-8", "surrogateescape") == b"a/\xff\n"
    assert root == {"path": "", "fields": {"type": "directory", "st_size": "20"}}
    assert trailer == {"trailer": {"entries": "3"}}


def test_internal_fields_are_not_shown(file: str) -> None:
    assert "_internal" not in run("show", "--json", file).output


def test_check(file: str, tmp_path: Path) -> None:
    assert objects(run("check", "--json", file)) == [
        {"file": file, "ok": True, "entries": 3, "form": "text", "complete": True}
    ]
    torn = tmp_path / "torn"
    torn.write_bytes(Path(file).read_bytes()[:-1])
    (said,) = objects(run("check", "--json", str(torn), status=1))
    assert (said["ok"], said["offset"]) == (False, torn.stat().st_size)
    assert "complete" not in run("check", "--partial", str(torn)).output
    assert "3 entries, sound" in run("check", file).output
    assert "torn" in run("check", file, str(torn), status=1).output


def test_check_misses_parts_of_a_set(tmp_path: Path) -> None:
    import io

    from mirrorkeep.manifest.writer import ManifestWriter

    for index in (1, 3):
        out = io.BytesIO()
        ManifestWriter(out, {b"set": b"s", b"set_index": b"%d" % index, b"set_count": b"3"}).finish()
        (tmp_path / str(index)).write_bytes(out.getvalue())
    said = objects(run("check", "--json", str(tmp_path / "1"), str(tmp_path / "3"), status=1))
    assert said[-1] == {"set": "s", "missing": 2}


def test_diff(file: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    changed = {**ENTRIES, b"a": {b"type": b"directory", b"st_size": b"11"}, b"n": {b"type": b"file"}}
    del changed[b"a/\xff\n"]
    other.write_bytes(written(lines(changed)))
    assert objects(run("diff", "--json", file, str(other))) == [
        {"path": "a/\udcff\n", "change": "removed", "fields": []},
        {"path": "a", "change": "changed", "fields": ["_internal_seen", "st_size"]},
        {"path": "n", "change": "new", "fields": []},
    ]
    assert run("diff", file, file, "--exit-code").output == ""
    assert "new" in run("diff", file, str(other), "--exit-code", status=4).output


def test_merge(file: str, tmp_path: Path) -> None:
    patch, merged = tmp_path / "patch", tmp_path / "merged"
    patch.write_bytes(written(lines({b"a/\xff\n": {b"type": b"absent"}}))[:-9])
    (said,) = objects(run("merge", "--partial", "--json", file, str(patch), "-o", str(merged)))
    assert said["entries"] == 2
    expected = {path: fields for path, fields in ENTRIES.items() if b"\xff" not in path}
    assert merged.read_bytes() == written(lines(expected), every=4096)


def test_convert_there_and_back(file: str, tmp_path: Path) -> None:
    binary, text = str(tmp_path / "b"), str(tmp_path / "t")
    run("convert", file, "-o", binary)
    run("convert", binary, "--to", "text", "-o", text)
    assert Path(text).read_bytes() == Path(file).read_bytes()
    assert objects(run("check", "--json", binary))[0]["form"] == "binary"
    assert run("convert", binary).stdout_bytes == Path(file).read_bytes()


def test_a_failed_conversion_leaves_no_file(file: str, tmp_path: Path) -> None:
    Path(file).write_bytes(Path(file).read_bytes()[:-1])
    with pytest.raises(MalformedManifest):
        run("convert", file, "-o", str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_summary(file: str) -> None:
    assert run("summary", file).output == "13\ta\n33\t.\n"
    assert objects(run("summary", "--json", "--depth", "0", file)) == [
        {"path": "", "bytes": 33, "entries": 3}
    ]
