"""What a client believes of a store's verdicts: one key, one chain, and what it asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from mirrorkeep.cli.trust import Trust
from mirrorkeep.errors import VerdictRefused
from mirrorkeep.store import chain, keys
from mirrorkeep.store import validation as validations
from mirrorkeep.sync.verdicts import read_verdict
from tests.unit.store.test_validation_store import Place


class Line:
    """The client's end of a line to a store that sits in the same process."""

    volume, part = "vol", b""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.requests: list[str] = []

    @property
    def body(self) -> bytes:
        return keys.public_key(self._place.store.keys_folder)

    def api(self, path: str) -> str:
        return path

    def request(self, method: str, url: str) -> Line:
        self.requests.append(url)
        return self

    def get_json(self, path: str, *, validation: str | None, wait: float | None, since: str | None) -> Any:
        self.requests.append(path)
        snapshot = unquote(path.rpartition("/")[2])
        answer = validations.read_verdict(self._place.part, snapshot, validation, since=since or "")
        return json.loads(json.dumps(answer))


class Client:
    """A machine that mirrors to the place and reads the verdicts."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.line = Line(place)

    def read(self, asked: str | None = None, **changes: Any) -> dict[str, Any]:
        """Read the verdict of a snapshot (of a new run) and return it once it holds."""
        trust = Trust(self.line, str(self.folder))  # type: ignore[arg-type]
        snapshot = asked or self.run()
        answer = {**read_verdict(self.line, snapshot, since=trust.head), **changes}  # type: ignore[arg-type]
        trust.check(answer, snapshot)
        assert "links" not in answer
        return answer

    def run(self) -> str:
        closed = self.place.run()
        self.place.drain()
        return closed.snapshot or ""

    def refused(self, asked: str | None = None, **changes: Any) -> str:
        """Return why a verdict was refused; nothing that is remembered changes by that."""
        before = (self.folder / "trust.json").read_bytes()
        with pytest.raises(VerdictRefused) as caught:
            self.read(asked, **changes)
        assert (self.folder / "trust.json").read_bytes() == before
        assert str(self.folder / "trust.json") in str(caught.value)  # says what to do
        return str(caught.value)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    place = Place(tmp_path)
    yield Client(place, tmp_path / "state" / "target")
    place.store.close()


def test_the_key_is_asked_for_once_and_the_chain_is_followed(client: Client) -> None:
    assert client.read()["verdict"] == "verified"
    first = client.line.requests.copy()
    assert [path for path in first if path == "key"] == ["key"]
    client.run()
    client.run()
    assert client.read()["verdict"] == "verified"
    assert [path.rpartition("/")[0] for path in client.line.requests[len(first) :]] == [
        "volumes/vol/verdicts"
    ]


def test_another_key_is_refused(client: Client) -> None:
    client.read()
    folder = Path(client.place.store.keys_folder)
    for name in ("verdict.key", "verdict.pub"):
        (folder / name).unlink()
    keys.create_keys(str(folder))
    assert "another key" in client.refused()
    (client.folder / "trust.json").unlink()
    client.read()


def test_a_key_that_the_pinned_one_handed_over_to_is_trusted(client: Client) -> None:
    client.read()
    folder = client.place.store.keys_folder
    for number in range(2):
        keys.rotate_verdict_key(folder, f"2026-11-2{number}T00:00:00Z")
        client.run()
    assert client.read()["verdict"] == "verified"
    assert client.read()["verdict"] == "verified"


def test_an_altered_verdict_is_refused(client: Client) -> None:
    client.read()
    snapshot = client.run()
    assert "altered" in client.refused(snapshot, findings=7)
    assert "not signed" in client.refused(snapshot, signature=None)
    assert "'coverage' is missing" in client.refused(snapshot, coverage=None)
    assert client.read(snapshot)["findings"] == 0


def test_the_verdict_of_something_else_is_refused(client: Client) -> None:
    first = client.run()
    client.read()
    other = validations.read_verdict(client.place.part, first)
    assert "it is about" in client.refused(None, **other)
    trust = Trust(client.line, str(client.folder))  # type: ignore[arg-type]
    snapshot = client.run()
    answer = read_verdict(client.line, snapshot, since=trust.head)  # type: ignore[arg-type]
    with pytest.raises(VerdictRefused, match="another manifest"):
        trust.check(dict(answer), snapshot, "0" * 64)
    trust.check(answer, snapshot, answer["manifest"])


def test_verdicts_that_were_taken_back_are_missed(client: Client) -> None:
    client.run()
    verdicts = Path(client.place.part.folder) / "verdicts"
    shutil.copytree(verdicts, client.folder.parents[1] / "earlier")
    client.read()
    client.read()
    shutil.rmtree(verdicts)
    shutil.copytree(client.folder.parents[1] / "earlier", verdicts)
    assert "removed or rewritten" in client.refused()


def test_an_older_verdict_counts_as_long_as_it_is_on_the_chain(client: Client) -> None:
    snapshots = [client.run() for _ in range(3)]
    client.read()
    for snapshot in snapshots:
        assert client.read(snapshot)["snapshot"] == snapshot


def test_two_commands_may_read_at_once(client: Client) -> None:
    client.read()
    slow = Trust(client.line, str(client.folder))  # type: ignore[arg-type]
    snapshot = client.run()
    answer = read_verdict(client.line, snapshot, since=slow.head)  # type: ignore[arg-type]
    newest = client.read()
    slow.check(answer, snapshot)
    known = json.loads((client.folder / "trust.json").read_text())
    assert known["head"] == chain.digest_of(newest)


def test_a_damaged_memory_is_named(client: Client) -> None:
    client.read()
    (client.folder / "trust.json").write_bytes(b"{")
    with pytest.raises(VerdictRefused, match=r"trust\.json"):
        client.read()
