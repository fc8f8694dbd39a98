"""``mirrorkeep sync``: mirror a folder to a store."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mirrorkeep.cli.last_resort import files_in
from mirrorkeep.cli.options import credentials, is_url, json_output, open_client, threads_option
from mirrorkeep.cli.report import ConsoleReporter, emit, show_bytes, show_path
from mirrorkeep.errors import BadUsage, DeletionGuard, VerdictRefused
from mirrorkeep.sync.options import RunOptions, RunResult

if TYPE_CHECKING:
    from mirrorkeep.sync.plan import Plan
    from mirrorkeep.sync.session import RunSession
    from mirrorkeep.sync.state import State
    from mirrorkeep.tree.client import StoreClient


@click.command(
    epilog="Example:  mirrorkeep sync /home https://store.example:8443/volumes/laptop --wait",
    short_help="Mirror a folder to a store or a directory.",
)
@click.argument("source", type=click.Path(exists=True))
@click.argument("target")
@click.option("--state", type=click.Path(file_okay=False), help="Folder for what is remembered between runs.")
@threads_option
@click.option(
    "--hash", "digest", type=click.Choice(["sha256", "sha1", "blake3"]), default="sha256", show_default=True
)
@click.option("--no-snapshot", is_flag=True, help="Close the run without freezing a snapshot.")
@click.option("--wait", is_flag=True, help="Wait for the verdict; exit 4 unless it is verified or repaired.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--allow-deletes",
    is_flag=True,
    help="Let this run delete more than the guard allows, and what is no longer mounted.",
)
@click.option(
    "--delete-limit",
    type=click.FloatRange(0, 100),
    default=50.0,
    show_default=True,
    metavar="PERCENT",
    help="A run that would delete more of the mirror's entries asks, or stops where there is nobody to ask.",
)
@click.option("--one-file-system", is_flag=True, help="Do not descend into other file systems.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches (gitignore syntax)."
)
@click.option(
    "--exclude-from",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Patterns from a file; they come after those of --exclude, and the last that matches counts.",
)
@click.option("--exclude-caches", is_flag=True, help="Leave out folders marked with CACHEDIR.TAG.")
@click.option(
    "--commit-interval",
    type=click.FloatRange(min=0.05),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How often what was sent is made durable; a run that is cut off repeats at most so much, and the"
    " large files that were under way from their beginning.",
)
@click.option("--compress", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@credentials
@json_output
def sync(
    source: str, target: str, token_file: str | None, ca: str | None, as_json: bool, **given: Any
) -> int:
    """Make the contents of SOURCE the contents of TARGET, and freeze a snapshot.

    TARGET is https://HOST:PORT/volumes/NAME[/PATH], or a directory that becomes a local copy (without
    snapshots).  Only what changed is sent.  A run that is cut off is resumed by the next.
    """
    from mirrorkeep.sync.mirror import MirrorRun
    from mirrorkeep.sync.persist import execute_run
    from mirrorkeep.sync.rules import make_rules
    from mirrorkeep.sync.state import State, default_state_folder

    source = _folder(source)
    options = RunOptions(
        digest=given["digest"],
        threads=given["threads"],
        snapshot=not given["no_snapshot"],
        dry_run=given["dry_run"],
        allow_deletes=given["allow_deletes"],
        delete_limit=given["delete_limit"] / 100,
        one_file_system=given["one_file_system"],
        keep=make_rules(given["exclude"], given["exclude_from"], caches=given["exclude_caches"]),
        compress=given["compress"],
        commit_interval_s=given["commit_interval"],
    )
    client = open_client(target, token_file, ca) if is_url(target) else None
    session, target = _open_session(client, source, target)
    reporter = ConsoleReporter(as_json=as_json)
    folder = given["state"] or default_state_folder()
    if options.dry_run:
        from mirrorkeep.sync.plan import Plan

        tell = partial(_tell, as_json=as_json)
        return _show_plan(Plan(source, session, folder, target, options, reporter, tell), as_json)
    refused: VerdictRefused | None = None
    with State(folder, source, target) as state:
        with files_in(state.folder):
            try:
                run, result = execute_run(lambda: MirrorRun(source, session, state, options, reporter))
            except DeletionGuard as stopped:
                reporter.clear()
                allowed = _ask(stopped, options, as_json)
                run, result = execute_run(lambda: MirrorRun(source, session, state, allowed, reporter))
        if given["wait"] and client is not None and result.snapshot:
            try:
                result.verdict = _await_verdict(client, result.snapshot, state)
            except VerdictRefused as error:  # the mirror itself is closed; nothing is proven about it
                result.verdict, refused = "refused", error
        reporter.clear()
        _show(result, as_json)
        if given["wait"] and not result.snapshot:
            _explain_no_verdict(target, is_copy=client is None)
        run.settle_signatures()
    if refused is not None:
        raise refused
    if given["wait"] and result.snapshot and result.verdict not in ("verified", "repaired"):
        return 4
    return 3 if result.failed else 0


def _ask(stopped: DeletionGuard, options: RunOptions, as_json: bool) -> RunOptions:
    """Return the options of a run that may delete; raises ``stopped`` unless somebody says so."""
    fields = stopped.fields
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise stopped
    question = f"This run would delete {fields['removed']:,} of {fields['total']:,} entries. Delete them?"
    if not click.confirm(question, default=False, err=True):
        raise stopped
    return replace(options, allow_deletes=True)


def _await_verdict(client: StoreClient, snapshot: str, state: State) -> str:
    """Return the verdict of a snapshot, which is to hold, once there is one."""
    from mirrorkeep.cli.trust import Trust
    from mirrorkeep.sync.verdicts import wait_for_verdict

    trust = Trust(client, state.folder)
    answer = wait_for_verdict(client, snapshot, since=trust.head)
    trust.check(answer, snapshot, state.manifest_digest())
    return str(answer["verdict"])


def _folder(source: str) -> str:
    """Return the real path of SOURCE; raises BadUsage when it is no folder."""
    if not os.path.isdir(source):
        shown = show_path(os.fsencode(source))
        raise BadUsage(detail=f"{shown} is no folder; name the folder whose contents are to be mirrored")
    return os.path.realpath(source)


def _open_session(client: StoreClient | None, source: str, target: str) -> tuple[RunSession, str]:
    """Return the session of a target, and the target's name as the state knows it."""
    if client is not None:
        from mirrorkeep.sync.session import Session

        return Session(client), target.rstrip("/")
    from mirrorkeep.sync.local import LocalSession

    return LocalSession(target, source=source), os.path.realpath(target)


def _explain_no_verdict(target: str, *, is_copy: bool) -> None:
    """Say why nothing was waited for."""
    if is_copy:
        shown = show_path(os.fsencode(target))
        why = f"a local copy has no snapshots; to prove it: mirrorkeep validate {shown}"
    else:
        why = "without a snapshot nothing is validated; leave out --no-snapshot"
    click.echo(f"mirrorkeep: no verdict: {why}", err=True)


def _show_plan(plan: Plan, as_json: bool) -> int:
    result = plan.execute()
    if as_json:
        _show(result, as_json)
    else:
        click.echo(
            f"{result.entries:,} entries: {result.new:,} new, {result.changed:,} changed,"
            f" {result.removed:,} removed, {result.unchanged:,} unchanged; nothing was done"
        )
    if plan.stop is not None:
        raise plan.stop
    return 3 if result.failed else 0


def _tell(action: str, path: bytes, *, as_json: bool) -> None:
    if as_json:
        emit({"event": "would", "action": action, "path": path.decode("utf-8", "surrogateescape")})
    else:
        click.echo(f"{action:<8} {show_path(path) or '.'}")


def _show(result: RunResult, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "event": "done",
                "run": result.run,
                "status": result.status,
                "entries": result.entries,
                "new": result.new,
                "changed": result.changed,
                "removed": result.removed,
                "moved": result.moved,
                "copied": result.copied,
                "unchanged": result.unchanged,
                "failed": result.failed,
                "bytes_read": result.bytes_read,
                "bytes_sent": result.bytes_sent,
                "seconds": round(result.seconds, 3),
                "snapshot": result.snapshot,
                "verdict": result.verdict,
            }
        )
        return
    moved = f", {result.moved:,} moved" if result.moved else ""
    failed = f", {result.failed:,} FAILED" if result.failed else ""
    click.echo(
        f"{result.entries:,} entries: {result.new:,} new, {result.changed:,} changed{moved},"
        f" {result.removed:,} removed, {result.unchanged:,} unchanged{failed};"
        f" sent {show_bytes(result.bytes_sent)} in {result.seconds:.2f} s"
    )
    if result.snapshot:
        click.echo(f"snapshot {result.snapshot}: {result.verdict}")
