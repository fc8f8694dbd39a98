"""Clients that others wrote copy in and out and read a snapshot: curl, cadaver, rclone, davfs2 (TX-03)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.served import Volume, checked

from .dav_store import DavStore, contents, dav_store, make_files

__all__ = ["dav_store"]


def run(*argv: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        input=text,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    make_files(folder)
    return folder


# --- curl -----------------------------------------------------------------------------------------


def curl(volume: Volume, *argv: str) -> str:
    login = ["--user", f"token:{volume.token}", "--cacert", volume.ca, "--silent", "--show-error", "--fail"]
    return run("curl", *login, *argv).stdout


@pytest.mark.engine("curl")
def test_curl(dav_store: DavStore, files: Path, tmp_path: Path) -> None:
    volume, out = dav_store.plain, tmp_path / "out"
    curl(volume, "--upload-file", str(files / "50%.txt"), f"{volume.url}/curl%25.txt")
    curl(volume, "--output", str(out), "--compressed", f"{volume.url}/curl%25.txt")
    assert out.read_bytes() == (files / "50%.txt").read_bytes()
    curl(volume, "--range", "5-9", "--output", str(out), f"{volume.url}/curl%25.txt")
    assert out.read_bytes() == (files / "50%.txt").read_bytes()[5:10]
    curl(dav_store.mirrored, "--output", str(out), f"{dav_store.snapshot_url}/deep/er/file.bin")
    assert out.read_bytes() == (dav_store.source / "deep/er/file.bin").read_bytes()
    tls = run(
        "curl", "-sv", "--tls-max", "1.2", "--cacert", volume.ca, f"{dav_store.served.url}/api/v1/health"
    )
    assert "TLSv1.2" in tls.stderr
    old = subprocess.run(
        ["curl", "-s", "--tls-max", "1.1", "--cacert", volume.ca, dav_store.served.url],
        check=False,
        timeout=400,
    )
    assert old.returncode != 0


# --- cadaver --------------------------------------------------------------------------------------


def cadaver(url: str, home: Path, *commands: str) -> str:
    """Run commands; cadaver takes the answer about an unknown CA from a terminal alone."""
    master, slave = os.openpty()
    try:
        os.write(master, "".join(f"{line}\n" for line in ("y", *commands, "quit")).encode())
        done = subprocess.run(
            ["cadaver", url],
            stdin=slave,
            env={**os.environ, "HOME": str(home), "TERM": "dumb"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        os.close(master)
        os.close(slave)
    steps = done.stdout.partition(">")[2]
    assert steps, done.stdout + done.stderr
    return steps


@pytest.mark.engine("cadaver")
def test_cadaver(dav_store: DavStore, files: Path, tmp_path: Path) -> None:
    volume, home = dav_store.plain, tmp_path / "home"
    home.mkdir()
    netrc = home / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login token password {volume.token}\n")
    netrc.chmod(0o600)
    got, frozen = tmp_path / "got", tmp_path / "frozen"
    steps = cadaver(
        volume.url + "/",
        home,
        "mkcol cadaver",
        "cd cadaver",
        f"put {files}/plain.txt",
        "copy plain.txt copy.txt",
        "move copy.txt moved.txt",
        "lock moved.txt",
        "propset moved.txt note remembered",
        "propget moved.txt note",
        "unlock moved.txt",
        "ls",
        f"get moved.txt {got}",
        "delete plain.txt",
    )
    assert "failed" not in steps, steps
    assert "remembered" in steps, steps
    assert got.exists(), steps
    assert got.read_bytes() == (files / "plain.txt").read_bytes()
    netrc.write_text(f"machine 127.0.0.1 login token password {dav_store.mirrored.token}\n")
    refused = f"put {files}/plain.txt refused.txt"
    steps = cadaver(dav_store.snapshot_url + "/", home, "ls", f"get plain.txt {frozen}", refused)
    assert frozen.read_bytes() == (dav_store.source / "plain.txt").read_bytes()
    assert "403" in steps, steps


# --- rclone ---------------------------------------------------------------------------------------


def rclone(volume: Volume, url: str, tmp_path: Path, *argv: str) -> str:
    hidden = run("rclone", "obscure", volume.token).stdout.strip()
    config = tmp_path / "rclone.conf"
    config.write_text(f"[store]\ntype = webdav\nurl = {url}\nvendor = other\nuser = token\npass = {hidden}\n")
    return run("rclone", "--config", str(config), "--ca-cert", volume.ca, "--retries", "1", *argv).stdout


@pytest.mark.engine("rclone")
def test_rclone(dav_store: DavStore, files: Path, tmp_path: Path) -> None:
    volume, back = dav_store.plain, tmp_path / "back"
    rclone(volume, volume.url, tmp_path, "copy", str(files), "store:rclone")
    rclone(volume, volume.url, tmp_path, "copy", "store:rclone", str(back))
    assert contents(back) == contents(files)
    rclone(volume, volume.url, tmp_path, "check", "--download", str(files), "store:rclone")
    (files / "plain.txt").write_bytes(b"changed")
    (files / "50%.txt").unlink()
    rclone(volume, volume.url, tmp_path, "sync", "--ignore-times", str(files), "store:rclone")
    listed = rclone(volume, volume.url, tmp_path, "lsf", "-R", "--files-only", "store:rclone")
    assert set(listed.splitlines()) == set(contents(files))
    assert "mirrorkeep" not in rclone(volume, volume.url, tmp_path, "lsf", "-R", "store:")
    rclone(volume, volume.url, tmp_path, "purge", "store:rclone")
    frozen = tmp_path / "frozen"
    rclone(dav_store.mirrored, dav_store.snapshot_url, tmp_path, "copy", "store:", str(frozen))
    assert contents(frozen) == contents(dav_store.source)


# --- davfs2 ---------------------------------------------------------------------------------------


class Mounts:
    """davfs2 mounts of one test, each with a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # the helper runs as a user of its own and has to reach it
        self._folder.chmod(0o755)
        self._mounted: list[Path] = []
        self._count = 0

    def mount(self, volume: Volume, url: str) -> Path:
        self._count += 1
        number = self._count
        place = self._folder / f"mount{number}"
        place.mkdir()
        secrets = self._folder / f"secrets{number}"
        secrets.write_text(f'"{url}" token "{volume.token}"\n')
        secrets.chmod(0o600)
        cache = self._folder / f"cache{number}"
        cache.mkdir()
        shutil.chown(cache, "root", "davfs2")
        cache.chmod(0o775)
        trusted = self._folder / f"ca{number}.pem"
        shutil.copy(volume.ca, trusted)
        trusted.chmod(0o644)
        config = self._folder / f"davfs{number}.conf"
        config.write_text(
            f"use_locks 1\nask_auth 0\ndelay_upload 0\nbuf_size 256\ncache_dir {cache}\n"
            f"secrets {secrets}\ntrust_ca_cert {trusted}\n"
        )
        config.chmod(0o600)
        run("mount.davfs", "-o", f"conf={config},uid=0,gid=0", url, str(place))
        self._mounted.append(place)
        return place

    def unmount(self, place: Path) -> None:
        run("umount", str(place))  # waits until everything is uploaded
        self._mounted.remove(place)

    def close(self) -> None:
        for place in list(self._mounted):
            subprocess.run(["umount", "-l", str(place)], check=False, timeout=400, capture_output=True)


@contextlib.contextmanager
def open_mounts() -> Iterator[Mounts]:
    folder = Path(tempfile.mkdtemp(prefix="mirrorkeep-davfs-"))
    made = Mounts(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    with open_mounts() as made:
        yield made


@pytest.mark.root
@pytest.mark.engine("mount.davfs")
def test_davfs2(dav_store: DavStore, files: Path, tmp_path: Path, mounts: Mounts) -> None:
    volume = dav_store.plain
    place = mounts.mount(volume, volume.url)
    run("cp", "-r", str(files), f"{place}/davfs")
    assert contents(place / "davfs") == contents(files)
    with (place / "davfs" / "plain.txt").open("ab") as file:
        file.write(b"appended")
    (place / "davfs" / "plain.txt").rename(place / "davfs" / "renamed")
    (place / "davfs" / "50%.txt").unlink()
    assert os.statvfs(place).f_blocks > 0
    mounts.unmount(place)
    again = mounts.mount(volume, volume.url)
    found = contents(again / "davfs")
    expected = contents(files)
    expected["renamed"] = expected.pop("plain.txt") + b"appended"
    del expected["50%.txt"]
    assert found == expected
    frozen = mounts.mount(dav_store.mirrored, dav_store.snapshot_url)
    assert contents(frozen) == contents(dav_store.source) | {}
    assert not any("mirrorkeep" in path.name for path in frozen.rglob("*"))


@pytest.mark.root
@pytest.mark.engine("mount.davfs", "diff")
def test_the_whole_history_is_mounted_and_read_with_ordinary_tools(
    dav_store: DavStore, tmp_path: Path, mounts: Mounts
) -> None:
    """All versions lie below one mount point, each a folder; nothing in them can be changed (REC-07)."""
    volume, edited = dav_store.mirrored, dav_store.source / "plain.txt"
    before = edited.read_bytes()
    edited.write_bytes(b"the newer version\n")
    argv = ("sync", str(dav_store.source), volume.url, "--json")
    newer = checked(*argv, environment=volume.environment).last["snapshot"]
    history = mounts.mount(volume, f"{dav_store.served.url}/snapshots/")
    assert {dav_store.snapshot, newer} <= set(os.listdir(history))
    older = history / dav_store.snapshot / "mirrored"
    assert (older / "plain.txt").read_bytes() == before
    assert contents(history / newer / "mirrored") == contents(dav_store.source)
    diff = subprocess.run(
        ["diff", "-rq", str(older), str(history / newer / "mirrored")],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert diff.stdout.count("\n") == 1 and "plain.txt" in diff.stdout, diff.stdout + diff.stderr
    run("cp", str(older / "deep" / "er" / "file.bin"), str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_bytes() == (dav_store.source / "deep/er/file.bin").read_bytes()
    for change in (
        (older / "new").mkdir,
        (older / "plain.txt").unlink,
        lambda: (older / "plain.txt").rename(older / "renamed"),
    ):
        with pytest.raises(OSError):
            change()
    mounts.unmount(history)
    frozen = mounts.mount(volume, dav_store.snapshot_url)
    assert (frozen / "plain.txt").read_bytes() == before
    edited.write_bytes(before)  # as the other tests of this store expect it
