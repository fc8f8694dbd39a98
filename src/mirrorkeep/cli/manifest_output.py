"""What the manifest commands print and write: the same way for all of them.

Not here: the commands (``manifest``, ``manifest_parts``).  A crash leaves at most ``OUTPUT.unfinished``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from mirrorkeep.cli.last_resort import files_in
from mirrorkeep.errors import printable
from mirrorkeep.manifest import keys
from mirrorkeep.tree.local_errors import is_full, local_errors


def as_text(raw: bytes) -> str:
    """Return bytes as text that gives the same bytes again."""
    return raw.decode("utf-8", "surrogateescape")


def shown(path: bytes) -> str:
    """Return a path for people; control characters as escapes, so that no name moves the cursor."""
    text = printable(path) or "."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def text_fields(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Return the fields as a user sees them: without the internal ones (MAN-19)."""
    return {as_text(k): as_text(v) for k, v in fields.items() if not k.startswith(keys.INTERNAL_PREFIX)}


def print_json(item: dict[str, Any]) -> None:
    """Print one object as a line."""
    click.echo(json.dumps(item))


@contextlib.contextmanager
def target_stream(output: str | None) -> Iterator[BinaryIO]:
    """Yield the stream to write to; a named file appears only when everything was written.

    Raises SystemFailure when the file cannot be written.
    """
    if output is None:
        with files_in("standard output"):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    unfinished = output + ".unfinished"
    try:
        with open(unfinished, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, output)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        if isinstance(error, OSError) and (is_full(error) or error.filename == unfinished):
            with local_errors(output, "name another file with --output"):
                raise
        raise


def report_written(output: str | None, as_json: bool, **result: Any) -> None:
    """Say what was written; never on stdout when the manifest itself goes there."""
    to_stderr = output is None
    if as_json:
        click.echo(json.dumps({"file": output, **result}), err=to_stderr)
    elif not to_stderr:
        click.echo(f"{output}: {result['entries']} entries", err=True)
