"""``mirrorkeep verdict``: checking verdicts offline, and handing the signing key over to a new one.

``check`` needs three files and nothing else: no store, no network, no state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

import click

from mirrorkeep.cli.options import json_output
from mirrorkeep.cli.report import emit
from mirrorkeep.errors import VerdictRefused

_FILE = click.File("rb")


@click.group(short_help="Check a verdict offline.")
def verdict() -> None:
    """Verdicts: signed, chained statements about one snapshot each.

    Example:  mirrorkeep verdict check verdict.json --manifest tree.manifest --key verdict.pub
    """


@verdict.command(
    epilog="Example:  mirrorkeep verdict check verdict.json --manifest tree.manifest --key verdict.pub"
)
@click.argument("file", type=_FILE)
@click.option("--manifest", type=_FILE, required=True, help="The manifest that the verdict is about.")
@click.option("--key", type=_FILE, required=True, help="The store's public key, as pinned (PEM).")
@click.option(
    "--previous", type=_FILE, multiple=True, help="Earlier verdicts that the chain must lead through."
)
@click.option(
    "--rotation",
    type=_FILE,
    multiple=True,
    help="Statements by which the key was handed over (those in the verdicts count anyway).",
)
@json_output
def check(
    file: BufferedReader,
    manifest: BufferedReader,
    key: BufferedReader,
    previous: tuple[BufferedReader, ...],
    rotation: tuple[BufferedReader, ...],
    as_json: bool,
) -> None:
    """Check that FILE was signed by the key, is about the manifest, and continues the chain.

    FILE is a verdict as JSON; the output of ``validate --json`` will do, its last line counts.
    """
    from mirrorkeep.store import verdict as verdicts

    stated = _read(file)
    earlier = [_read(one) for one in previous]
    handed_over = [step for one in rotation for step in _read_lines(one)]
    for one in (*earlier, stated):
        handed_over += verdicts.stated_rotations(one)
    keys = verdicts.follow_rotations(key.read(), handed_over)
    verdicts.check_signature(stated, keys)
    verdicts.check_manifest(stated, manifest)
    for one in earlier:
        verdicts.check_signature(one, keys)
    links = verdicts.check_chain(stated, earlier)
    if as_json:
        fields = (
            "volume",
            "part",
            "snapshot",
            "sequence",
            "verdict",
            "mode",
            "coverage",
            "findings",
            "ended",
        )
        emit({"holds": True, **{name: stated[name] for name in fields}, "links": links})
        return
    coverage = stated["coverage"]
    click.echo(
        f"The verdict holds: {stated['volume']} {stated['snapshot']} is {stated['verdict']}"
        f" ({stated['findings']:,} differences, {stated['mode']}, ended {stated['ended']})."
    )
    click.echo(f"The oldest of its bytes was read at {coverage.get('oldest_read') or 'no known time'}.")
    if links:
        click.echo(f"It continues the chain of {links} earlier verdicts.")


def _read_lines(stream: BufferedReader) -> list[Mapping[str, Any]]:
    """Return the JSON objects of a file: one of any form, or one a line."""
    data = stream.read()
    try:
        rows = [json.loads(data)]
    except ValueError:
        try:
            rows = [json.loads(line) for line in data.splitlines() if line.strip()]
        except ValueError as error:
            raise VerdictRefused(detail=f"{stream.name} is no JSON: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise VerdictRefused(detail=f"{stream.name} holds something else than JSON objects")
    return rows


def _read(stream: BufferedReader) -> dict[str, Any]:
    """Return the JSON object of a file, or of its last line."""
    data = stream.read()
    try:
        value = json.loads(data)
    except ValueError:
        try:
            value = json.loads(data.strip().rpartition(b"\n")[2])
        except ValueError as error:
            raise VerdictRefused(detail=f"{stream.name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise VerdictRefused(detail=f"{stream.name} is no JSON object")
    return value
