"""Files and folders on this machine that a command cannot use: one line that names them, a stable code."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorkeep.cli.main import program
from mirrorkeep.cli.manifest_output import target_stream
from mirrorkeep.errors import BadUsage, MirrorkeepError, SystemFailure
from mirrorkeep.sync.state import State


def fail(*arguments: str | Path) -> MirrorkeepError:
    done = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert isinstance(done.exception, MirrorkeepError), repr(done.exception)
    return done.exception


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_bytes(b"f")
    return tmp_path / "src"


@pytest.mark.parametrize("place", ["/proc/nowhere", "a-file/below"])
def test_a_state_folder_that_cannot_be_is_named_with_the_option(
    place: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_bytes(b"")
    error = fail("sync", source, tmp_path / "copy", "--state", tmp_path / place)
    assert error.code == "system_error" and place in str(error) and "--state" in str(error)


def test_the_entry_of_the_state_folder_may_be_a_file(source: Path, tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"), str(source), "t")
    state.close()
    for name in os.listdir(state.folder):
        os.unlink(os.path.join(state.folder, name))
    os.rmdir(state.folder)
    Path(state.folder).write_bytes(b"")
    with pytest.raises(SystemFailure, match=r"File exists.*--state"):
        State(str(tmp_path / "state"), str(source), "t")


def test_a_full_state_disk_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with State(str(tmp_path / "state"), str(source), "t") as state:
        monkeypatch.setattr("mirrorkeep.sync.state.os.fsync", full)
        with pytest.raises(SystemFailure, match=r"state.json: No space left on device; make room"):
            state._write("state.json", {})


def test_a_full_disk_during_a_run_names_the_folder_of_the_state(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mirrorkeep.sync.mirror.MirrorRun.execute", full)
    error = fail("sync", source, tmp_path / "copy", "--state", tmp_path / "state")
    assert error.code == "system_error" and str(tmp_path / "state") in str(error)


@pytest.mark.parametrize("kind", ["file", "fifo", "device"])
def test_a_source_is_a_folder(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "source"
    if kind == "file":
        place.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place = Path("/dev/null")
    error = fail("sync", place, tmp_path / "copy")
    assert isinstance(error, BadUsage) and f"{place} is no folder" in str(error)


def test_a_destination_may_not_be_a_link_to_nothing(source: Path, tmp_path: Path) -> None:
    assert (
        CliRunner()
        .invoke(program, ["sync", str(source), str(tmp_path / "copy"), "--state", str(tmp_path / "state")])
        .exit_code
        == 0
    )
    (tmp_path / "back").symlink_to("gone")
    error = fail("restore", tmp_path / "copy", tmp_path / "back")
    assert isinstance(error, BadUsage) and "gone, which does not exist" in str(error)


def test_a_manifest_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    error = fail("manifest", "create", source, "-o", tmp_path / "missing" / "m")
    assert isinstance(error, SystemFailure)
    assert f"{tmp_path}/missing/m: No such file or directory" in str(error) and "--output" in str(error)


def test_a_full_disk_under_a_manifest_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    output = str(tmp_path / "m")
    with pytest.raises(SystemFailure, match=r"m: No space left on device"), target_stream(output):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)


def test_an_error_of_reading_does_not_blame_the_output(tmp_path: Path) -> None:
    with pytest.raises(io.UnsupportedOperation), target_stream(str(tmp_path / "m")):
        raise io.UnsupportedOperation("of something else")
