"""Signatures over whole runs: which files have one, who is asked for it, what a bad one costs (DEL-*)."""

from __future__ import annotations

import glob
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.delta.signature import sign_file
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.sync.signing import wait_for_signatures
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.mirrored import Mirrored
from rig.served import Served, free_port
from rig.tapping import TappingProxy

MIB = 1 << 20
PAGE_BYTES = 8192
MOST_SIGNATURE_SHARE = 0.012
OVERHEAD_BYTES = 64 * 1024
"""What a run says besides changed pages: heads of deltas, records, small files' frames."""


def signatures_of(mirrored: Mirrored) -> Path:
    """Return the folder of the client's signatures, when nobody works on it any more."""
    (folder,) = mirrored.state.glob("*/signatures")
    wait_for_signatures(str(folder))
    return folder


def digest_of(mirrored: Mirrored, path: bytes) -> bytes:
    (manifest,) = mirrored.state.glob("*/manifest")
    with manifest.open("rb") as stream:
        return next(record.hash for record in ManifestReader(stream) if record.path == path)


def test_every_large_file_has_a_small_signature_and_no_small_file_has_one(
    store: Served, tmp_path: Path
) -> None:
    mirrored = Mirrored(store, tmp_path, volume=store.create_volume("threshold"))
    mirrored.source.mkdir()
    sizes = {"at": SMALL_FILE_BYTES, "above": SMALL_FILE_BYTES + 1, "large": 12 * MIB, "empty": 0}
    for name, size in sizes.items():
        (mirrored.source / name).write_bytes(random.Random(size).randbytes(size))
    mirrored.sync()
    cache = SignatureCache(str(signatures_of(mirrored)))
    signed = {name for name in sizes if os.path.exists(cache.signature_file(name.encode()))}
    assert signed == {"above", "large"}
    assert len(glob.glob(f"{cache.directory}/*/*.sig")) == 2
    for name in signed:
        assert cache.load(name.encode(), digest_of(mirrored, name.encode())) is not None
        kept = os.path.getsize(cache.signature_file(name.encode()))
        assert 0 < kept <= MOST_SIGNATURE_SHARE * sizes[name]


# --- who is asked (DEL-05) ----------------------------------------------------------------------------


def test_a_change_is_found_with_the_clients_own_signature_and_the_store_reads_nothing(
    store: Served, tmp_path: Path
) -> None:
    """What came down is counted: no signature of a 24 MiB file did, until the client had lost its own."""
    content = bytearray(random.Random(4).randbytes(24 * MIB))
    least_signature = 24 * MIB // 4096 * 20
    volume = store.create_volume("asked")
    with TappingProxy(store.port) as proxy:
        mirrored = Mirrored(store, tmp_path, volume=replace(volume, url=proxy.url(volume.url)))
        mirrored.source.mkdir()
        came_down = []
        for version in range(3):
            content[version * MIB : version * MIB + 9] = b"version %d" % version
            (mirrored.source / "image").write_bytes(content)
            before = len(proxy.connections)
            sent = mirrored.sync()["bytes_sent"]
            assert version == 0 or 9 <= sent < OVERHEAD_BYTES
            came_down.append(sum(len(one.down) for one in proxy.connections[before:]))
            kept = signatures_of(mirrored)  # made before the file changes again
            if version == 1:
                shutil.rmtree(kept)
    assert came_down[1] < least_signature // 2
    assert came_down[2] > least_signature
    assert mirrored.differences() == []


# --- bad ones (DEL-13) --------------------------------------------------------------------------------


def lose(cache: SignatureCache, older: Path) -> None:
    cache.forget(b"image")


def flip(cache: SignatureCache, older: Path) -> None:
    with open(cache.signature_file(b"image"), "r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 1]))


def cut_short(cache: SignatureCache, older: Path) -> None:
    os.truncate(cache.signature_file(b"image"), 1000)


def take_older(cache: SignatureCache, older: Path) -> None:
    shutil.rmtree(cache.directory)
    shutil.copytree(older, cache.directory)


def tell_of_another_content(cache: SignatureCache, older: Path) -> None:
    """Keep the signature of the older content under the digest of the newer one, all sums right."""
    (folder,) = older.parents[0].glob("older content")
    digest = (older.parents[0] / "newer digest").read_bytes()
    with folder.open("rb") as stream:
        signed = sign_file(stream.fileno(), folder.stat().st_size)
    cache.save(b"image", digest, signed.signature, base_bytes=signed.size_bytes, outline=signed.outline)


@pytest.mark.parametrize("spoil", [lose, flip, cut_short, take_older, tell_of_another_content])
def test_a_bad_signature_costs_bytes_and_never_data(store: Served, tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    """The third version goes back, in part, to the first: an older signature would call that unchanged."""
    name = spoil.__name__.replace("_", "-")
    mirrored = Mirrored(store, tmp_path, volume=store.create_volume(name))
    mirrored.source.mkdir()
    chance = random.Random(name)
    first = chance.randbytes(12 * MIB)
    second = first[: 2 * MIB] + chance.randbytes(3 * MIB) + first[5 * MIB :]
    third = first[: 4 * MIB] + second[4 * MIB : -100] + chance.randbytes(100)
    (mirrored.source / "image").write_bytes(first)
    mirrored.sync()
    older = tmp_path / "older"
    shutil.copytree(signatures_of(mirrored), older)
    (tmp_path / "older content").write_bytes(first)
    (mirrored.source / "image").write_bytes(second)
    mirrored.sync()
    (tmp_path / "newer digest").write_bytes(digest_of(mirrored, b"image"))
    spoil(SignatureCache(str(signatures_of(mirrored))), older)
    (mirrored.source / "image").write_bytes(third)
    assert mirrored.sync("--wait")["verdict"] == "verified"
    assert mirrored.differences() == []
    mirrored.check_verdict()
    mirrored.check_snapshots()


# --- databases (DEL-09) -------------------------------------------------------------------------------


def sizes_below(folder: Path) -> dict[Path, int]:
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def changed_bytes(before: Path, after: Path) -> tuple[int, int]:
    """Return how many bytes lie in changed pages of large files, and in changed files that are small."""
    pages = small = 0
    for path in sizes_below(after):
        old, new = before / path, after / path
        content, known = new.read_bytes(), old.read_bytes() if old.exists() else b""
        if content == known:
            continue
        if len(content) <= SMALL_FILE_BYTES or not known:
            small += len(content)
            continue
        for start in range(0, len(content), PAGE_BYTES):
            page = content[start : start + PAGE_BYTES]
            pages += len(page) * (page != known[start : start + PAGE_BYTES])
    return pages, small


def assert_only_pages_travel(mirrored: Mirrored, kept: Path, *, most_share: float) -> None:
    """Send the database as it is now; ``kept`` is what it was at the last run."""
    pages, small = changed_bytes(kept, mirrored.source)
    whole = sum(sizes_below(mirrored.source).values())
    assert PAGE_BYTES * 20 < pages < most_share * whole, "the database was to change in part"
    sent = mirrored.sync("--wait")
    assert sent["verdict"] == "verified"
    assert sent["bytes_sent"] <= 1.02 * pages + small + OVERHEAD_BYTES
    assert mirrored.differences() == []
    large = sum(size for size in sizes_below(mirrored.source).values() if size > SMALL_FILE_BYTES)
    signatures = glob.glob(f"{signatures_of(mirrored)}/*/*.sig")
    assert 0 < sum(map(os.path.getsize, signatures)) <= MOST_SIGNATURE_SHARE * large


def test_of_a_database_of_8_kib_pages_the_changed_pages_travel(store: Served, tmp_path: Path) -> None:
    mirrored = Mirrored(store, tmp_path, "--compress", "never", volume=store.create_volume("sqlite"))
    mirrored.source.mkdir()
    chance = random.Random(8)
    with closing(sqlite3.connect(mirrored.source / "shop.db")) as database:
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, note BLOB)")
        rows = ((number, chance.randrange(5000), chance.randbytes(200)) for number in range(60_000))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        database.execute("CREATE INDEX customers ON orders (customer)")
        database.commit()
        mirrored.sync()
        kept = tmp_path / "kept"
        shutil.copytree(mirrored.source, kept)
        for _ in range(60):
            number = chance.randrange(60_000)
            database.execute("UPDATE orders SET note = ? WHERE id = ?", (chance.randbytes(200), number))
        new = ((60_000 + number, chance.randrange(5000), chance.randbytes(200)) for number in range(100))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", new)
        database.commit()
    assert_only_pages_travel(mirrored, kept, most_share=0.25)


class PostgreSql:
    """A PostgreSQL of Debian's layout, for the time of a test; it takes connections from loopback alone."""

    def __init__(self, folder: Path) -> None:
        self.tools = Path(max(glob.glob("/usr/lib/postgresql/*/bin")))
        self.data, self.port = folder / "source", free_port()
        self._sockets = folder / "sockets"
        self._user = "nobody" if os.geteuid() == 0 else ""
        for place in (self.data, self._sockets):
            place.mkdir(mode=0o700)
            if self._user:
                shutil.chown(place, self._user)
        self._log = folder / "log"

    def run(self, tool: str, *argv: str) -> None:
        """Run one of its tools, which refuse to be run by root."""
        options = {"user": self._user} if self._user else {}
        done = subprocess.run(
            [str(self.tools / tool), *argv],
            env={"PATH": os.environ["PATH"], "HOME": str(self._sockets), "LC_ALL": "C"},
            cwd=self._sockets,
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("ab"),
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
            **options,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{tool}: {self._log.read_text()[-2000:]}"

    def create(self) -> None:
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-U", "postgres", "-N", "--wal-segsize=1")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self._sockets} -c shared_buffers=32MB -c fsync=off"
        self.run("pg_ctl", "-D", str(self.data), "-w", "-s", "-o", options, "start")

    def stop(self) -> None:
        """Shut down with a checkpoint: what lies on the disk is the whole database."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "-s", "-m", "fast", "stop")

    def bench(self, *argv: str) -> None:
        self.run("pgbench", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", *argv, "postgres")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the server's user, who is not the test's, can get to."""
    with tempfile.TemporaryDirectory(prefix="mirrorkeep-postgresql-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(not glob.glob("/usr/lib/postgresql/*/bin/pgbench"), reason="PostgreSQL is not installed")
def test_of_a_postgresql_cluster_the_changed_pages_travel(
    store: Served, reachable: Path, tmp_path: Path
) -> None:
    mirrored = Mirrored(store, reachable, "--compress", "never", volume=store.create_volume("postgresql"))
    server = PostgreSql(reachable)
    server.create()
    server.start()
    try:
        server.bench("-i", "-q", "-s", "3")
    finally:
        server.stop()
    mirrored.sync()
    kept = tmp_path / "kept"
    shutil.copytree(mirrored.source, kept)
    server.start()
    try:
        server.bench("-n", "-t", "200", "-c", "1")
    finally:
        server.stop()
    assert_only_pages_travel(mirrored, kept, most_share=0.25)
