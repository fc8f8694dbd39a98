"""``rdiff`` reads what we write, and we read what ``rdiff`` writes (DEL-03, DEL-07, DEL-08)."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from mirrorkeep.delta.difference import DELTA, Difference
from mirrorkeep.delta.patch import patch_pieces
from mirrorkeep.delta.signature import Signature, make_signature

pytestmark = pytest.mark.engine("rdiff")

BASE = hashlib.shake_256(b"interoperability").digest(1_234_567)
NEW = BASE[:300_001] + b"inserted" + BASE[300_001:700_000] + BASE[700_500:] + b"appended" * 99


class Place:
    """A folder with the old and the new file, and ``rdiff`` working in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "base").write_bytes(BASE)
        (folder / "new").write_bytes(NEW)

    def rdiff(self, *arguments: str) -> None:
        subprocess.run(["rdiff", *arguments], cwd=self.folder, check=True, capture_output=True)

    def open(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDONLY)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_rdiff_makes_the_same_signature(place: Place) -> None:
    place.rdiff("-b", "4096", "-S", "16", "-H", "blake2", "signature", "base", "sig")
    fd = place.open("base")
    assert make_signature(fd, len(BASE)) == place.read("sig")
    os.close(fd)


def test_rdiff_takes_its_delta_from_our_signature(place: Place) -> None:
    fd = place.open("base")
    (place.folder / "sig").write_bytes(make_signature(fd, len(BASE)))
    os.close(fd)
    place.rdiff("delta", "sig", "new", "delta")
    place.rdiff("patch", "base", "delta", "out")
    assert place.read("out") == NEW
    assert len(place.read("delta")) < 15_000


@pytest.mark.parametrize(
    "options",
    [[], ["-b", "1000"], ["-b", "2048", "-S", "8"], ["-R", "rollsum"], ["-b", "65536", "-S", "32"]],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_rdiff_applies_our_delta_over_its_own_signature(place: Place, options: list[str]) -> None:
    place.rdiff(*options, "signature", "base", "sig")
    fd = place.open("new")
    change = Difference(Signature.load(place.read("sig")), fd, len(NEW)).segment(0, len(NEW))
    os.close(fd)
    assert change.kind is DELTA
    (place.folder / "delta").write_bytes(change.body)
    place.rdiff("patch", "base", "delta", "out")
    assert place.read("out") == NEW


@pytest.mark.parametrize("new", ["new", "base"])
def test_we_apply_rdiffs_delta(place: Place, new: str) -> None:
    place.rdiff("signature", "base", "sig")
    place.rdiff("delta", "sig", new, "delta")
    fd, wanted = place.open("base"), place.read(new)
    pieces = patch_pieces(place.read("delta"), fd, expected_bytes=len(wanted))
    os.close(fd)
    assert b"".join(piece.data for piece in pieces) == wanted


def test_our_unchanged_delta_is_rdiffs(place: Place) -> None:
    fd = place.open("base")
    signature = make_signature(fd, len(BASE))
    (place.folder / "sig").write_bytes(signature)
    change = Difference(Signature.load(signature), fd, len(BASE)).segment(0, len(BASE))
    os.close(fd)
    place.rdiff("delta", "sig", "base", "delta")
    assert change.body == place.read("delta")
    assert len(change.body) == 11
