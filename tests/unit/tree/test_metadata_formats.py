"""Texts of access lists, sparse ranges and security descriptors: exact both ways, strict in reading."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.tree.metadata.acl import acl_from_text, acl_to_text
from mirrorkeep.tree.metadata.sddl import ACE_TYPES, parse_sddl
from mirrorkeep.tree.metadata.sparse import holes, ranges_from_text, ranges_to_text

GOLDEN = Path(__file__).parents[2] / "golden" / "metadata"
IDS = some.integers(0, 2**32 - 2)
ENTRIES = some.lists(
    some.one_of(
        some.tuples(some.sampled_from([2, 8]), some.integers(0, 7), IDS),
        some.tuples(some.sampled_from([1, 4, 16, 32]), some.integers(0, 7), some.just(0xFFFFFFFF)),
    ),
    max_size=12,
)


@given(ENTRIES)
def test_access_lists_survive_as_text(entries: list[tuple[int, int, int]]) -> None:
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert acl_from_text(acl_to_text(value)) == value


def test_an_access_list_reads_as_documented() -> None:
    text = b"u::rw-;u:1000:r--;g::r--;m::r--;o::r--"
    assert acl_to_text(acl_from_text(text)) == text
    assert acl_from_text(b"") == b"\2\0\0\0"


@pytest.mark.engine("setfacl")
def test_the_text_means_what_setfacl_sets(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"")
    file.chmod(0o640)
    subprocess.run(["setfacl", "-m", "u:1000:r-x,g:2000:-w-", file], check=True)
    value = os.getxattr(file, "system.posix_acl_access")
    assert acl_to_text(value) == b"u::rw-;u:1000:r-x;g::r--;g:2000:-w-;m::rwx;o::---"


@pytest.mark.parametrize(
    "value", [b"", b"\1\0\0\0", b"\2\0\0\0\1", b"\2\0\0\0" + struct.pack("<HHI", 3, 0, 0)]
)
def test_strange_attributes_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="access control"):
        acl_to_text(value)


@pytest.mark.parametrize(
    "text", [b"u::rwxx", b"x::rwx", b"u:-1:rwx", b"u:99999999999:rwx", b"o:5:rwx", b"u", b";", b"u:a:r--"]
)
def test_strange_texts_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a"):
        acl_from_text(text)


@given(some.lists(some.integers(1, 1 << 40), max_size=40), some.integers(0, 1 << 20))
def test_ranges_survive_and_holes_are_the_rest(steps: list[int], tail: int) -> None:
    edges = [sum(steps[: index + 1]) for index in range(len(steps))]
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    size = (edges[-1] if edges else 0) + tail
    assert ranges_from_text(ranges_to_text(ranges), size) == ranges
    covered = sorted([*ranges, *holes(ranges, size)])
    assert sum(end - start for start, end in covered) == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(covered))


@pytest.mark.parametrize(
    "text", [b"5+0", b"0+11", b"4+4;2+1", b"0-5", b"+5", b"5+", b"0+1;", b"-1+2", b"a+b"]
)
def test_strange_ranges_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="range"):
        ranges_from_text(text, 10)


SIDS = some.one_of(
    some.sampled_from(["BA", "SY", "WD", "AU", "CO"]),
    some.lists(some.integers(0, 2**32 - 1), min_size=1, max_size=6).map(
        lambda parts: "S-1-5-" + "-".join(map(str, parts))
    ),
)
ACES = some.tuples(
    some.sampled_from(sorted(ACE_TYPES)),
    some.lists(some.sampled_from(["CI", "OI", "NP", "IO", "ID"]), max_size=3).map("".join),
    some.sampled_from(["FA", "0x1200a9", "GRGX", "", "2032127"]),
    some.sampled_from(["", "00000000-1111-2222-3333-444444444444"]),
    some.just(""),
    SIDS,
).map(lambda parts: f"({';'.join(parts)})")
LISTS = some.tuples(some.sampled_from(["", "P", "PAI", "ARAI"]), some.lists(ACES, max_size=4)).map(
    lambda pair: pair[0] + "".join(pair[1])
)
DESCRIPTORS = some.tuples(*[some.none() | kind for kind in (SIDS, SIDS, LISTS, LISTS)]).map(
    lambda parts: "".join(
        f"{tag}:{part}" for tag, part in zip("OGDS", parts, strict=True) if part is not None
    )
)


@given(DESCRIPTORS)
def test_descriptors_survive_character_for_character(text: str) -> None:
    assert str(parse_sddl(text)) == text


@pytest.mark.parametrize("text", (GOLDEN / "sddl.txt").read_text().splitlines())
def test_descriptors_of_real_systems(text: str) -> None:
    descriptor = parse_sddl(text)
    assert str(descriptor) == text
    assert descriptor.dacl is not None
    assert all(ace.kind in ACE_TYPES for ace in descriptor.dacl.entries)


def test_a_descriptor_is_taken_apart() -> None:
    descriptor = parse_sddl('O:BAG:SYD:PAI(A;OICI;FA;;;BA)(XA;;FX;;;WD;(@User.Title=="a)b"))S:')
    assert (descriptor.owner, descriptor.group) == ("BA", "SY")
    assert descriptor.dacl is not None
    assert descriptor.dacl.flags == "PAI"
    assert descriptor.dacl.entries[0].rights == "FA"
    assert descriptor.dacl.entries[1].rest == '(@User.Title=="a)b")'
    assert descriptor.sacl is not None
    assert descriptor.sacl.entries == ()


@pytest.mark.parametrize(
    "text",
    ["X", "O:", "O:B", "D:(A;;FA;;;BA", "D:(A;;FA;;BA)", "D:(Q;;FA;;;BA)", "D:(A;;0xZ;;;BA)", "G:BAO:BA"],
)
def test_strange_descriptors_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="character"):
        parse_sddl(text)


def test_foreign_keys_survive_a_record() -> None:
    """What Windows and macOS record passes through any store as it is."""
    fields = {
        keys.TYPE: keys.FILE,
        keys.SDDL: b"O:BAG:SYD:(A;;FA;;;BA)",
        keys.WINDOWS_ATTRIBUTES: b"32",
        keys.STREAM_PREFIX + b"Zone.Identifier": b"[ZoneTransfer]\r\nZoneId=3\r\n",
        keys.STREAM_PREFIX + b"com.apple.ResourceFork": bytes(range(256)),
        keys.MAC_FLAGS: b"8000",
        keys.MAC_ACL: b"!#acl 1\ngroup:ABCD:everyone:12:deny:delete\n",
    }
    assert parse_record(format_record(b"f", fields)).fields == fields
