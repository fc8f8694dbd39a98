"""Names that begin like the store's own: a client's are kept like any other, the store's are out of reach."""

from __future__ import annotations

import itertools
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorkeep.errors import BadUsage
from mirrorkeep.store.pool import Store

from .conftest import Edge

OWN = (".mirrorkeep", ".mirrorkeep.root", ".mirrorkeep.manifest", ".mirrorkeep.staging", ".mirrorkeep.links")
NAMES = (*OWN, ".mirrorkeep~" + "0" * 32, "file", ".MIRRORKEEP", "%2Emirrorkeep", "x" * 300)
METHODS = ("GET", "PUT", "DELETE", "MKCOL", "PROPFIND", "MOVE", "COPY", "LOCK", "PROPPATCH")
LOCK = b'<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>'
PATCH = b'<propertyupdate xmlns="DAV:"><set><prop><x xmlns="urn:x">1</x></prop></set></propertyupdate>'


def own_files(tip: Path) -> dict[str, bytes]:
    """Return what the store keeps for itself, sidecars of entries left out: those change with them."""
    found = {}
    for folder, _, names in os.walk(tip):
        if os.path.basename(folder) == ".mirrorkeep":
            for name in names:
                if not name.startswith(".mirrorkeep~") and name.startswith(".mirrorkeep"):
                    found[os.path.join(folder, name)] = Path(folder, name).read_bytes()
    return found


def members(edge: Edge, url: str) -> set[str]:
    reply = edge("PROPFIND", url, Depth="1")
    assert reply.status == 207
    hrefs = [one.findtext("{DAV:}href") or "" for one in ET.fromstring(reply.body)]
    return {unquote(href.rstrip("/").rpartition("/")[2]) for href in hrefs[1:]}


def test_plain_clients_keep_such_names_like_any_other(edge: Edge, base: str) -> None:
    assert edge("MKCOL", f"{base}/.mirrorkeep").status == 201
    for name in NAMES[:6]:
        assert edge("PUT", f"{base}/.mirrorkeep/{name}", name.encode()).status == 201
    assert members(edge, base) == {".mirrorkeep"}
    assert members(edge, f"{base}/.mirrorkeep") == set(NAMES[:6])
    for name in NAMES[:6]:
        assert edge("GET", f"{base}/.mirrorkeep/{name}").body == name.encode()
    assert edge("COPY", f"{base}/.mirrorkeep", Destination=f"{base}/plain").status == 201
    assert edge("MOVE", f"{base}/.mirrorkeep", Destination=f"{base}/.mirrorkeep.root").status == 201
    assert members(edge, base) == {"plain", ".mirrorkeep.root"}
    assert members(edge, f"{base}/plain") == members(edge, f"{base}/.mirrorkeep.root") == set(NAMES[:6])
    assert edge("DELETE", f"{base}/plain/.mirrorkeep").status == 204
    assert members(edge, f"{base}/plain") == set(NAMES[1:6])
    assert edge("DELETE", f"{base}/.mirrorkeep.root").status == 204
    assert members(edge, base) == {"plain"}


def test_what_is_the_stores_own_does_not_exist_for_requests(edge: Edge, base: str) -> None:
    tip = Path(edge.store.volume(base.rpartition("/")[2]).tip)
    edge("MKCOL", f"{base}/d")
    edge("PUT", f"{base}/d/f", b"content")
    (tip / ".mirrorkeep" / ".mirrorkeep.manifest").write_bytes(b"of a closed run")
    native = [os.path.relpath(os.path.join(folder, name), tip) for folder, dirs, files in os.walk(tip)
              for name in dirs + files if ".mirrorkeep" in os.path.join(folder, name)]  # fmt: skip
    assert len(native) >= 5
    for path in native:
        for method in ("GET", "PROPFIND", "DELETE"):
            assert edge(method, f"{base}/{path}", Depth="0").status == 404
    edge("PUT", f"{base}/.mirrorkeep~{0:032}", b"not under this name")
    assert not (tip / f".mirrorkeep~{0:032}").exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(METHODS),
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        ),
        max_size=12,
    )
)
def test_no_sequence_of_requests_touches_what_is_the_stores_own(
    edge: Edge, requests: list[tuple[str, list[str], list[str]]]
) -> None:
    volume = f"own{next(numbers)}"
    edge.store.create_volume(volume)
    token = edge.store.registry.create_token(volume)
    base, tip = f"/volumes/{volume}", Path(edge.store.volume(volume).tip)
    edge("PUT", f"{base}/file", b"content", token=token)
    edge("PROPPATCH", f"{base}/", PATCH, token=token)
    manifest = tip / ".mirrorkeep" / ".mirrorkeep.manifest"
    manifest.write_bytes(b"of a closed run")
    for method, path, target in requests:
        body = {"PUT": b"planted", "LOCK": LOCK, "PROPPATCH": PATCH}.get(method, b"")
        reply = edge(
            method,
            f"{base}/{'/'.join(path)}",
            body,
            token=token,
            Destination=f"{base}/{'/'.join(target)}",
            Depth="0" if method in ("PROPFIND", "LOCK") else "infinity",
        )
        assert reply.status < 500
        assert reply.body != b"of a closed run"
    edge.app.hasher.drain()
    assert manifest.read_bytes() == b"of a closed run"
    assert set(os.listdir(tip / ".mirrorkeep" / ".mirrorkeep.staging")) == set()
    own = own_files(tip)
    assert set(map(os.path.basename, own)) == {".mirrorkeep.manifest", ".mirrorkeep.root"}
    assert b"planted" not in b"".join(own.values())


numbers = itertools.count()


def test_a_pool_that_does_not_tell_capitals_apart_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Store.create(str(data), "dir").close()
    Store.open(str(data)).close()
    (data / "pool" / "VOLUMES").symlink_to("volumes")
    with pytest.raises(BadUsage, match="capitals"):
        Store.open(str(data))
