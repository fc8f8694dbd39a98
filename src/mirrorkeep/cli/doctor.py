"""``mirrorkeep doctor``: what this machine can do, what is missing, how to get it.

Looks, and changes nothing.  Not here: what a driver needs (``mirrorkeep.store.drivers`` says that).
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from mirrorkeep.cli.options import json_output

_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.  ``status``: ok, better (something would improve it), missing."""

    check: str
    status: str
    detail: str
    remedy: str = ""


@click.command()
@click.option("--data", default=".", type=click.Path(), help="Where a store would lie (default: here).")
@json_output
def doctor(data: str, as_json: bool) -> None:
    """Say what this machine can do and what is missing.

    Example: mirrorkeep doctor --data /srv/mirror
    """
    marks = {"ok": "  ok     ", "better": "  better ", "missing": "  MISSING"}
    for check in checks(data):
        if as_json:
            sys.stdout.write(json.dumps(asdict(check)) + "\n")
            continue
        click.echo(f"{marks[check.status]} {check.check}: {check.detail}")
        if check.remedy:
            click.echo(f"           {check.remedy}")


def checks(data: str) -> Iterator[Check]:
    """Yield everything worth knowing about this machine and a store at ``data``."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    yield from _storage(os.path.abspath(data))
    yield from _libraries()


def _storage(data: str) -> Iterator[Check]:
    from mirrorkeep.store.driver import choose_driver
    from mirrorkeep.store.drivers import btrfs
    from mirrorkeep.store.encryption import choose_encryption

    place = data
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    kind = btrfs.file_system_of(place)
    yield Check(
        "place", "ok", f"{data} lies on {kind or 'an unknown file system'}, {free / _GIB:.1f} GiB free"
    )
    chosen, missing = choose_driver(data), btrfs.missing_for(data)
    if chosen == "btrfs":
        stands = "subvolumes of the host's btrfs" if kind == "btrfs" else "a btrfs image on a loop device"
        yield Check("driver", "ok", f"auto takes btrfs: {stands}; snapshots are instant and share blocks")
    else:
        why = f"for btrfs: {'; '.join(missing)}"
        yield Check("driver", "better", "auto takes dir: snapshots by hard links or reflinks", why)
    encryption = choose_encryption(data, "auto", None)
    if encryption.warning:
        yield Check("encryption", "better", "a store here would be unencrypted", encryption.warning)
    else:
        yield Check("encryption", "ok", f"at rest by the host ({encryption.name})")
    if os.geteuid() == 0:
        yield Check("root", "ok", "owners and devices are set natively")
    else:
        yield Check("root", "better", "owners are recorded, not set", "run as root to set them natively")


def _libraries() -> Iterator[Check]:
    if ctypes.util.find_library("rsync"):
        yield Check("librsync", "ok", "changed parts of large files are sent alone")
    else:
        yield Check("librsync", "better", "changed large files are sent whole", "apt install librsync2")
    for module, use in (("isal", "fast gzip"), ("blake3", "the blake3 digest")):
        if importlib.util.find_spec(module):
            yield Check(module, "ok", use)
        else:
            yield Check(module, "better", f"without {use}", f"pip install {module}")
