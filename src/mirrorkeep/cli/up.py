"""``mirrorkeep up``: everything that one machine needs, started by one command.

Today that is the store: it is made when DATA holds none, then served with its workers and its validator
until SIGTERM or Ctrl-C.  Starting again after any crash takes up what is there.

Not here: how a store is made and served (``cli/store``).
"""

from __future__ import annotations

import os
import sys

import click

from mirrorkeep.cli.options import json_output
from mirrorkeep.cli.store import init, serve


def default_data_folder() -> str:
    """Return where the store lies when the command names no folder."""
    if os.geteuid() == 0:
        return "/var/lib/mirrorkeep/store"
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "mirrorkeep", "store")


@click.command(epilog="Example:  mirrorkeep up --data /srv/mirror")
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="Folder of the store, made if missing.  [default: /var/lib/mirrorkeep/store as root, otherwise"
    " ~/.local/share/mirrorkeep/store]",
)
@click.option(
    "--size",
    help="Size of a new pool, e.g. 20G; an image takes only what is written.  [default: 80 % of the free"
    " room]",
)
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="HOST:PORT (port 0: any).")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that serve (default: one a core).")
@json_output
@click.pass_context
def up(
    context: click.Context,
    data: str | None,
    size: str | None,
    listen: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Start everything on this machine, and stay until it is stopped.

    Makes a store in DATA if there is none, and serves it.
    """
    data = os.path.abspath(data or default_data_folder())
    if not os.path.exists(os.path.join(data, "store.json")):
        os.makedirs(data, exist_ok=True)
        context.invoke(init, data=data, size=size, driver="auto", encrypt="auto", as_json=as_json)
    if not as_json:
        click.echo(f"the store is in {data}; make a volume with: mirrorkeep volume create NAME --data {data}")
    sys.stdout.flush()
    context.invoke(serve, data=data, listen=listen, workers=workers)
