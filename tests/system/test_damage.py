"""Damage behind the store's back: each kind is found and named, nothing else is, and the next run repairs it.

Through the command line alone, against a store that serves.  The client has no part in finding it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.store.keys import create_keys
from rig.compare import Comparer
from rig.served import Result, Served, Volume, checked, command

HIDDEN = ".mirrorkeep"
ODD = os.fsdecode(b"caf\xe9\nname")
DRIVERS = ["dir", pytest.param("btrfs", marks=pytest.mark.btrfs)]


def make_source(root: Path) -> None:
    """Make a tree with one file for each kind of damage, all of it last changed in the past."""
    for folder in ("keep/deep", "hurt", "lost/inside", "touched", "modes"):
        (root / folder).mkdir(parents=True)
    for number in range(40):
        (root / "keep" / f"file{number:02}").write_bytes(os.urandom(3000))
    names = (
        "bytes",
        "shorter",
        "longer",
        "time",
        "mode",
        "attribute",
        "gone",
        "sidecar",
        "nosidecar",
        "type",
    )
    for name in (*names, "owner", ODD):
        (root / "hurt" / name).write_bytes(name.encode("utf-8", "surrogateescape") * 500)
    (root / "hurt" / "large").write_bytes(os.urandom(12_000_000))
    (root / "lost" / "inside" / "file").write_bytes(b"in a folder that goes away")
    (root / "keep" / "link").symlink_to("file00")
    (root / "hurt" / "link").symlink_to("bytes")
    os.mkfifo(root / "keep" / "pipe")
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            os.utime(os.path.join(folder, name), ns=(10**18, 10**18 + 1_000_001), follow_symlinks=False)


def quietly(change: Callable[[Path], object], path: Path) -> None:
    """Change a file and put its time back, as whoever means harm would."""
    status = path.lstat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        middle = path.stat().st_size // 2
        stream.seek(middle)
        byte = stream.read(1)[0]
        stream.seek(middle)
        stream.write(bytes([byte ^ 0x10]))


def sidecar(path: Path) -> Path:
    return path.parent / HIDDEN / path.name


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil(root: Path) -> dict[str, set[str]]:
    """Do every kind of damage to a stored tree; return what has to be found: kinds by path."""
    hurt = root / "hurt"
    quietly(flip, hurt / "bytes")
    quietly(flip, hurt / "large")
    quietly(flip, hurt / ODD)
    quietly(lambda path: os.truncate(path, 100), hurt / "shorter")
    quietly(lambda path: os.truncate(path, 10_000), hurt / "longer")
    os.utime(hurt / "time", ns=(1, 1))
    os.utime(root / "touched", ns=(1, 1))
    (hurt / "mode").chmod(0o4755)
    (root / "modes").chmod(0o711)
    os.setxattr(hurt / "attribute", "user.planted", b"1")
    (hurt / "gone").unlink()
    flip(sidecar(hurt / "sidecar"))
    sidecar(hurt / "nosidecar").unlink()
    become_folder(hurt / "type")
    quietly(relink, hurt / "link")
    shutil.rmtree(root / "lost")
    (root / "keep" / "planted").write_bytes(b"not from the source")
    (root / "keep" / "planted folder").mkdir()
    expected = {
        "hurt/bytes": {"content"},
        "hurt/large": {"content"},
        f"hurt/{ODD}": {"content"},
        "hurt/shorter": {"size"},
        "hurt/longer": {"size"},
        "hurt/time": {"mtime"},
        "touched": {"mtime"},
        "hurt/mode": {"mode"},
        "modes": {"mode"},
        "hurt/attribute": {"xattr"},
        "hurt/gone": {"missing"},
        "hurt/sidecar": {"sidecar"},
        "hurt/nosidecar": {"sidecar"},
        "hurt/type": {"type"},
        "hurt/link": {"link"},
        "lost/inside/file": {"missing"},
        "lost/inside": {"missing"},
        "lost": {"missing"},
        "keep/planted": {"extra"},
        "keep/planted folder": {"extra"},
    }
    if os.geteuid() == 0:
        os.chown(hurt / "owner", 4321, -1)
        expected["hurt/owner"] = {"owner"}
    return expected


def kinds(result: Result) -> dict[str, set[str]]:
    """Return the findings that ``validate --json`` printed, by path."""
    found: dict[str, set[str]] = {}
    for row in result.rows:
        if "kind" in row:
            found.setdefault(row["path"], set()).add(row["kind"])
    return found


class Mirror:
    """A source and a volume that it is mirrored to."""

    def __init__(self, served: Served, folder: Path, name: str = "vol") -> None:
        self.served = served
        self.source = folder / "source"
        self.state = folder / "state"
        make_source(self.source)
        self.volume: Volume = served.create_volume(name)

    def sync(self) -> dict[str, Any]:
        return checked(*self.sync_arguments(), environment=self.volume.environment).last

    def sync_arguments(self) -> list[str]:
        return ["sync", str(self.source), self.volume.url, "--state", str(self.state), "--wait", "--json"]

    def validate(self, *options: str) -> Result:
        argv = ("validate", self.volume.url, "--wait", "--json", *options)
        return command(*argv, environment=self.volume.environment)

    def tip(self) -> Path:
        return self.served.native_path(self.volume.name)

    def differences(self) -> list[str]:
        return [
            str(one)
            for one in Comparer(str(self.source), str(self.tip()), skip=(HIDDEN.encode(),)).differences()
        ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_damage_of_the_tip_is_named_and_repaired_by_the_next_run(
    make_served: Callable[..., Served], tmp_path: Path, driver: str
) -> None:
    mirror = Mirror(make_served(driver=driver), tmp_path)
    assert mirror.sync()["verdict"] == "verified"
    clean = mirror.validate()
    assert (clean.status, kinds(clean), clean.last["verdict"]) == (0, {}, "verified")
    expected = spoil(mirror.tip())
    result = mirror.validate()
    assert kinds(result) == expected
    assert (result.status, result.last["verdict"]) == (4, "failed")
    assert result.last["findings"] == sum(map(len, expected.values()))
    healed = mirror.sync()
    assert healed["verdict"] == "repaired"
    assert mirror.validate().status == 0
    assert [row for row in mirror.differences() if "keep/pipe" not in row] == []
    assert mirror.sync()["verdict"] == "verified"


@pytest.mark.parametrize("driver", DRIVERS)
def test_damage_of_an_old_snapshot_is_named_there_and_only_there(
    make_served: Callable[..., Served], tmp_path: Path, driver: str
) -> None:
    mirror = Mirror(make_served(driver=driver), tmp_path)
    old = mirror.sync()["snapshot"]
    for name in ("bytes", "gone"):
        (mirror.source / "hurt" / name).write_bytes(b"newer")  # so that no inode is shared with the tip
    new = mirror.sync()["snapshot"]
    root = mirror.served.native_path(mirror.volume.name, old)
    if driver == "btrfs":
        subprocess.run(["btrfs", "property", "set", "-f", str(root), "ro", "false"], check=True)
    quietly(flip, root / "hurt" / "bytes")
    (root / "hurt" / "gone").unlink()
    result = mirror.validate("--snapshot", old)
    assert kinds(result) == {"hurt/bytes": {"content"}, "hurt/gone": {"missing"}}
    assert result.status == 4
    result = mirror.validate("--snapshot", new)
    assert (result.status, kinds(result)) == (0, {})
    rows = checked("snapshots", mirror.volume.url, "--json", environment=mirror.volume.environment).rows
    verdicts = {row["name"]: row["verdict"] for row in rows}
    assert (verdicts[old], verdicts[new]) == ("failed", "verified")


def test_a_changed_manifest_is_reported_as_such_and_makes_no_findings(
    served_store: Served, tmp_path: Path
) -> None:
    mirror = Mirror(served_store, tmp_path)
    snapshot = mirror.sync()["snapshot"]
    root = served_store.native_path("vol", snapshot)
    flip(root / HIDDEN / ".mirrorkeep.manifest")
    result = mirror.validate("--snapshot", snapshot)
    assert (result.status, kinds(result)) == (1, {})
    assert result.last["error"]["code"] == "foreign_manifest"
    assert "does not belong to snapshot" in result.errors


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("changed", [False, True])
def test_a_damaged_manifest_of_the_tip_is_written_anew_by_the_next_run(
    make_served: Callable[..., Served], tmp_path: Path, driver: str, changed: bool
) -> None:
    mirror = Mirror(make_served(driver=driver), tmp_path)
    many = mirror.source / "many"
    many.mkdir()
    for number in range(1000):  # so many that the manifest travels as a difference
        (many / f"a file with a long name, number {number}").write_bytes(b"")
    assert mirror.sync()["verdict"] == "verified"
    flip(mirror.tip() / HIDDEN / ".mirrorkeep.manifest")
    result = mirror.validate()
    assert (result.status, result.last["error"]["code"]) == (1, "foreign_manifest")
    if changed:
        (many / "new").write_bytes(b"new")
    assert mirror.sync()["verdict"] == "verified"
    assert mirror.validate().status == 0
    assert mirror.sync()["verdict"] == "verified"
    shutil.rmtree(mirror.tip() / HIDDEN)
    shutil.rmtree(mirror.state)
    healed = command(*mirror.sync_arguments(), environment=mirror.volume.environment)
    assert healed.last["status"] == "complete"
    assert mirror.sync()["verdict"] in ("verified", "repaired")
    assert mirror.validate().status == 0


def test_a_damaged_manifest_is_found_and_written_anew_by_runs_that_change_nothing(
    served_store: Served, tmp_path: Path
) -> None:
    mirror = Mirror(served_store, tmp_path)
    mirror.sync()
    flip(mirror.tip() / HIDDEN / ".mirrorkeep.manifest")
    failed = command(*mirror.sync_arguments(), environment=mirror.volume.environment)
    assert (failed.status, failed.last["verdict"]) == (4, "failed")
    assert mirror.sync()["verdict"] == "verified"
    (mirror.tip() / HIDDEN / ".mirrorkeep.manifest").unlink()
    assert mirror.sync()["verdict"] == "verified"


def test_a_verdict_is_checked_offline(served_store: Served, tmp_path: Path) -> None:
    mirror = Mirror(served_store, tmp_path)
    snapshot = mirror.sync()["snapshot"]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(mirror.validate("--snapshot", snapshot).output)
    second.write_text(mirror.validate("--snapshot", snapshot).output)
    manifest = tmp_path / "manifest"
    shutil.copy(served_store.native_path("vol", snapshot) / HIDDEN / ".mirrorkeep.manifest", manifest)
    key = tmp_path / "verdict.pub"
    shutil.copy(served_store.data / "keys" / "verdict.pub", key)
    served_store.stop()
    check = ("verdict", "check", str(second), "--manifest", str(manifest), "--key", str(key), "--json")
    assert checked(*check).last["holds"] is True
    assert checked(*check, "--previous", str(first)).last["links"] == 1
    second.write_text(second.read_text().replace('"findings": 0', '"findings": 7'))
    assert command(*check).status == 1
    second.write_text(first.read_text())
    flip(manifest)
    assert "another manifest" in command(*check).errors


def test_a_store_that_signs_with_another_key_is_not_believed_and_mirrored_to_all_the_same(
    served_store: Served, tmp_path: Path
) -> None:
    mirror = Mirror(served_store, tmp_path)
    mirror.sync()
    assert mirror.validate().status == 0
    checked("store", "rotate-key", str(served_store.data))
    assert mirror.sync()["verdict"] == "verified"
    assert mirror.validate().status == 0
    folder = served_store.data / "keys"
    for name in ("verdict.key", "verdict.pub"):
        (folder / name).unlink()
    create_keys(str(folder))
    (mirror.source / "new").write_bytes(b"new")
    result = command(*mirror.sync_arguments(), environment=mirror.volume.environment)
    done, error = result.rows[-2:]
    assert (result.status, error["code"]) == (1, "verdict_refused")
    assert (done["status"], done["verdict"]) == ("complete", "refused")
    assert (mirror.tip() / "new").read_bytes() == b"new"
    refused = mirror.validate()
    assert (refused.status, refused.last["code"]) == (1, "verdict_refused")
    for known in (mirror.state, Path(mirror.volume.environment["MIRRORKEEP_STATE"])):
        next(known.glob("*/trust.json")).unlink()
    assert mirror.sync()["verdict"] == "verified"
    assert mirror.validate().status == 0


def test_the_client_is_not_needed_and_may_be_gone(served_store: Served, tmp_path: Path) -> None:
    mirror = Mirror(served_store, tmp_path)
    mirror.sync()
    shutil.rmtree(mirror.source)
    shutil.rmtree(mirror.state)
    quietly(flip, mirror.tip() / "hurt" / "bytes")
    result = mirror.validate()
    assert (result.status, kinds(result)) == (4, {"hurt/bytes": {"content"}})
