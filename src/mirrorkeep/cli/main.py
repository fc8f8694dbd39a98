"""The command line: one lazily loaded file per command group, and the edge where errors become exits.

Only the module of the command that runs is imported, so that a run that finds nothing changed pays for
nothing else.  Errors become one line on stderr and the exit status that the error names; with
``--json`` also a JSON object on stdout.  That holds for errors that nobody foresaw, too (``last_resort``).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any, Final

import click

from mirrorkeep import __version__
from mirrorkeep.cli.last_resort import drop_stdout, internal_failure, say_when_terminated, system_failure
from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.tree.allocator import collect_rarely

COMMANDS: Final = {
    "sync": ("mirrorkeep.cli.sync:sync", "Mirror a folder to a store."),
    "restore": ("mirrorkeep.cli.restore:restore", "Bring a tree, a folder or a file back."),
    "snapshots": ("mirrorkeep.cli.snapshots:snapshots", "List the snapshots of a target."),
    "validate": ("mirrorkeep.cli.validate:validate", "Prove that a snapshot is right."),
    "verdict": ("mirrorkeep.cli.verdict:verdict", "Check a verdict offline."),
    "manifest": ("mirrorkeep.cli.manifest:manifest", "Show, check, compare and convert manifests."),
    "store": ("mirrorkeep.cli.store:store", "Make and serve a store (on the machine that stores)."),
    "volume": ("mirrorkeep.cli.volume:volume", "Create and look at volumes (on the machine that stores)."),
    "up": ("mirrorkeep.cli.up:up", "Start everything on this machine."),
    "doctor": ("mirrorkeep.cli.doctor:doctor", "Say what this machine can do and what is missing."),
}

CLIENT_COMMANDS: Final = ("sync", "restore", "snapshots", "validate")


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  mirrorkeep sync /home https://store.example:8443/volumes/laptop",
)
@click.version_option(__version__, prog_name="mirrorkeep")
@click.pass_context
def program(context: click.Context) -> None:
    """Keep a live, mountable, versioned mirror of a machine's data, and prove that it is right."""
    if context.invoked_subcommand in CLIENT_COMMANDS:
        say_when_terminated()


def main() -> None:
    """Run the command line; never returns."""
    wants_json = "--json" in sys.argv
    collect_rarely()
    try:
        status = program.main(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here an error can still be told
    except click.exceptions.Abort:
        _leave(130, "interrupted", "interrupted", wants_json)
    except click.ClickException as error:
        error.show()
        _leave(2, "bad_usage", error.format_message(), wants_json, is_told=True)
    except MirrorkeepError as error:
        _leave_failed(error, wants_json)
    except KeyboardInterrupt:
        _leave(130, "interrupted", "interrupted; the next run resumes where this one stopped", wants_json)
    except BrokenPipeError:
        drop_stdout()
        sys.exit(1)
    except OSError as error:
        _leave_failed(system_failure(error), wants_json)
    except Exception as error:
        _leave_failed(internal_failure(error), wants_json)
    sys.exit(status if isinstance(status, int) else 0)


def _leave_failed(error: MirrorkeepError, wants_json: bool) -> None:
    _leave(error.exit_status, error.code, str(error), wants_json, error.fields)


def _leave(
    status: int,
    code: str,
    message: str,
    wants_json: bool,
    fields: dict[str, Any] | None = None,
    *,
    is_told: bool = False,
) -> None:
    with contextlib.suppress(OSError):  # whoever reads may be gone, or the disk full: the status still tells
        if not is_told:
            click.echo(f"mirrorkeep: {message}", err=True)
        if wants_json:
            body = {"event": "error", "code": code, "message": message, "exit": status}
            click.echo(json.dumps({**body, "fields": {k: str(v) for k, v in (fields or {}).items()}}))
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        drop_stdout()
    sys.exit(status)


if __name__ == "__main__":
    main()
