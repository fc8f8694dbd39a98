"""URLs taken apart: bytes are kept, and whatever could leave a tree is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.errors import MalformedRequest, MirrorkeepError, PathRefused
from mirrorkeep.server.address import check_part_path, parse_address, quote_path


def test_areas() -> None:
    tip = parse_address(b"/volumes/v/a%20b/c")
    assert (tip.area, tip.volume, tip.path, tip.slash) == ("volumes", "v", b"a b/c", False)
    frozen = parse_address(b"/snapshots/s/v/d/")
    assert (frozen.area, frozen.snapshot, frozen.volume, frozen.path) == ("snapshots", "s", "v", b"d")
    assert frozen.slash and frozen.base == b"/snapshots/s/v"
    assert parse_address(b"/").area == parse_address(b"*").area == "root"
    assert parse_address(b"/api/v1/health").area == "api"
    assert parse_address(b"/favicon.ico").area == "other"
    assert parse_address(b"/volumes/").volume == ""


@pytest.mark.parametrize(
    "path",
    [
        b"/volumes/v/..",
        b"/volumes/v/../w/a",
        b"/volumes/v/%2e%2e/w",
        b"/volumes/v/%2E./w",
        b"/volumes/v//a",
        b"//volumes/v",
        b"/volumes/v/a%2Fb",
        b"/volumes/v/a%2fb",
        b"/volumes/v/a%00",
        b"/volumes/v/.",
        b"/volumes/.mirrorkeep/a",
        b"/volumes/%2emirrorkeep",
        b"/snapshots/.mirrorkeep.making/v/a",
        b"/snapshots/s/.mirrorkeep/a",
        b"/api/v1/volumes/v/verdicts/.mirrorkeep",
        b"/.mirrorkeep/.mirrorkeep.manifest",
        b"/volumes/v/.mirrorkeep/../a",
        b"/volumes/v/.mirrorkeep%2F.mirrorkeep.root",
        b"/volumes/../volumes/v/a",
        b"/volumes/v/" + b"a" * 5000,
    ],
)
def test_refused_paths(path: bytes) -> None:
    with pytest.raises(PathRefused):
        parse_address(path)


def test_a_name_in_a_tree_may_begin_like_a_hidden_folder() -> None:
    assert parse_address(b"/volumes/v/.mirrorkeep/a").path == b".mirrorkeep/a"
    assert parse_address(b"/volumes/v/d/%2emirrorkeep.staging/").path == b"d/.mirrorkeep.staging"
    assert parse_address(b"/snapshots/s/v/.mirrorkeep~0123").path == b".mirrorkeep~0123"


@pytest.mark.parametrize("path", [b".mirrorkeep", b"/a/.mirrorkeep/b", b"a/.mirrorkeep~0", b"../a", b"a//b"])
def test_a_part_has_no_place_under_such_a_name(path: bytes) -> None:
    with pytest.raises(PathRefused):
        check_part_path(path)


@pytest.mark.parametrize("path", [b"/volumes/v/%", b"/volumes/v/%1", b"/volumes/v/%zz", b"volumes/v"])
def test_malformed_paths(path: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_address(path)


names = st.binary(min_size=1, max_size=40).filter(
    lambda name: (
        b"/" not in name and b"\0" not in name and name not in (b".", b"..") and not name.startswith(b".mi")
    )
)


@given(st.lists(names, min_size=1, max_size=5))
def test_any_name_survives_the_url(components: list[bytes]) -> None:
    path = b"/".join(components)
    assert parse_address(b"/volumes/v/" + quote_path(path)).path == path
    assert check_part_path(path) == path.strip(b"/")


@given(st.binary(max_size=60))
def test_no_url_leads_out_of_its_tree(tail: bytes) -> None:
    try:
        address = parse_address(b"/volumes/v/" + tail)
    except MirrorkeepError:
        return
    components = address.path.split(b"/") if address.path else []
    assert not {b"", b".", b".."} & set(components)
    assert not any(b"\0" in one for one in components)
