"""Volumes that come and go while the store is served by several workers."""

from __future__ import annotations

import http.client
import os
import ssl
from pathlib import Path

from mirrorkeep.store.open_trees import MOST_OPEN
from mirrorkeep.store.pool import Store
from rig.served import Served, Volume, checked, command

CONNECTIONS = 24
"""Enough for every worker to answer some of them, by far."""


def delete(store: Served, name: str) -> None:
    checked("volume", "delete", name, "--yes", "--data", str(store.data))


def answers(volume: Volume, method: str, path: str, body: bytes = b"") -> list[tuple[int, bytes]]:
    """Return what so many connections of their own answer, ``%d`` in the path being their number."""
    context = ssl.create_default_context(cafile=volume.ca)
    host = volume.url.split("/")[2]
    links = [http.client.HTTPSConnection(host, context=context, timeout=20) for _ in range(CONNECTIONS)]
    for link in links:
        link.connect()
    found = []
    for number, link in enumerate(links):
        url = f"/volumes/{volume.name}/{path.replace('%d', str(number))}"
        link.request(method, url, body or None, {"Authorization": f"Bearer {volume.token}", "Depth": "1"})
        answer = link.getresponse()
        found.append((answer.status, answer.read()))
    for link in links:
        link.close()
    return found


def test_a_volume_made_again_is_a_new_one_for_every_worker(store: Served) -> None:
    old = store.create_volume("again")
    assert {status for status, _ in answers(old, "PUT", "old%d", b"old")} == {201}
    delete(store, "again")
    assert {status for status, _ in answers(old, "GET", "old1")} == {401}
    new = store.create_volume("again")
    for status, body in answers(new, "PROPFIND", ""):
        assert (status, b"old" in body) == (207, False)
    assert {status for status, _ in answers(new, "GET", "old1")} == {404}
    assert {status for status, _ in answers(new, "PUT", "new%d", b"new")} == {201}
    tip = store.native_path("again")
    assert {name for name in os.listdir(tip) if name != ".mirrorkeep"} == {
        f"new{number}" for number in range(CONNECTIONS)
    }


def test_a_volume_made_again_takes_runs_of_a_part_of_the_same_name(store: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        volume = store.create_volume("mirrored")
        (source / "file").write_bytes(b"%d" % number)
        argv = (
            "sync",
            str(source),
            volume.url,
            "--state",
            str(tmp_path / f"state{number}"),
            "--json",
            "--wait",
        )
        done = checked(*argv, environment=volume.environment).last
        assert (done["status"], done["verdict"]) == ("complete", "verified")
        assert (store.native_path("mirrored") / "file").read_bytes() == b"%d" % number
        assert {body for _, body in answers(volume, "GET", "file")} == {b"%d" % number}
        delete(store, "mirrored")


def test_a_volume_that_was_never_synced_has_no_snapshots(store: Served) -> None:
    volume = store.create_volume("fresh")
    for target in (volume.url, f"{volume.url}/a/part"):
        listed = command("snapshots", target, environment=volume.environment)
        assert (listed.status, listed.output) == (0, "")
        assert "no snapshot yet" in listed.errors
        assert command("snapshots", target, "--json", environment=volume.environment).output == ""
    missing = command("snapshots", volume.url.replace("fresh", "stale"), environment=volume.environment)
    assert (missing.status, missing.output) == (1, "")
    assert "not found" in missing.errors or "not_found" in missing.errors


def test_a_worker_keeps_few_descriptors_however_many_parts_it_served(store: Served) -> None:
    volume = store.create_volume("many")
    opened = Store.open(str(store.data))
    for number in range(2 * MOST_OPEN):
        opened.volume("many").part(b"p%d" % number, create=True)
    opened.close()
    context = ssl.create_default_context(cafile=volume.ca)
    link = http.client.HTTPSConnection(volume.url.split("/")[2], context=context, timeout=20)
    for number in range(2 * MOST_OPEN):
        headers = {"Authorization": f"Bearer {volume.token}", "Depth": "0"}
        link.request("PROPFIND", f"/volumes/many/p{number}/", None, headers)
        answer = link.getresponse()
        assert (answer.status, len(answer.read()) > 0) == (207, True)
    link.close()
    most = max(len(os.listdir(f"/proc/{pid}/fd")) for pid in store.pids)
    assert MOST_OPEN < most < 2 * MOST_OPEN + 60


def test_what_lies_in_or_around_a_part_has_no_list_of_its_own(store: Served, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    volume = store.create_volume("parts")
    argv = ("sync", str(tmp_path / "source"), f"{volume.url}/a/b", "--state", str(tmp_path / "state"))
    checked(*argv, environment=volume.environment)
    status = {
        path: command("snapshots", volume.url + path, environment=volume.environment).status
        for path in ("", "/a", "/a/b", "/a/b/c", "/a/bc", "/other")
    }
    assert status == {"": 1, "/a": 1, "/a/b": 0, "/a/b/c": 1, "/a/bc": 0, "/other": 0}


def test_a_deletion_that_was_cut_off_is_finished_by_saying_it_again(store: Served) -> None:
    store.create_volume("half")
    opened = Store.open(str(store.data))
    opened.registry.decide_deletion("half")  # as a crash behind this line leaves it
    opened.close()
    argv = ("volume", "delete", "half", "--data", str(store.data), "--json")
    assert checked(*argv).last == {"deleted": "half", "snapshots": None}
    assert "half" not in checked("volume", "list", "--data", str(store.data)).output
    gone = command(*argv, "--yes")
    assert gone.status != 0 and "half" in gone.errors
