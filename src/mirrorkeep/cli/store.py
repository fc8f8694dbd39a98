"""``mirrorkeep store``: making a store, serving it, stopping it and letting go of its pool.

Not here: what a store is (``mirrorkeep.store``), how it serves (``mirrorkeep.server``).  A service that was
killed leaves its mounts and its ``run`` folder; the next ``serve`` starts on what it finds.
"""

from __future__ import annotations

import os

import click

from mirrorkeep.cli.options import json_output
from mirrorkeep.cli.report import say
from mirrorkeep.errors import BadUsage

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_data = click.argument("data", type=click.Path(file_okay=False))


@click.group()
def store() -> None:
    """Make and serve a store (on the machine that stores).

    Example: mirrorkeep store init /srv/mirror && mirrorkeep store serve /srv/mirror
    """


@store.command()
@_data
@click.option(
    "--driver",
    type=click.Choice(["auto", "btrfs", "zfs", "cephfs", "dir"]),
    default="auto",
    show_default=True,
    help="What the pool stands on.",
)
@click.option("--size", help="Size of the pool, e.g. 20G (btrfs image; others grow with the disk).")
@click.option("--device", type=click.Path(exists=True), help="Block device for a btrfs pool: IS OVERWRITTEN.")
@click.option(
    "--encrypt",
    type=click.Choice(["auto", "gocryptfs", "fscrypt", "luks", "none"]),
    default="auto",
    show_default=True,
    help="Encryption at rest.",
)
@click.option("--host", "hosts", multiple=True, help="Name for the certificate; repeatable.")
@json_output
def init(
    data: str,
    driver: str,
    size: str | None,
    device: str | None,
    encrypt: str,
    hosts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a store in DATA, which is missing or empty.

    Example: mirrorkeep store init /srv/mirror --size 200G --host backup.example
    """
    from mirrorkeep.store.encryption import choose_encryption
    from mirrorkeep.store.pool import Store

    encryption = choose_encryption(data, encrypt, device)
    made = Store.create(
        data, driver, parse_size(size), hosts=hosts, device=device, encryption=encryption.name
    )
    capabilities = made.driver.capabilities
    row = {
        "data": made.data,
        "driver": made.driver.name,
        "encryption": encryption.name,
        "size_bytes": made.usage().total_bytes,
        "shares_blocks": capabilities.shares_blocks,
        "immutable_snapshots": capabilities.immutable_snapshots,
    }
    made.close()
    if encryption.warning:
        click.echo(f"warning: {encryption.warning}", err=True)
    say(row, as_json, f"made a {row['driver']} store at {made.data} ({encryption.name})")


@store.command()
@_data
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="HOST:PORT (port 0: any).")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that serve (default: one a core).")
@click.option("--host", "hosts", multiple=True, help="Further name for the certificate; repeatable.")
def serve(data: str, listen: str, workers: int | None, hosts: tuple[str, ...]) -> None:
    """Serve the store in DATA over HTTPS until SIGTERM.

    Example: mirrorkeep store serve /srv/mirror --listen 0.0.0.0:8443
    """
    from mirrorkeep.store.pool import Store

    opened = Store.open(data)
    host = listen.rpartition(":")[0].strip("[]")
    opened.certificate({*hosts, *(() if host in ("", "0.0.0.0", "::") else (host,))})
    opened.close()
    from mirrorkeep.server.serve import serve as run_server

    run_server(opened.data, listen, workers or os.cpu_count() or 1)


@store.command()
@_data
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds to wait.",
)
@json_output
def stop(data: str, wait_s: float, as_json: bool) -> None:
    """End the service on DATA, if one runs, and unmount its pool.

    Example: mirrorkeep store stop /srv/mirror
    """
    from mirrorkeep.store.pool import Store
    from mirrorkeep.store.service import end_service

    pid = end_service(data, wait_s)
    opened = Store.open(data)
    unmounted = "; unmounted its pool" if os.path.ismount(opened.pool) else ""
    opened.close(detach=True)
    ended = f"stopped the service {pid}" if pid else "not running"
    say({"stopped": pid, "detached": True}, as_json, ended + unmounted)


@store.command("rotate-key")
@_data
@json_output
def rotate_key(data: str, as_json: bool) -> None:
    """Put a new key in place of the one that signs verdicts; the service may go on.

    The old key signs the handover and its secret is removed.  Old verdicts stay checkable, and who pinned the
    old key goes on with it: the first verdict of each part under the new key carries the handover.

    Example: mirrorkeep store rotate-key /srv/mirror
    """
    from mirrorkeep.store import keys, verdict
    from mirrorkeep.store.history import iso_time
    from mirrorkeep.store.pool import Store

    opened = Store.open(data)
    folder, time = opened.keys_folder, iso_time(opened.clock())
    opened.close()
    statement = keys.rotate_verdict_key(folder, time)
    row = {
        "old_key": verdict.fingerprint(statement["old_key"].encode()),
        "new_key": verdict.fingerprint(statement["new_key"].encode()),
        "time": statement["time"],
        "public_key": os.path.join(folder, "verdict.pub"),
        "rotations": os.path.join(folder, "verdict.rotations"),
    }
    say(row, as_json, f"verdicts are signed by {row['new_key']} from now on ({row['public_key']})")


def parse_size(text: str | None) -> int | None:
    """Return bytes for ``20G``, ``500M``, ``1T`` or a plain number (binary units).  Raises BadUsage."""
    if text is None:
        return None
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        size_bytes = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size_bytes = 0
    if size_bytes <= 0:
        raise BadUsage(detail=f"{text!r} is not a size; write for example 20G")
    return size_bytes
