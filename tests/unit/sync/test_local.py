"""A directory as a target: who may write, what a close that is cut off leaves, what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mirrorkeep.errors import BadUsage, DigestMismatch, ForeignManifest, NotFound, RunSuperseded
from mirrorkeep.manifest.record import format_record
from mirrorkeep.sync.local import LocalSession, LocalSource, is_copy
from mirrorkeep.sync.state import StateBusy
from mirrorkeep.tree.protocol import Frame, Op
from rig.compare import Comparer
from tests.property.sync.loop import Cut, CutAfter, Loop

BODY = b"a manifest, as far as this session knows"
DIGEST = hashlib.sha256(BODY).hexdigest()


def begin(root: Path, **state: object) -> LocalSession:
    session = LocalSession(str(root))
    session.begin("/home", state)
    return session


def close(session: LocalSession, form: str = "full", digest: str = DIGEST) -> None:
    body = None if form == "same" else os.fsdecode(session.root) + ".body"
    if body is not None:
        Path(body).write_bytes(BODY)
    session.close(form=form, base=None, digest=digest, body=body, snapshot=True)
    session.release()


def test_nothing_is_made_before_a_run_begins(tmp_path: Path) -> None:
    session = LocalSession(str(tmp_path / "copy"))
    with pytest.raises(NotFound):
        session.fetch_manifest("latest", str(tmp_path / "manifest"))
    assert list(tmp_path.iterdir()) == []


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    first = begin(tmp_path / "copy")
    with pytest.raises(StateBusy, match=str(os.getpid())):
        begin(tmp_path / "copy")
    first.release()
    begin(tmp_path / "copy").release()


def test_a_closed_run_leaves_a_clean_copy_and_an_open_one_a_dirty_one(tmp_path: Path) -> None:
    root = tmp_path / "copy"
    session = begin(root)
    assert session.info is not None and session.info.empty and not session.info.dirty
    close(session)
    session = begin(root)
    assert session.info is not None
    assert (session.info.manifest, session.info.dirty, session.info.empty) == (DIGEST, False, False)
    run, commit = session.mark.run, session.commit(0)
    session.release()
    session = begin(root, run=run, commit=commit)
    assert session.info is not None and session.info.dirty and session.info.resume
    session.release()
    session = begin(root, run=run, commit=commit + 1)
    assert session.info is not None and session.info.dirty and not session.info.resume
    close(session)


@pytest.mark.parametrize("step", ["before the manifest", "before the state"])
def test_a_close_that_was_decided_is_rolled_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root = tmp_path / "copy"
    session = begin(root)
    if step == "before the manifest":
        monkeypatch.setattr(LocalSession, "_roll_forward", lambda self, known: known)
    else:
        write = LocalSession._write
        monkeypatch.setattr(
            LocalSession, "_write", lambda self, known: write(self, known) if known["closing"] else None
        )
    close(session)
    monkeypatch.undo()
    session = begin(root)
    assert session.info is not None
    assert (session.info.manifest, session.info.dirty) == (DIGEST, False)
    session.fetch_manifest("latest", str(tmp_path / "manifest"))
    assert (tmp_path / "manifest").read_bytes() == BODY
    session.release()


def test_a_manifest_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    session = begin(tmp_path / "copy")
    with pytest.raises(DigestMismatch):
        close(session, digest="0" * 64)
    with pytest.raises(ForeignManifest):
        close(session, form="same")
    close(session)


def test_a_run_that_was_superseded_commits_nothing(tmp_path: Path) -> None:
    first = begin(tmp_path / "copy")
    first.release()
    second = begin(tmp_path / "copy")
    with pytest.raises(RunSuperseded):
        first.commit(0)
    second.release()


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    session = begin(tmp_path / "copy")
    tree = session.slave()
    fields = {b"type": b"file", b"st_size": b"5", b"hash": hashlib.sha256(b"12345").hexdigest().encode()}
    assert tree.apply([Frame(Op.PUT, format_record(b"a/b", fields), b"12345")]) == []
    assert tree.sent_bytes == 5
    assert (tmp_path / "copy" / "a" / "b").read_bytes() == b"12345"
    assert len(tree.signature(b"a/b")) > 12
    session.release()


def test_stock_is_taken_of_a_folder_whose_stamp_never_came(tmp_path: Path) -> None:
    session = begin(tmp_path / "copy")
    digest = hashlib.sha256(b"").hexdigest().encode()
    fields = {b"type": b"file", b"st_size": b"0", b"st_mode": b"100644", b"st_mtime": b"1", b"hash": digest}
    line = format_record(b".mirrorkeep/file", fields)  # makes its folder on the way, then the run dies
    assert session.slave().apply([Frame(Op.PUT, line)]) == []
    session.release()
    session.fetch_manifest("actual", str(tmp_path / "manifest"))


def test_a_folder_of_somebody_else_is_no_copy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    assert not is_copy(str(tmp_path))
    with pytest.raises(BadUsage):
        LocalSession(str(tmp_path))
    with pytest.raises(BadUsage):
        LocalSession(str(tmp_path / "file"))
    with pytest.raises(BadUsage):
        LocalSource(str(tmp_path))


def test_a_copy_whose_run_did_not_end_gives_back_what_is_there(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    (loop.source / "folder").mkdir(parents=True)
    for number in range(40):
        (loop.source / "folder" / f"f{number}").write_bytes(b"%d" % number)
    loop.sync()
    assert not LocalSource(str(loop.copy)).dirty
    (loop.source / "folder" / "f7").write_bytes(b"newer")
    with pytest.raises(Cut), CutAfter(1):
        loop.sync()
    assert LocalSource(str(loop.copy)).dirty
    result = loop.restore(tmp_path / "back")
    assert result.failed == 0
    left = list(Comparer(str(loop.source), str(tmp_path / "back")).differences())
    assert {one.path for one in left} <= {b"folder/f7", b"folder", b""}
