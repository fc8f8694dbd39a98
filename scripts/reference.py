"""Write the reference pages that are made from the code: docs/reference/errors.md and docs/reference/cli.md.

``python scripts/reference.py`` writes them, ``--check`` says (exit 1) which are not up to date.  A page is
replaced whole, so a crash leaves the old one or the new one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import mirrorkeep
from mirrorkeep.cli import main as cli
from mirrorkeep.errors import MirrorkeepError, all_errors

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

ERRORS_HEAD = """\
# Errors

Every error that a command or a response can end with, made from their classes by
`scripts/reference.py`; do not edit it here. *Code* is stable: programs may rely on it. A server answers with
the HTTP status and a body of type `application/problem+json` (RFC 9457) that carries the code; a command
prints one line on stderr and ends with the exit status. *Again* says whether the very same request may simply
be tried again.

| code | exit | HTTP | again | what it means for your data |
|---|---|---|---|---|
"""

CLI_HEAD = """\
# Commands

Made from the commands' own help by `scripts/reference.py`; do not edit it here.

Every command has `--help` with an example and `--json` for programs: one JSON object a line on stdout, while
messages for people go to stderr. The names, arguments, exit statuses and JSON keys on this page are stable.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | bad usage |
| 3 | done, but some entries could not be read or written; each is named |
| 4 | validation found differences (`sync --wait` too, unless the verdict is verified or repaired) |
| 5 | not authorised |
| 6 | stopped by the deletion guard, or because the source is not mounted |
| 130 | interrupted |

`TARGET` is `https://HOST:PORT/volumes/NAME[/PATH]` or a directory. The token comes from `MIRRORKEEP_TOKEN` or
`--token-file`, the certificate to trust from `MIRRORKEEP_CA` or `--ca`.

An error is one line that shows no secret; with `MIRRORKEEP_DEBUG=1` one that nobody foresaw (`system_error`,
`internal_error`) shows its whole traceback as well, which may hold anything.
"""


def _import_everything() -> None:
    """Import every module, in order of their names: rooms may keep an error of their own."""
    for name in sorted(module.name for module in pkgutil.walk_packages(mirrorkeep.__path__, "mirrorkeep.")):
        importlib.import_module(name)


def _meaning(error: type[MirrorkeepError]) -> str:
    text = " ".join((error.__doc__ or "").split())
    return text.replace("|", "\\|")


def errors_page() -> str:
    """Return the table of errors, in the order of their definition, the common ones first."""
    _import_everything()
    rows = [
        f"| `{error.code}` | {error.exit_status} | {error.http_status} "
        f"| {'yes' if error.retryable else 'no'} | {_meaning(error)} |"
        for error in all_errors()
    ]
    return ERRORS_HEAD + "\n".join(rows) + "\n"


Named = tuple[click.Command, click.Context]


def _commands(command: click.Command, context: click.Context) -> Iterator[Named]:
    """Yield every command below ``command`` that does something, depth first."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None and not child.hidden:
            yield from _commands(child, click.Context(child, info_name=name, parent=context))


def cli_page() -> str:
    """Return the help of every command as it prints it, at a fixed width."""
    root = cli.program
    parts = [CLI_HEAD]
    for command, context in _commands(root, click.Context(root, info_name="mirrorkeep")):
        context.terminal_width = 96
        context.max_content_width = 96
        parts.append(f"\n## {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "".join(parts)


def main(argv: list[str]) -> int:
    pages = {REFERENCE / "errors.md": errors_page(), REFERENCE / "cli.md": cli_page()}
    stale = 0
    for path, text in pages.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in argv:
            print(f"{path.name} is not up to date: run FIX=1 scripts/check", file=sys.stderr)
            stale += 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, path)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
