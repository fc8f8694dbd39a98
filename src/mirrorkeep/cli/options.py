"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from mirrorkeep.errors import BadUsage

if TYPE_CHECKING:
    from mirrorkeep.tree.client import StoreClient

_FORGOTTEN_SCHEME: Final = re.compile(r"[^/\s]+:\d+/volumes(/|$)")
Command = TypeVar("Command", bound=Callable[..., Any])


def credentials(command: Command) -> Command:
    """Add ``--token-file`` and ``--ca``."""
    for option in (
        click.option(
            "--ca",
            type=click.Path(dir_okay=False),
            envvar="MIRRORKEEP_CA",
            help="CA certificate of the store [env: MIRRORKEEP_CA].",
        ),
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False),
            help="File that holds the token (otherwise MIRRORKEEP_TOKEN).",
        ),
    ):
        command = option(command)
    return command


def json_output(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")(command)


def data_folder(command: Command) -> Command:
    """Add ``--data``, for commands on the machine that stores."""
    option = click.option(
        "--data", required=True, type=click.Path(file_okay=False), help="Folder of the store."
    )
    return option(command)


def threads_option(command: Command) -> Command:
    """Add ``--threads``."""
    option = click.option(
        "--threads",
        type=click.IntRange(1, 64),
        default=4,
        show_default=True,
        help="Transfers at once; with three or more a large file takes up to three connections.",
    )
    return option(command)


def open_client(target: str, token_file: str | None, ca: str | None) -> StoreClient:
    """Return a client for a target URL; raises BadUsage for anything that cannot be one."""
    from mirrorkeep.tree.client import StoreClient
    from mirrorkeep.tree.target import clean_token

    token = None
    if token_file is not None:
        try:
            with open(token_file, encoding="utf-8", errors="replace") as stream:
                token = clean_token(stream.read(), token_file)
        except OSError as error:
            raise BadUsage(detail=f"cannot read the token from {token_file}: {error.strerror}") from error
    if ca and not os.path.exists(ca):
        raise BadUsage(detail=f"there is no CA certificate at {ca}")
    client = StoreClient.from_target(target, token, ca)
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("as_json"):
        client.tell_waiting = partial(_tell, process=os.getpid())
    return client


def _tell(message: str, *, process: int) -> None:
    if os.getpid() == process:  # workers would each say the same
        click.echo(f"mirrorkeep: {message}", err=True)


def is_url(target: str) -> bool:
    """Return whether a target is on a store rather than a directory.

    Raises BadUsage for a URL without its beginning, which would name a directory that nobody means.
    """
    if _FORGOTTEN_SCHEME.match(target) and not os.path.isdir(target):
        raise BadUsage(detail=f"{target} looks like a store's address: put https:// before it (or ./)")
    return "://" in target
