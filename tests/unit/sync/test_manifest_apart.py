"""A manifest is a file of its own: it tells all metadata where neither source nor copy is (MAN-02)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from click.testing import CliRunner

from mirrorkeep.cli.manifest import manifest
from mirrorkeep.manifest.reader import ManifestReader
from tests.property.sync.loop import Loop


def run(*argv: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(manifest, argv)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.output.splitlines()]


def test_manifests_of_a_full_and_a_later_run_are_compared_on_another_machine(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "machine")
    (loop.source / "folder").mkdir(parents=True)
    for number in range(5):
        (loop.source / "folder" / f"f{number}").write_bytes(b"%d" % number * 1000)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    loop.sync()
    shutil.copyfile(loop.manifest_path(), elsewhere / "full")
    (loop.source / "folder" / "f1").write_bytes(b"edited")
    (loop.source / "folder" / "f2").chmod(0o640)
    os.setxattr(loop.source / "folder" / "f3", "user.note", b"new")
    (loop.source / "folder" / "f4").unlink()
    (loop.source / "added").write_bytes(b"added")
    expected = {path: (loop.source / os.fsdecode(path)).lstat() for path in (b"folder/f1", b"added", b"")}
    loop.sync()
    shutil.copyfile(loop.manifest_path(), elsewhere / "later")
    shutil.rmtree(loop.folder)

    rows = {row["path"]: row for row in run("diff", "--json", f"{elsewhere}/full", f"{elsewhere}/later")}
    assert {path: row["change"] for path, row in rows.items()} == {
        "added": "new",
        "folder/f1": "changed",
        "folder/f2": "changed",
        "folder/f3": "changed",
        "folder/f4": "removed",
        "folder": "changed",
        "": "changed",
    }
    assert "hash" in str(rows["folder/f1"]["fields"]) and "st_mode" in str(rows["folder/f2"]["fields"])
    with (elsewhere / "later").open("rb") as stream:
        told = {record.path: record for record in ManifestReader(stream)}
    for path, status in expected.items():
        assert (told[path].mode, told[path].mtime_ns) == (status.st_mode, status.st_mtime_ns)
    assert told[b"folder/f1"].size == 6
