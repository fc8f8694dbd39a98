"""``mirrorkeep validate``: prove that a snapshot, or a stored copy on this machine, is what was read.

On a store the work is done there; this command asks, waits and prints.  A stored copy in a directory is
examined here, by the same code (VAL-16); its verdict is not signed, and the next run to it repairs what was
found.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from mirrorkeep.cli.options import credentials, is_url, json_output, open_client
from mirrorkeep.cli.report import ConsoleReporter, emit, show_path
from mirrorkeep.errors import BadUsage, ValidationDifferences, error_for_code
from mirrorkeep.sync.verdicts import read_verdict
from mirrorkeep.tree.client import StoreClient

FULL, INCREMENTAL, METADATA = "full", "incremental", "metadata"
_WAIT_S = 10


@click.command(
    epilog="Example:  mirrorkeep validate https://store.example:8443/volumes/laptop --wait",
    short_help="Prove that a snapshot is right.",
)
@click.argument("target")
@click.option("--snapshot", metavar="NAME", help="The snapshot to validate (otherwise what is there now).")
@click.option("--full", "mode", flag_value=FULL, help="Read every byte (the default).")
@click.option(
    "--incremental", "mode", flag_value=INCREMENTAL, help="Read what changed, and a share of the rest."
)
@click.option("--metadata-only", "mode", flag_value=METADATA, help="Compare metadata, read no content.")
@click.option("--wait", is_flag=True, help="Wait for the verdict, and print the findings.")
@click.option(
    "--state",
    type=click.Path(file_okay=False),
    envvar="MIRRORKEEP_STATE",
    help="Folder for what is remembered of the store's verdicts [env: MIRRORKEEP_STATE].",
)
@credentials
@json_output
def validate(
    target: str,
    snapshot: str | None,
    mode: str | None,
    wait: bool,
    state: str | None,
    token_file: str | None,
    ca: str | None,
    as_json: bool,
) -> int:
    """Compare what is stored at TARGET with the manifest of what was read, entry by entry.

    Prints the findings, a line each, then the verdict.  Exit status 4 when there are differences; the next
    run repairs them.  A verdict that another key signed than the one that was seen first is refused (exit 1).
    TARGET is https://HOST:PORT/volumes/NAME[/PATH], or the directory of a stored copy.
    """
    if not is_url(target):
        if snapshot is not None:
            raise BadUsage(detail="a stored copy in a directory has no snapshots")
        return _validate_directory(target, mode or FULL, as_json)
    from mirrorkeep.cli.trust import Trust

    client = open_client(target, token_file, ca)
    ticket = client.post_json(
        f"volumes/{client.volume}/validations", {"snapshot": snapshot, "mode": mode or FULL}
    )
    if not wait:
        _show_verdict({**ticket, "state": "pending", "verdict": "pending"}, as_json)
        return 0
    trust = Trust(client, _state_folder(state, target))
    answer = _wait(client, ticket, trust.head)
    trust.check(answer, ticket["snapshot"])
    if answer["findings"]:
        for row in _fetch_findings(client, ticket):
            _show_finding(row, as_json)
    _show_verdict(answer, as_json)
    return _status(answer)


def _state_folder(state: str | None, target: str) -> str:
    """Return where is kept what is known of a target that has no source here."""
    from mirrorkeep.sync.state import StateReader, default_state_folder

    return StateReader(state or default_state_folder(), "", target.rstrip("/")).folder


def _wait(client: StoreClient, ticket: dict[str, Any], since: str) -> dict[str, Any]:
    """Return the verdict once there is one, showing the progress meanwhile."""
    reporter = ConsoleReporter(as_json=False)
    reporter.phase("validating")
    wait_s = 1 if sys.stderr.isatty() else _WAIT_S
    while True:
        answer = read_verdict(client, ticket["snapshot"], ticket["validation"], wait_s=wait_s, since=since)
        if answer["state"] == "done":
            reporter.clear()
            return answer
        progress = answer.get("progress")
        if progress:
            reporter.advance(entries=progress["entries"], read_bytes=progress["bytes"], sent_bytes=0)


def _fetch_findings(client: StoreClient, ticket: dict[str, Any]) -> Iterator[dict[str, str]]:
    rest = b""
    path = f"volumes/{client.volume}/findings/{quote(ticket['snapshot'])}"
    for block in client.stream(path, validation=ticket["validation"]):
        *lines, rest = (rest + block).split(b"\n")
        yield from map(json.loads, lines)


# --- a stored copy on this machine ----------------------------------------------------------------


def _validate_directory(target: str, mode: str, as_json: bool) -> int:
    from mirrorkeep.store.examine import manifest_path
    from mirrorkeep.store.findings import finding_row
    from mirrorkeep.store.local_copy import validate_directory
    from mirrorkeep.sync.local import is_copy

    if mode == INCREMENTAL:
        raise BadUsage(detail="nothing is remembered of a stored copy in a directory; it is read whole")
    if not os.path.isdir(target):
        raise BadUsage(detail=f"{target}: there is no such directory")
    if not is_copy(target) and not os.path.exists(manifest_path(target)):
        shown = show_path(os.fsencode(target))
        raise BadUsage(detail=f"{shown} is no stored copy; `mirrorkeep sync SOURCE {shown}` makes one")
    started = time.time()
    outcome = validate_directory(
        target, lambda found: _show_finding(finding_row(*found), as_json), content=mode == FULL
    )
    if outcome.findings and outcome.dirty:
        click.echo(f"mirrorkeep: the last run to {target} did not end; what it changed differs", err=True)
    if outcome.findings and not outcome.repairable:
        click.echo(f"mirrorkeep: the findings in {target} cannot be left for a run to repair", err=True)
    answer = {
        "verdict": "failed" if outcome.findings else "verified",
        "snapshot": target,
        "manifest": outcome.manifest,
        "mode": mode,
        "coverage": outcome.tally.coverage(complete=mode == FULL),
        "findings": outcome.findings,
        "seconds": round(time.time() - started, 3),
    }
    _show_verdict(answer, as_json)
    return _status(answer)


# --- showing --------------------------------------------------------------------------------------


def _show_finding(row: dict[str, str], as_json: bool) -> None:
    if as_json:
        emit(dict(row))
    else:
        path = show_path(row["path"].encode("utf-8", "surrogateescape"))
        click.echo(f"{path or '.'}: {row['kind']}: {row['detail']}")


def _show_verdict(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(answer)
        return
    coverage = answer.get("coverage")
    if coverage is None:
        click.echo(f"snapshot {answer['snapshot']}: {answer['verdict']} (ask again with --wait)")
        return
    entries = f"{coverage['entries']:,} entries compared"
    read = f"{coverage['content_bytes']:,} of {coverage['bytes']:,} bytes read"
    differences = f"{answer['findings']:,} differences"
    click.echo(f"snapshot {answer['snapshot']}: {answer['verdict']}; {entries}, {read}, {differences}")


def _status(answer: dict[str, Any]) -> int:
    """Return the exit status that a verdict means; the verdict itself stays the last line of output."""
    problem = answer.get("error")
    if problem:
        click.echo(f"mirrorkeep: {problem['title']}", err=True)
        return error_for_code(
            problem["code"], {"title": problem["title"], **problem["fields"]}, 500
        ).exit_status
    return ValidationDifferences.exit_status if answer["findings"] else 0
