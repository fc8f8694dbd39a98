"""``mirrorkeep snapshots``: the history of a target, oldest first, with what is known of each snapshot."""

from __future__ import annotations

from typing import Any, Final

import click

from mirrorkeep.cli.options import credentials, is_url, json_output, open_client
from mirrorkeep.cli.report import emit, show_bytes
from mirrorkeep.errors import BadUsage

_KEYS: Final = ("name", "time", "verdict", "coverage", "entries", "bytes")


@click.command(
    epilog="Example:  mirrorkeep snapshots https://store.example:8443/volumes/laptop",
    short_help="List the snapshots of a target.",
)
@click.argument("target")
@credentials
@json_output
def snapshots(target: str, token_file: str | None, ca: str | None, as_json: bool) -> None:
    """List the snapshots of TARGET, oldest first, each with its verdict.

    TARGET is https://HOST:PORT/volumes/NAME[/PATH].
    """
    if not is_url(target):
        raise BadUsage(detail=f"{target}: a stored copy in a directory has no snapshots")
    client = open_client(target, token_file, ca)
    rows = client.get_json(f"volumes/{client.volume}/snapshots")["snapshots"]
    if as_json:
        for row in rows:
            emit({key: row[key] for key in _KEYS})
    elif rows:
        _show_table(rows)
    else:
        click.echo("There is no snapshot yet; every completed run makes one.", err=True)


def _show_table(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["name"]) for row in rows)
    click.echo(
        f"{'SNAPSHOT'.ljust(width)}  {'TIME'.ljust(20)}  VERDICT    READ   {'ENTRIES':>12}  {'SIZE':>10}"
    )
    for row in rows:
        click.echo(
            f"{row['name'].ljust(width)}  {row['time'].ljust(20)}  {row['verdict'].ljust(9)}"
            f"  {_share(row['coverage']).rjust(5)}  {row['entries']:>12,}  {show_bytes(row['bytes']):>10}"
        )


def _share(coverage: dict[str, Any] | None) -> str:
    """Return how much of the content the verdict's own validation read."""
    if not coverage:
        return "-"
    if not coverage["bytes"]:
        return "100 %"
    return f"{100 * coverage['content_bytes'] // coverage['bytes']} %"
