"""What a run says of an entry that it could not bring over."""

from __future__ import annotations

import pytest

from mirrorkeep.cli.report import ConsoleReporter
from mirrorkeep.errors import NewerKept, SourceChanged


@pytest.mark.parametrize(
    ("path", "detail", "line"),
    [
        (b"f", "the file there is newer and was kept", "f: the file there is newer and was kept"),
        (b"what", str(NewerKept()), f"what: {NewerKept()}"),
        (b"a/f", "a/f: Permission denied", "a/f: Permission denied"),
        (b"a/f", str(SourceChanged(path="a/f")), "a/f changed while it was being read"),
        (b"e", "Permission denied", "e: Permission denied"),
    ],
)
def test_a_failure_names_its_path_once(
    path: bytes, detail: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleReporter(as_json=False).failure(path, "newer_kept", detail)
    assert capsys.readouterr().err == line + "\n"
