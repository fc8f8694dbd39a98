"""Manifests of trees of this machine, of parts of a tree, and of sets of several trees (MAN-03, MAN-12).

Not here: looking into manifests (``manifest``), reading trees (``sync.describe``).  A crash leaves at most
files named ``*.unfinished``.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from mirrorkeep.cli.manifest_output import as_text, print_json, report_written, shown, target_stream
from mirrorkeep.cli.options import json_output
from mirrorkeep.errors import BadUsage, NotFound, printable
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.convert import open_manifest
from mirrorkeep.manifest.difference import compare_manifests
from mirrorkeep.manifest.parts import SET, SET_COUNT, SET_INDEX
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.subtree import SUBTREE, extract_subtree
from mirrorkeep.manifest.writer import ManifestSummary, ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mirrorkeep.manifest.binary import BinaryReader
    from mirrorkeep.manifest.reader import ManifestReader
    from mirrorkeep.manifest.record import Record
    from mirrorkeep.manifest.subtree import Lead

    Reader = ManifestReader | BinaryReader

_FILE = click.File("rb")
_FOLDER = click.Path(exists=True, file_okay=False)
_output = click.option(
    "--output", "-o", type=click.Path(dir_okay=False), help="Write here (only when complete), not to stdout."
)
_into = click.option(
    "--into", type=click.Path(file_okay=False), help="Folder for the manifests of a set, one file each."
)
_set_name = click.option("--name", help="Name of the set (otherwise a random one).")


@click.command()
@click.argument("folders", type=_FOLDER, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--path", default="", help="Describe only this folder inside FOLDER.")
@click.option(
    "--hash", "digest", type=click.Choice(["sha256", "sha1", "blake3"]), default="sha256", show_default=True
)
@_output
@_into
@_set_name
@json_output
@click.pass_context
def create(
    context: click.Context,
    folders: tuple[str, ...],
    path: str,
    digest: str,
    output: str | None,
    into: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Read folders of this machine and write manifests of them: one, or a set with --into.

    Exit status 3 when something could not be read; it is named and left out.

    Example: mirrorkeep manifest create /home /srv --into manifests
    """
    if into is None and len(folders) > 1:
        raise BadUsage(detail="several folders make a set: say --into FOLDER")
    if into is not None and (output or path):
        raise BadUsage(detail="a set goes --into a folder, without --output and --path")
    unread = 0
    for index, folder in enumerate(folders, 1):
        header = {b"source": os.fsencode(os.path.realpath(folder))}
        if into is not None:
            name = name or secrets.token_hex(8)
            header.update(_set_fields(name, index, len(folders)))
            os.makedirs(into, exist_ok=True)
            output = os.path.join(into, f"{index:04}.manifest")
        unread += _create_one(folder, os.fsencode(path.strip("/")), digest, header, output, as_json)
    context.exit(3 if unread else 0)


def _create_one(
    folder: str, top: bytes, digest: str, header: dict[bytes, bytes], output: str | None, as_json: bool
) -> int:
    from mirrorkeep.sync.describe import describe_tree, part_of_tree

    unread = 0

    def tell(path: bytes, detail: str) -> None:
        nonlocal unread
        unread += 1
        click.echo(f"{shown(path)}: {detail}", err=True)

    if top:
        header[SUBTREE] = top
    with target_stream(output) as stream:
        summary = _write(
            stream, header, digest, describe_tree(part_of_tree(folder, top), tell, digest=digest)
        )
    report_written(output, as_json, **_summary(summary))
    return unread


@click.command()
@click.argument("file", type=_FILE)
@click.argument("path")
@_output
@json_output
def extract(file: BinaryIO, path: str, output: str | None, as_json: bool) -> None:
    """Write the manifest of one folder of a tree, out of the manifest of the whole.

    Example: mirrorkeep manifest extract home.manifest alice/photos -o photos.manifest
    """
    from mirrorkeep.sync.links import OutsideLeaders

    top = os.fsencode(path.strip("/"))
    reader = open_manifest(file)
    inner = reader.header.get(SUBTREE)
    header = {**_own(reader.header), SUBTREE: inner + b"/" + top if inner else top}
    for key in (SET, SET_COUNT, SET_INDEX):
        header.pop(key, None)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(OutsideLeaders(folder)) as leaders,
        target_stream(output) as stream,
    ):
        records = _part(reader, top, leaders.lead, file.name)
        lines = (format_record(record.path, record.fields) for record in records)
        summary = _write(stream, header, reader.digest_name, lines)
    report_written(output, as_json, **_summary(summary))


@click.command("set")
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--into", type=click.Path(file_okay=False), required=True, help="Folder for the new files.")
@_set_name
@json_output
def make_set(files: tuple[BinaryIO, ...], into: str, name: str | None, as_json: bool) -> None:
    """Make manifests of several trees a set, whose missing parts "check" names.

    Example: mirrorkeep manifest set home.manifest srv.manifest --name laptop --into set
    """
    name = name or secrets.token_hex(8)
    os.makedirs(into, exist_ok=True)
    for index, file in enumerate(files, 1):
        reader = open_manifest(file)
        header = {**_own(reader.header), **_set_fields(name, index, len(files))}
        output = os.path.join(into, f"{index:04}.manifest")
        with target_stream(output) as stream:
            lines = (format_record(record.path, record.fields) for record in reader)
            summary = _write(stream, header, reader.digest_name, lines)
        report_written(output, as_json, **_summary(summary))


@click.command()
@click.argument("file", type=_FILE)
@click.argument("folder", type=_FOLDER)
@click.option("--path", default="", help="The folder inside the manifest's tree that FOLDER is a copy of.")
@json_output
@click.pass_context
def verify(context: click.Context, file: BinaryIO, folder: str, path: str, as_json: bool) -> None:
    """Read FOLDER and print what differs from the manifest; exit status 4 when something does.

    FOLDER is a tree as people see it (a restored one, a mounted medium), whole or the part that FILE or
    --path says.  Access, creation and inode times are not compared.

    Example: mirrorkeep manifest verify home.manifest /mnt/alice --path alice
    """
    from mirrorkeep.sync.describe import FOREIGN, comparable, describe_tree
    from mirrorkeep.sync.links import OutsideLeaders

    unread: set[bytes] = set()
    reader = open_manifest(file)
    top = os.fsencode(path.strip("/"))
    found = False
    with tempfile.TemporaryDirectory() as spare, closing(OutsideLeaders(spare)) as leaders:
        described = describe_tree(folder, lambda entry, _: unread.add(entry), digest=reader.digest_name)
        wanted = comparable(_part(reader, top, leaders.lead, file.name))
        present = comparable(parse_record(line, check=False) for line in described)
        for item in compare_manifests(wanted, present, ignored=FOREIGN):
            found = True
            names = [as_text(one) for one in item.fields]
            change = {"removed": "missing", "new": "extra"}.get(item.change, item.change)
            if item.path in unread:
                change, names = "unreadable", []
                unread.discard(item.path)
            if as_json:
                print_json({"path": as_text(item.path), "change": change, "fields": names})
            else:
                click.echo(
                    f"{change:11}{shown(item.path)}{'  ' + printable(','.join(names)) if names else ''}"
                )
    context.exit(4 if found or unread else 0)


# --- pieces -----------------------------------------------------------------------------------


def _part(reader: Reader, top: bytes, lead: Lead, name: str) -> Iterator[Record]:
    """Yield the records of a folder of a manifest, which is read and checked to its end.

    Raises NotFound when the manifest has no such folder.
    """
    last, records = None, iter(reader)
    for last in extract_subtree(records, top, lead):
        yield last
    if last is None or last.path or last.kind != keys.DIRECTORY:
        raise NotFound(what=f"a folder {printable(top)} in {name}")
    for _ in records:  # a part of a damaged manifest is worth nothing
        pass


def _write(
    stream: BinaryIO, header: Mapping[bytes, bytes], digest: str, lines: Iterable[bytes]
) -> ManifestSummary:
    writer = ManifestWriter(stream, header, digest=digest)
    for line in lines:
        writer.add(line)
    return writer.finish()


def _set_fields(name: str, index: int, count: int) -> dict[bytes, bytes]:
    return {SET: os.fsencode(name), SET_INDEX: b"%d" % index, SET_COUNT: b"%d" % count}


def _own(header: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return what a header says beside the format's own fields."""
    return {key: value for key, value in header.items() if not key.startswith(keys.INTERNAL_PREFIX)}


def _summary(summary: ManifestSummary) -> dict[str, Any]:
    return {"entries": summary.entries, "digest": summary.digest, "bytes": summary.size_bytes}
