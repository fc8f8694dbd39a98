"""``mirrorkeep volume token`` and ``volume user``: who may reach a volume, on the machine that stores.

Works beside a running service, which sees the change at its next request.  Passwords and tokens come from the
terminal or from standard input, never from the command line, where other users would see them.
"""

from __future__ import annotations

import sys
from contextlib import closing

import click

from mirrorkeep.cli.options import data_folder, json_output
from mirrorkeep.cli.report import say
from mirrorkeep.errors import BadUsage, NotFound
from mirrorkeep.store.history import iso_time


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of a volume.

    Example: mirrorkeep volume token create laptop --data /srv/mirror
    """


@token.command()
@click.argument("name")
@data_folder
@click.option("--part", default="", help="Path inside the volume that the token reaches (default: all).")
@json_output
def create(name: str, data: str, part: str, as_json: bool) -> None:
    """Make another token for the volume NAME, which is shown only now.

    Example: mirrorkeep volume token create laptop --data /srv/mirror
    """
    from mirrorkeep.server.address import check_part_path
    from mirrorkeep.store.pool import Store

    path = check_part_path(part.strip("/").encode("utf-8", "surrogateescape"))
    with closing(Store.open(data)) as store:
        made = store.registry.create_token(name, path)
    say({"token": made}, as_json, made)


@token.command(name="list")
@click.argument("name")
@data_folder
@json_output
def list_tokens(name: str, data: str, as_json: bool) -> None:
    """List the tokens of the volume NAME: the id that the access log shows, the part, and since when.

    Example: mirrorkeep volume token list laptop --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    with closing(Store.open(data)) as store:
        store.volume(name)
        rows = store.registry.tokens(name)
    for row in rows:
        part, created = row["part"].decode("utf-8", "surrogateescape"), iso_time(row["created"])
        shown = row["part"].decode("utf-8", "backslashreplace")
        say({**row, "part": part, "created": created}, as_json, f"{row['id']}  {created}  /{shown}")


@token.command()
@click.argument("name")
@click.argument("token_id", metavar="ID")
@data_folder
@json_output
def revoke(name: str, token_id: str, data: str, as_json: bool) -> None:
    """Have the token ID of the volume NAME grant nothing from its next request on; -: read it from stdin.

    Example: mirrorkeep volume token revoke laptop 3f2a90c1d7be --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    if token_id == "-":
        token_id = sys.stdin.readline().strip()
    with closing(Store.open(data)) as store:
        store.registry.revoke_token(name, token_id)
    say({"revoked": True}, as_json, "revoked")


@click.group()
def user() -> None:
    """Give people access to a volume with a name and a password, for mounts.

    Example: mirrorkeep volume user allow laptop ann --data /srv/mirror
    """


@user.command()
@click.argument("name")
@click.argument("person", metavar="USER")
@data_folder
@click.option("--write", is_flag=True, help="Also to write the tip, where no agent writes it.")
@json_output
def allow(name: str, person: str, data: str, write: bool, as_json: bool) -> None:
    """Let USER read the volume NAME and its snapshots; asks a new user's password (or reads it from stdin).

    Example: mirrorkeep volume user allow laptop ann --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    right = "write" if write else "read"
    with closing(Store.open(data)) as store:
        store.volume(name)
        registry = store.registry
        if person in registry.users():
            registry.grant_user(person, name, right)
        else:
            registry.create_user(person, _ask_password(), {name: right})
    say({"user": person, "volume": name, "right": right}, as_json, f"{person} may {right} {name}")


@user.command(name="list")
@data_folder
@json_output
def list_users(data: str, as_json: bool) -> None:
    """List the users and what they may.

    Example: mirrorkeep volume user list --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    with closing(Store.open(data)) as store:
        rows = [(person, store.registry.rights(person)) for person in store.registry.users()]
    for person, rights in rows:
        shown = ", ".join(f"{right} {volume}" for volume, right in sorted(rights.items())) or "nothing"
        say({"user": person, "volumes": rights}, as_json, f"{person}  {shown}")


@user.command()
@click.argument("name")
@click.argument("person", metavar="USER")
@data_folder
@json_output
def deny(name: str, person: str, data: str, as_json: bool) -> None:
    """Take USER's right to the volume NAME away; a user without rights is forgotten.

    Example: mirrorkeep volume user deny laptop ann --data /srv/mirror
    """
    from mirrorkeep.store.pool import Store

    with closing(Store.open(data)) as store:
        registry = store.registry
        if name not in registry.rights(person):
            raise NotFound(what=f"a right of {person} to {name}")
        registry.grant_user(person, name, None)
        if not registry.rights(person):
            registry.delete_user(person)
    say({"user": person, "volume": name, "right": None}, as_json, f"{person} may not reach {name}")


def _ask_password() -> str:
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise BadUsage(detail="a password is needed: type it, or pass it on standard input")
    return password
