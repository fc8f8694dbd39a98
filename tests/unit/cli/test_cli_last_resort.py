"""Errors that nobody foresaw: one line, a stable code, and no value that could be a secret."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mirrorkeep.cli import main as cli

SECRET = "t-YSN37-secret"
COMMAND = [sys.executable, "-m", "mirrorkeep.cli.main"]


def leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Callable[[], None]
) -> tuple[int | str | None, dict[str, object], str]:
    """Run a command through the edge; return its exit status, its JSON line and what it said on stderr."""
    monkeypatch.setattr(
        cli,
        "program",
        click.Command("probe", params=[click.Option(["--json"], is_flag=True)], callback=lambda json: run()),
    )
    monkeypatch.setattr(sys, "argv", ["mirrorkeep", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return left.value.code, json.loads(out.splitlines()[-1]), err


def test_an_error_of_the_system_names_the_file_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/srv/mirror/store.json")

    status, row, err = leave(monkeypatch, capsys, run)
    assert status == 1
    assert row["code"] == "system_error" and "/srv/mirror/store.json: Permission denied" in str(
        row["message"]
    )
    assert len(err.splitlines()) == 1 and "a user who may" in err


def test_a_fault_of_the_program_shows_its_kind_and_place_but_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise ValueError(f"Invalid header value {SECRET}")

    status, row, err = leave(monkeypatch, capsys, run)
    assert status == 1 and row["code"] == "internal_error" and row["event"] == "error"
    assert "ValueError" in err and len(err.splitlines()) == 1
    assert SECRET not in err and SECRET not in json.dumps(row)


def test_the_whole_traceback_is_shown_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIRRORKEEP_DEBUG", "1")

    def run() -> None:
        raise ValueError("what went wrong")

    assert "Traceback" in leave(monkeypatch, capsys, run)[2]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["written at the end", "written at once"])
@pytest.mark.parametrize("words", ["doctor", "doctor --json", "manifest create ."])
def test_a_full_standard_output_is_one_line(
    words: str, unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *words.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "standard output: No space left on device" in done.stderr


def test_a_usage_error_has_its_message_in_json() -> None:
    done = subprocess.run([*COMMAND, "sync", "--json"], capture_output=True, text=True, check=False)
    row = json.loads(done.stdout)
    assert done.returncode == row["exit"] == 2
    assert "SOURCE" in row["message"] and done.stderr.count("SOURCE'") == 1
