"""``mirrorkeep manifest``: looking into manifests, checking, comparing, merging and converting them.

Every command takes either form, text or binary, and ``-`` for standard input; ``--partial`` accepts the
beginning of a manifest.  Results go to stdout (with ``--json`` one object a line), messages to stderr.
Not here: what the bytes mean (``mirrorkeep.manifest``), manifests of parts and sets (``manifest_parts``).  A
crash leaves at most ``OUTPUT.unfinished``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, BinaryIO

import click

from mirrorkeep.cli.manifest_output import (
    as_text,
    print_json,
    report_written,
    shown,
    target_stream,
    text_fields,
)
from mirrorkeep.cli.manifest_parts import create, extract, make_set, verify
from mirrorkeep.cli.options import json_output
from mirrorkeep.errors import MalformedManifest, printable
from mirrorkeep.manifest.binary import BinaryReader
from mirrorkeep.manifest.convert import convert_manifest, open_manifest
from mirrorkeep.manifest.difference import READ_TRACES, compare_manifests
from mirrorkeep.manifest.merge import merge_records
from mirrorkeep.manifest.parts import find_missing_parts
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.manifest.usage import summarise_usage
from mirrorkeep.manifest.writer import ManifestWriter

_FILE = click.File("rb")
_partial = click.option("--partial", is_flag=True, help="Accept a manifest that was cut off.")
_output = click.option(
    "--output", "-o", type=click.Path(dir_okay=False), help="Write here (only when complete), not to stdout."
)


@click.group()
def manifest() -> None:
    """Look into manifests: the ordered text descriptions of whole trees.

    Example: mirrorkeep manifest check /backup/.mirrorkeep/.mirrorkeep.manifest
    """


@manifest.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@_partial
@json_output
def show(files: tuple[BinaryIO, ...], partial: bool, as_json: bool) -> None:
    """Print the entries: mode, size, time of change and path.

    Example: mirrorkeep manifest show --json today.manifest
    """
    for file in files:
        reader = open_manifest(file, partial=partial)
        if as_json:
            print_json({"header": text_fields(reader.header)})
        for record in reader:
            if as_json:
                print_json({"path": as_text(record.path), "fields": text_fields(record.fields)})
            else:
                click.echo(_entry_line(record))
        if as_json and reader.trailer:
            print_json({"trailer": text_fields(reader.trailer)})


@manifest.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@_partial
@json_output
@click.pass_context
def check(context: click.Context, files: tuple[BinaryIO, ...], partial: bool, as_json: bool) -> None:
    """Check every record, the order and all hashes; of a set, also that no part is missing.

    Example: mirrorkeep manifest check part1.manifest part2.manifest
    """
    headers = []
    sound = True
    for file in files:
        result = _check_file(file, partial)
        sound = sound and bool(result["ok"])
        headers.append(result.pop("header"))
        if as_json:
            print_json(result)
        else:
            said = f"{result['entries']} entries, sound" if result["ok"] else result["detail"]
            click.echo(f"{result['file']}: {said}")
    for name, missing in find_missing_parts(headers).items():
        for index in missing:
            sound = False
            if as_json:
                print_json({"set": as_text(name), "missing": index})
            else:
                click.echo(f"set {printable(name)}: part {index} is missing")
    context.exit(0 if sound else 1)


def _check_file(file: BinaryIO, partial: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"file": file.name, "ok": False, "header": {}}
    try:
        reader = open_manifest(file, partial=partial)
        result["header"] = reader.header
        for _ in reader:
            pass
    except MalformedManifest as fault:
        return {**result, "offset": fault.fields["offset"], "detail": str(fault)}
    form = "binary" if isinstance(reader, BinaryReader) else "text"
    whole = bool(reader.trailer)
    return {**result, "ok": True, "entries": reader.entries, "form": form, "complete": whole}


@manifest.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("--all-fields", is_flag=True, help="Also compare access times and inode numbers.")
@click.option("--exit-code", is_flag=True, help="Exit with 4 when there are differences.")
@_partial
@json_output
@click.pass_context
def diff(
    context: click.Context,
    old: BinaryIO,
    new: BinaryIO,
    all_fields: bool,
    exit_code: bool,
    partial: bool,
    as_json: bool,
) -> None:
    """Print which entries are new, removed or changed from OLD to NEW.

    Example: mirrorkeep manifest diff monday.manifest tuesday.manifest
    """
    ignored = frozenset[bytes]() if all_fields else READ_TRACES
    before, after = open_manifest(old, partial=partial), open_manifest(new, partial=partial)
    found = False
    for item in compare_manifests(before, after, ignored=ignored):
        found = True
        names = [as_text(name) for name in item.fields]
        if as_json:
            print_json({"path": as_text(item.path), "change": item.change, "fields": names})
        else:
            click.echo(
                f"{item.change:8}{shown(item.path)}{'  ' + printable(','.join(names)) if names else ''}"
            )
    context.exit(4 if found and exit_code else 0)


@manifest.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="OLD NEW...")
@_output
@click.option("--partial", is_flag=True, help="Accept manifests that were cut off (never the first).")
@json_output
def merge(files: tuple[BinaryIO, ...], output: str | None, partial: bool, as_json: bool) -> None:
    """Merge manifests, later ones winning: an old one with an interrupted run's, or with a patch.

    Example: mirrorkeep manifest merge --partial old.manifest interrupted.manifest -o merged.manifest
    """
    readers = [open_manifest(file, partial=partial and index > 0) for index, file in enumerate(files)]
    with target_stream(output) as stream:
        first = readers[0]
        writer = ManifestWriter(stream, first.header, digest=first.digest_name)
        for record in merge_records(*readers):
            writer.add(format_record(record.path, record.fields))
        summary = writer.finish()
    report_written(output, as_json, entries=summary.entries, digest=summary.digest, bytes=summary.size_bytes)


@manifest.command()
@click.argument("file", type=_FILE)
@_output
@click.option("--to", "form", type=click.Choice(["text", "binary"]), help="The form; default: the other one.")
@_partial
@json_output
def convert(file: BinaryIO, output: str | None, form: str | None, partial: bool, as_json: bool) -> None:
    """Convert between the text and the binary form; nothing is lost either way.

    Example: mirrorkeep manifest convert today.manifest --to binary -o today.binary
    """
    with target_stream(output) as stream:
        binary = None if form is None else form == "binary"
        entries = convert_manifest(file, stream, binary=binary, partial=partial)
    report_written(output, as_json, entries=entries)


@manifest.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--depth", "-d", type=click.IntRange(min=0), help="Print only directories this deep.")
@_partial
@json_output
def summary(files: tuple[BinaryIO, ...], depth: int | None, partial: bool, as_json: bool) -> None:
    """Print what each directory holds in apparent bytes, as "du -b" does, the total last.

    Example: mirrorkeep manifest summary --depth 1 today.manifest
    """
    for file in files:
        for usage in summarise_usage(open_manifest(file, partial=partial)):
            level = usage.path.count(b"/") + 1 if usage.path else 0
            if depth is not None and level > depth:
                continue
            if as_json:
                print_json({"path": as_text(usage.path), "bytes": usage.size_bytes, "entries": usage.entries})
            else:
                click.echo(f"{usage.size_bytes}\t{shown(usage.path)}")


def _entry_line(record: Record) -> str:
    seconds = record.mtime_ns // 1_000_000_000
    try:
        when = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a year beyond the calendar
        when = str(seconds)
    return f"{record.mode:06o} {record.size:>13} {when:>19} {shown(record.path)}"


for _command in (create, extract, make_set, verify):
    manifest.add_command(_command)
