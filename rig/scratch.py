"""Scratch file systems on loop devices, and leaving a machine as it was found.

Answers for: making an image, a file system and a mount in a folder of the caller's, and taking away every
mount and loop device below a folder, whoever made it.  Root only.

Not here: what is measured or tested on them.

A crash leaves mounts and loop devices behind; :func:`release` of the same folder, at any later time, takes
them away.  Images lie in the folder that the caller chose and go with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

MKFS = {
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-i", "8192", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
"""How to make each kind that needs a device; a tmpfs needs none."""


class ScratchError(RuntimeError):
    """A tool that makes or mounts a file system failed; what it said is the message."""


def run(*argv: str) -> str:
    """Run a tool and return its output; raises ScratchError with what it said on failure."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ScratchError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def missing_for_mounts(kind: str = "btrfs") -> str | None:
    """Say why this machine cannot loop-mount ``kind``, or None when it can."""
    if os.geteuid() != 0:
        return "root is needed"
    for tool in (MKFS[kind][0], "mount", "umount", "losetup"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if not Path("/dev/loop-control").exists():
        return "no loop devices here"
    return None


def make(
    folder: Path,
    name: str,
    *,
    kind: str = "btrfs",
    size_bytes: int,
    preallocated_bytes: int = 0,
    direct: bool = False,
) -> Path:
    """Make a fresh ``kind`` file system of ``size_bytes`` under ``folder`` and return its mount point.

    ``preallocated_bytes`` (so much of the image, from its beginning, has its place on the host already) and
    ``direct`` (the image bypasses the host's page cache) are for measurements.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image, mount = folder / f"{name}.img", folder / name
    if kind == "tmpfs":
        mount.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", str(mount))
        return mount
    with image.open("wb") as stream:
        stream.truncate(size_bytes)
        if preallocated_bytes:
            os.posix_fallocate(stream.fileno(), 0, min(preallocated_bytes, size_bytes))
    run(*MKFS[kind], str(image))
    mount.mkdir()
    if direct:
        device = run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
        run("mount", "-o", "noatime", device, str(mount))
    else:
        run("mount", "-o", "loop,noatime", str(image), str(mount))
    return mount


def _unescape(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def mounts_below(folder: Path) -> list[Path]:
    """List the mount points at or below ``folder``, deepest and newest first."""
    top = str(folder.resolve())
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    points = [_unescape(line.split(" ")[4]) for line in lines]
    return [Path(p) for p in reversed(points) if p == top or p.startswith(top + "/")]


def loops_below(folder: Path) -> list[str]:
    """List the loop devices whose image lies below ``folder`` (deleted images too)."""
    top = str(folder.resolve()) + "/"
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            image = backing.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        except OSError:  # released between listing and reading
            continue
        if image.startswith(top):
            found.append(f"/dev/{backing.parts[3]}")
    return found


def _unmount(point: Path) -> None:
    for _ in range(20):
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)  # a process that was just killed may hold it for a moment
    run("umount", "-l", str(point))


def release(folder: Path) -> None:
    """Unmount everything at or below ``folder`` and detach the loop devices of images below it."""
    if os.geteuid() != 0 or not folder.exists():
        return
    while points := mounts_below(folder):
        _unmount(points[0])
    for device in loops_below(folder):
        subprocess.run(["losetup", "-d", device], capture_output=True, check=False)


def discard(folder: Path) -> None:
    """Release ``folder`` and delete it."""
    release(folder)
    if mounts_below(folder) if folder.exists() else []:
        raise ScratchError(f"{folder} still holds a mount; not deleting it")
    shutil.rmtree(folder, ignore_errors=True)
