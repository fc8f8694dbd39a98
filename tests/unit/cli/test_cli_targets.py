"""Targets that are easily mistaken: what is meant, and what is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorkeep.cli.main import program
from mirrorkeep.cli.options import is_url
from mirrorkeep.errors import BadUsage


@pytest.mark.parametrize("command", ["sync", "restore", "validate", "snapshots"])
def test_an_address_without_its_beginning_is_no_directory(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = "127.0.0.1:8443/volumes/y"
    words = {"sync": [str(tmp_path), target], "restore": [target, "back"]}.get(command, [target])
    done = CliRunner().invoke(program, [command, *words])
    assert isinstance(done.exception, BadUsage) and "put https:// before it" in str(done.exception)
    assert not os.listdir(tmp_path)


def test_a_directory_of_that_name_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("h:1/volumes/y").mkdir(parents=True)
    assert not is_url("h:1/volumes/y")
    assert not is_url("./h:2/volumes/y")
    assert not is_url("backup/volumes/y")
    assert is_url("https://h:1/volumes/y")


def test_a_directory_that_is_no_copy_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    done = CliRunner().invoke(program, ["validate", str(tmp_path)])
    assert isinstance(done.exception, BadUsage)
    assert f"{tmp_path} is no stored copy" in str(done.exception)
