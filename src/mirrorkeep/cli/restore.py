"""``mirrorkeep restore``: bring a tree, a folder or a file back."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Final

import click

from mirrorkeep.cli.last_resort import files_in
from mirrorkeep.cli.options import credentials, is_url, json_output, open_client, threads_option
from mirrorkeep.cli.report import ConsoleReporter, emit, show_bytes, show_path
from mirrorkeep.errors import BadUsage, NotFound

if TYPE_CHECKING:
    from mirrorkeep.sync.local import LocalSource

MAX_KEYS: Final = 8


@click.command(
    epilog="Example:  mirrorkeep restore https://store.example:8443/volumes/laptop /srv/back --path etc",
    short_help="Bring a tree, a folder or a file back.",
)
@click.argument("target")
@click.argument("destination", type=click.Path(file_okay=False))
@click.option("--snapshot", default="latest", show_default=True, help="Name of a snapshot (see `snapshots`).")
@click.option("--path", default="", help="Only this folder or file of the snapshot.")
@threads_option
@click.option(
    "--overwrite-newer", is_flag=True, help="Also replace files that are newer than the snapshot's."
)
@click.option(
    "--seed",
    type=click.Path(exists=True, file_okay=False),
    help="A local tree laid out like DESTINATION: large files take from it what they can.",
)
@credentials
@json_output
def restore(
    target: str,
    destination: str,
    snapshot: str,
    path: str,
    threads: int,
    overwrite_newer: bool,
    seed: str | None,
    token_file: str | None,
    ca: str | None,
    as_json: bool,
) -> int:
    """Make DESTINATION hold what a snapshot of TARGET holds, with all metadata.

    TARGET is https://HOST:PORT/volumes/NAME[/PATH] or the directory of a local copy, which has no snapshots.
    What is there already and right is not fetched again, nor what a large file shares with an older one
    in its place or under --seed; nothing is deleted.
    """
    from mirrorkeep.sync.restore import Restore, RestoreSource, SnapshotSource

    if os.path.islink(destination) and not os.path.exists(destination):
        shown = show_path(os.fsencode(destination))
        raise BadUsage(detail=f"{shown} is a link to {os.readlink(destination)}, which does not exist")
    source: RestoreSource
    if is_url(target):
        client = open_client(target, token_file, ca)
        if snapshot == "latest":
            snapshot = newest_snapshot(client.get_json(f"volumes/{client.volume}/snapshots"), target)
        source = SnapshotSource(client, snapshot)
    else:
        source = open_copy(target, snapshot)
    reporter = ConsoleReporter(as_json=as_json)
    run = Restore(
        source,
        destination,
        reporter,
        path=os.fsencode(path),
        threads=threads,
        overwrite_newer=overwrite_newer,
        seed=seed,
    )
    with files_in(tempfile.gettempdir()):
        result = run.execute()
    reporter.clear()
    not_set = run.not_set.most_common()
    if as_json:
        emit(
            {
                "event": "done",
                "status": result.status,
                "snapshot": snapshot if is_url(target) else None,
                "entries": result.entries,
                "restored": result.new,
                "unchanged": result.unchanged,
                "failed": result.failed,
                "not_set": {key.decode("utf-8", "surrogateescape"): count for key, count in not_set},
                "bytes_read": result.bytes_read,
                "seconds": round(result.seconds, 3),
            }
        )
    else:
        failed = f", {result.failed:,} FAILED" if result.failed else ""
        click.echo(
            f"{result.entries:,} entries of {source.name}: {result.new:,} files restored,"
            f" {result.unchanged:,} were there already{failed};"
            f" {show_bytes(result.bytes_read)} in {result.seconds:.2f} s"
        )
        if not_set:
            told = ", ".join(f"{show_path(key)} of {count:,}" for key, count in not_set[:MAX_KEYS])
            more = f" and {len(not_set) - MAX_KEYS} more" if len(not_set) > MAX_KEYS else ""
            click.echo(f"could not be set here, and stays in the mirror's records: {told}{more}", err=True)
    return 3 if result.failed else 0


def open_copy(folder: str, snapshot: str) -> LocalSource:
    """Return the local copy in a directory; raises BadUsage when it is none, or a snapshot was named."""
    from mirrorkeep.sync.local import LocalSource

    if snapshot != "latest":
        raise BadUsage(detail=f"{folder} is a local copy; it has no snapshot {snapshot}")
    source = LocalSource(folder)
    if source.dirty:
        click.echo(f"mirrorkeep: the last run to {folder} did not end; restoring what is there", err=True)
    return source


def newest_snapshot(listing: dict[str, list[dict[str, str]]], target: str) -> str:
    """Return the name of the newest snapshot of a listing; raises NotFound when there is none."""
    if not listing["snapshots"]:
        raise NotFound(what=f"a snapshot of {target}")
    return listing["snapshots"][-1]["name"]
