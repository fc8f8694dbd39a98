"""Tokens from files and the environment, as the commands take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorkeep.cli.snapshots import snapshots
from mirrorkeep.errors import BadUsage, StoreUnreachable

URL = "https://127.0.0.1:1/volumes/y"


@pytest.mark.parametrize("held", [b"", b"\r\n", b"one\ntwo\n", "t\u20ac".encode(), b"\xff\xfe"])
def test_a_token_file_without_one_token_does_not_fall_back_to_the_environment(
    held: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRRORKEEP_TOKEN", "of-the-environment")
    (tmp_path / "token").write_bytes(held)
    done = CliRunner().invoke(snapshots, [URL, "--token-file", str(tmp_path / "token")])
    assert isinstance(done.exception, BadUsage)
    assert str(tmp_path / "token") in str(done.exception) and "two" not in str(done.exception)


@pytest.mark.parametrize("as_json", [False, True])
def test_people_are_told_at_once_that_the_store_does_not_answer(
    as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorkeep.tree.client.REFUSED_PATIENCE_S", 0.3)
    done = CliRunner().invoke(snapshots, [URL, *(["--json"] if as_json else [])])
    assert isinstance(done.exception, StoreUnreachable)
    assert ("cannot reach 127.0.0.1:1" in done.stderr) is not as_json
