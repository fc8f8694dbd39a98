"""What history costs and what it is good for: the growth of the pool, and old versions, at once (SNP-*)."""

from __future__ import annotations

import http.client
import os
import random
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig import scratch
from rig.compare import Comparer
from rig.mirrored import Mirrored
from rig.served import Served, Volume, checked, command

KIB, MIB = 1 << 10, 1 << 20
OVERHEAD_BYTES = 128 * KIB
"""What a run may leave besides the changed blocks: manifest, verdict and sidecars, in blocks of 4 KiB."""
VERSIONS = 5


# --- what it costs (SNP-07, SNP-08, SNP-10) -------------------------------------------------------------


@pytest.fixture(scope="module")
def btrfs_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("growth")
    served = Served(folder / "data", driver="btrfs", size="1G", limit_s=600)
    try:
        served.create()
        served.start()
        yield served
    finally:
        served.stop()
        scratch.discard(folder)


def used_bytes(served: Served) -> int:
    """Return how many bytes of data the whole pool holds, each shared block counted once."""
    pool = str(served.data / "pool")
    subprocess.run(["btrfs", "filesystem", "sync", pool], check=True, capture_output=True)
    told = subprocess.run(
        ["btrfs", "filesystem", "df", "-b", pool], check=True, capture_output=True, text=True
    )
    found = re.search(r"^Data, .*used=(\d+)", told.stdout, re.MULTILINE)
    assert found, told.stdout
    return int(found[1])


@pytest.mark.root
@pytest.mark.btrfs
def test_the_pool_grows_by_what_changed_and_each_version_stays_whole(
    btrfs_store: Served, tmp_path: Path
) -> None:
    """10 MiB and five days of 128 KiB take 10.6 MiB, and each of the six versions is a full."""
    mirrored = Mirrored(btrfs_store, tmp_path, "--compress", "never")
    mirrored.source.mkdir()
    chance = random.Random(10)
    content = bytearray(chance.randbytes(10 * MIB))
    empty = used_bytes(btrfs_store)
    versions, grown = [], []
    for day in range(VERSIONS + 1):
        if day:
            content[day * MIB : day * MIB + 128 * KIB] = chance.randbytes(128 * KIB)
        (mirrored.source / "image").write_bytes(content)
        before = used_bytes(btrfs_store)
        snapshot = mirrored.sync("--wait")["snapshot"]
        grown.append(used_bytes(btrfs_store) - before)
        versions.append((snapshot, bytes(content)))
    assert 10 * MIB <= grown[0] <= 10 * MIB + OVERHEAD_BYTES
    for more in grown[1:]:
        assert 128 * KIB <= more <= 128 * KIB + OVERHEAD_BYTES
    whole = used_bytes(btrfs_store) - empty
    assert whole <= 10 * MIB + VERSIONS * 128 * KIB + (VERSIONS + 1) * OVERHEAD_BYTES
    for snapshot, expected in versions:
        assert (btrfs_store.native_path("vol", snapshot) / "image").read_bytes() == expected
    before = used_bytes(btrfs_store)
    mirrored.sync("--wait")
    assert used_bytes(btrfs_store) - before <= OVERHEAD_BYTES, "nothing changed"


# --- what it is good for (SNP-06, SNP-11, REC-08, REC-11) ------------------------------------------------


def bytes_read_by(served: Served) -> int:
    """Return how much the server's processes have read so far, from files and from connections."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0]) for pid in served.pids)


class Reader:
    """Reads files of snapshots over one connection."""

    def __init__(self, volume: Volume) -> None:
        context = ssl.create_default_context(cafile=volume.ca)
        self._volume = volume
        self._link = http.client.HTTPSConnection(volume.url.split("/")[2], context=context, timeout=20)

    def read(self, snapshot: str, name: str) -> bytes:
        url = f"/snapshots/{snapshot}/{self._volume.name}/{name}"
        self._link.request("GET", url, headers={"Authorization": f"Bearer {self._volume.token}"})
        answer = self._link.getresponse()
        assert answer.status == 200
        return answer.read()

    def close(self) -> None:
        self._link.close()


def test_the_oldest_version_is_read_with_no_more_work_than_the_newest(store: Served, tmp_path: Path) -> None:
    """What the server reads is counted: the file once, whichever version, and no chain of increments."""
    mirrored = Mirrored(store, tmp_path, volume=store.create_volume("versions"))
    mirrored.source.mkdir()
    chance = random.Random(6)
    content = bytearray(chance.randbytes(4 * MIB))
    versions = []
    for version in range(VERSIONS):
        content[version * 300 * KIB : version * 300 * KIB + 200 * KIB] = chance.randbytes(200 * KIB)
        (mirrored.source / "image").write_bytes(content)
        (mirrored.source / f"only in {version}").write_bytes(b"%d" % version)
        (mirrored.source / f"only in {version - 1}").unlink(missing_ok=True)
        versions.append((mirrored.sync("--wait")["snapshot"], bytes(content)))
    mirrored.check_verdict()  # nothing is left to be read behind the scenes
    reader = Reader(mirrored.volume)
    reader.read(versions[0][0], "image")  # the connection is made, the worker knows the volume
    work = []
    for number, (snapshot, expected) in enumerate(versions):
        assert reader.read(snapshot, f"only%20in%20{number}") == b"%d" % number
        before = bytes_read_by(store)
        assert reader.read(snapshot, "image") == expected
        work.append(bytes_read_by(store) - before)
        native = store.native_path("versions", snapshot)
        assert (native / "image").read_bytes() == expected
        assert {path.name for path in native.iterdir()} == {".mirrorkeep", "image", f"only in {number}"}
    reader.close()
    assert min(work) >= 4 * MIB
    assert max(work) <= min(work) + 64 * KIB


def make_home(folder: Path) -> None:
    for name, content in {
        "letters/anna.txt": b"dear Anna\n",
        "letters/bert.txt": b"dear Bert\n",
        "photos/2026/one.jpg": random.Random(1).randbytes(3 * MIB),
        "ledger.db": random.Random(2).randbytes(2 * MIB),
    }.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    os.chmod(folder / "letters", 0o750)
    os.symlink("letters/anna.txt", folder / "newest letter")
    os.link(folder / "letters/anna.txt", folder / "letters/again")
    os.setxattr(folder / "ledger.db", "user.owner", b"accounts")
    os.utime(folder / "letters/bert.txt", ns=(0, 1_700_000_000_123_456_789))


def differences(one: Path, other: Path) -> list[str]:
    return [str(found) for found in Comparer(str(one), str(other)).differences()]


@pytest.fixture(scope="module")
def home(store: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Mirrored, list[str], Path]:
    """A home that lost a folder and then had a file overwritten, its snapshots, and what it was at first."""
    folder = tmp_path_factory.mktemp("home")
    mirrored = Mirrored(store, folder, volume=store.create_volume("home"))
    mirrored.source.mkdir()
    make_home(mirrored.source)
    snapshots = [mirrored.sync("--wait")["snapshot"]]
    good = folder / "as it was"
    subprocess.run(["cp", "-a", str(mirrored.source), str(good)], check=True)
    subprocess.run(["rm", "-r", str(mirrored.source / "letters")], check=True)
    snapshots.append(mirrored.sync("--wait")["snapshot"])
    with (mirrored.source / "ledger.db").open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"encrypted by somebody" * 1000)
    snapshots.append(mirrored.sync("--wait")["snapshot"])
    return mirrored, snapshots, good


def restore(volume: Volume, target: Path, *options: str, **environment: str) -> dict[str, Any]:
    argv = ("restore", volume.url, str(target), "--json", *options)
    return checked(*argv, environment=volume.environment | environment).last


def test_what_was_deleted_and_what_was_overwritten_come_back_from_before(
    home: tuple[Mirrored, list[str], Path], tmp_path: Path
) -> None:
    mirrored, snapshots, good = home
    for number, (snapshot, letters, ledger) in enumerate(
        zip(snapshots, (True, False, False), (True, True, False), strict=True)
    ):
        target = tmp_path / str(number)
        restore(mirrored.volume, target, "--snapshot", snapshot)
        assert (target / "letters").exists() == letters
        assert ((target / "ledger.db").read_bytes() == (good / "ledger.db").read_bytes()) == ledger
        if number == 0:
            assert differences(good, target) == []
    # The same without the client: the store's own folder of that day.
    frozen = mirrored.snapshot_root(snapshots[0])
    assert (frozen / "letters" / "anna.txt").read_bytes() == b"dear Anna\n"


def test_a_file_a_folder_and_the_whole_come_back_by_the_same_command(
    home: tuple[Mirrored, list[str], Path], tmp_path: Path
) -> None:
    """With all metadata each; and only what was asked for is fetched."""
    mirrored, snapshots, good = home
    first = ("--snapshot", snapshots[0])
    file = restore(mirrored.volume, tmp_path / "file", "--path", "letters/bert.txt", *first)
    assert [path.name for path in (tmp_path / "file").iterdir()] == ["bert.txt"]
    assert (file["entries"], file["restored"], file["bytes_read"]) == (1, 1, len(b"dear Bert\n"))
    kept = (tmp_path / "file" / "bert.txt").stat()
    assert (kept.st_mtime_ns, kept.st_mode) == (
        1_700_000_000_123_456_789,
        (good / "letters/bert.txt").stat().st_mode,
    )
    folder = restore(mirrored.volume, tmp_path / "folder", "--path", "letters", *first)
    assert differences(good / "letters", tmp_path / "folder") == []
    assert folder["bytes_read"] < KIB
    database = restore(mirrored.volume, tmp_path / "database", "--path", "ledger.db", *first)
    assert (tmp_path / "database" / "ledger.db").read_bytes() == (good / "ledger.db").read_bytes()
    assert os.getxattr(tmp_path / "database" / "ledger.db", "user.owner") == b"accounts"
    assert database["restored"] == 1
    restore(mirrored.volume, tmp_path / "whole", *first)
    assert differences(good, tmp_path / "whole") == []
    missing = command(
        *("restore", mirrored.volume.url, str(tmp_path / "none"), "--path", "letters/nobody.txt", *first),
        environment=mirrored.volume.environment,
    )
    assert missing.status == 1 and "nobody.txt" in missing.errors


def test_another_machine_and_the_first_one_restore_alike(
    home: tuple[Mirrored, list[str], Path], tmp_path: Path
) -> None:
    """Another machine has nothing but the address, a token and the CA; the first one is put back in place."""
    mirrored, snapshots, good = home
    bare = tmp_path / "another machine"
    bare.mkdir()
    (bare / "ca.pem").write_bytes(Path(mirrored.volume.ca).read_bytes())
    (bare / "token").write_text(mirrored.volume.token)
    argv = ("restore", mirrored.volume.url, str(bare / "back"), "--snapshot", snapshots[0], "--json")
    argv += ("--token-file", str(bare / "token"), "--ca", str(bare / "ca.pem"))
    none = {"HOME": str(bare), "XDG_STATE_HOME": str(bare), "MIRRORKEEP_TOKEN": "", "MIRRORKEEP_CA": ""}
    elsewhere = checked(*argv, environment=none).last
    assert elsewhere["restored"] == 4
    assert differences(good, bare / "back") == []
    assert {path.name for path in bare.iterdir()} == {"ca.pem", "token", "back"}

    original = tmp_path / "original"
    subprocess.run(["cp", "-a", str(mirrored.source), str(original)], check=True)
    back = restore(mirrored.volume, original, "--snapshot", snapshots[0], "--overwrite-newer")
    assert differences(good, original) == []
    assert (back["restored"], back["unchanged"]) == (3, 1)
    assert back["bytes_read"] < MIB, "the photo is there, and most of the ledger"
