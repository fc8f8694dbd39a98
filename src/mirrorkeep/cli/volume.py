"""``mirrorkeep volume``: making, finding, listing and deleting volumes on the machine that stores.

Works beside a running service, which sees the change at its next request.  Not here: anything over HTTP.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import quote

import click

from mirrorkeep.cli.access import token, user
from mirrorkeep.cli.options import data_folder, json_output
from mirrorkeep.cli.report import emit, say
from mirrorkeep.errors import BadUsage, NotFound

_part = click.option("--part", default="", help="Path of a part inside the volume (default: all of it).")


@click.group()
def volume() -> None:
    """Create and look at volumes (on the machine that stores).

    Example: mirrorkeep volume create laptop --data /srv/mirror --json
    """


@volume.command()
@click.argument("name")
@data_folder
@json_output
def create(name: str, data: str, as_json: bool) -> None:
    """Make the volume NAME and a token for it, which is shown only now.

    Example: mirrorkeep volume create laptop --data /srv/mirror --json
    """
    from mirrorkeep.store.pool import Store

    store = Store.open(data)
    store.create_volume(name)
    token = store.registry.create_token(name)
    url = f"https://{store.address()}/volumes/{quote(name)}"
    row = {"url": url, "token": token, "ca": os.path.join(store.keys_folder, "ca.pem")}
    store.close()
    say(row, as_json, f"url    {url}\ntoken  {token}\nca     {row['ca']}")


@volume.command()
@click.argument("name")
@data_folder
@click.option("--snapshot", help="A snapshot's name, or latest.")
@_part
def path(name: str, data: str, snapshot: str | None, part: str) -> None:
    """Print the native directory of the volume NAME: of its tip or of a snapshot.

    Example: mirrorkeep volume path laptop --data /srv/mirror --snapshot latest
    """
    from mirrorkeep.store.pool import Store

    store = Store.open(data)
    found = store.volume(name)
    place = os.fsencode(part.strip("/"))
    owner = found.part_for(place)
    if snapshot is None:
        native = os.fsencode(found.tip)
    else:
        if owner is None:
            parts = found.parts()
            if len(parts) != 1:
                raise BadUsage(detail=f"volume {name} has {len(parts)} parts; name one with --part")
            owner, place = parts[0], parts[0].path
        native = os.path.join(os.fsencode(found.snapshots), os.fsencode(owner.snapshot(snapshot).name))
    native = os.path.join(native, place) if place else native
    store.close()
    if place and not os.path.lexists(native):
        raise NotFound(what=f"{part.strip('/')} in {snapshot or 'the tip'} of volume {name}")
    sys.stdout.buffer.write(native + b"\n")


@volume.command()
@click.argument("name")
@data_folder
@_part
@json_output
def snapshot(name: str, data: str, part: str, as_json: bool) -> None:
    """Freeze what the volume NAME holds now, and have it validated.

    Example: mirrorkeep volume snapshot laptop --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store
    from mirrorkeep.store.validation import freeze_now

    store = Store.open(data)
    parts = store.volume(name).parts()
    wanted = [one for one in parts if one.path == os.fsencode(part.strip("/"))]
    if not wanted and (part or len(parts) != 1):
        raise BadUsage(detail=f"volume {name} has {len(parts)} parts; name one with --part")
    made = freeze_now((wanted or parts)[0])
    store.close()
    say({"snapshot": made.name, "sequence": made.sequence}, as_json, made.name)


@volume.command(name="list")
@data_folder
@json_output
def list_volumes(data: str, as_json: bool) -> None:
    """List the volumes with their parts and newest snapshots.

    Example: mirrorkeep volume list --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    store = Store.open(data)
    for found in store.volumes():
        parts = [_describe(part) for part in found.parts()]
        if as_json:
            emit({"name": found.name, "parts": parts})
            continue
        click.echo(found.name)
        for row in parts:
            newest = f"newest {row['latest']}" if row["latest"] else "no snapshot yet"
            click.echo(f"  /{row['part']}  {row['snapshots']} snapshots, {newest}")
    store.close()


@volume.command()
@click.argument("name")
@data_folder
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_output
def delete(name: str, data: str, yes: bool, as_json: bool) -> None:
    """Delete the volume NAME with its whole history and its tokens, for ever.

    Example: mirrorkeep volume delete laptop --data /srv/mirror --yes
    """
    from mirrorkeep.store.pool import Store

    store = Store.open(data)
    if store.registry.is_being_deleted(name):  # cut off: it was said then
        store.delete_volume(name)
        store.close()
        say({"deleted": name, "snapshots": None}, as_json, f"deleted what was left of {name}")
        return
    found = store.volume(name)
    count = sum(len(part.snapshots()) for part in found.parts())
    if not yes:
        if not sys.stdin.isatty():
            raise BadUsage(detail=f"deleting {name} with {count} snapshots cannot be undone; say --yes")
        click.confirm(f"Delete {name} with {count} snapshots for ever?", abort=True, err=True)
    store.delete_volume(name)
    store.close()
    say({"deleted": name, "snapshots": count}, as_json, f"deleted {name} with {count} snapshots")


volume.add_command(token)
volume.add_command(user)


def _describe(part: Any) -> dict[str, Any]:
    snapshots = part.snapshots()
    state = part.state()
    return {
        "part": part.path.decode("utf-8", "surrogateescape"),
        "snapshots": len(snapshots),
        "latest": snapshots[-1].name if snapshots else None,
        "dirty": state.dirty,
        "run": state.run["id"] if state.run else None,
    }
