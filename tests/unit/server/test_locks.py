"""Locks beyond what litmus asks: restarts, other users, expiry, collections, the If header."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.errors import MalformedRequest, MirrorkeepError
from mirrorkeep.server.app import Application
from mirrorkeep.server.audit import AccessLog
from mirrorkeep.server.dav_locks import Condition, new_token, parse_if, parse_timeout, submitted_tokens
from mirrorkeep.store.pool import Store

from .conftest import Edge, Reply

INFO = (
    b'<?xml version="1.0"?><lockinfo xmlns="DAV:"><lockscope><%s/></lockscope>'
    b"<locktype><write/></locktype><owner><href>mailto:me</href></owner></lockinfo>"
)
EXCLUSIVE, SHARED = INFO % b"exclusive", INFO % b"shared"


def token_of(reply: Reply) -> str:
    assert reply.status in (200, 201), reply.body
    return reply.headers["lock-token"].strip("<>")


def test_a_lock_survives_a_restart_and_is_frozen_out_of_nothing(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"1")
    token = token_of(edge("LOCK", f"{base}/f", EXCLUSIVE, Depth="0", Timeout="Second-300"))
    edge.store.close()
    again = Store.open(edge.store.data)
    other = Edge(Application(again, AccessLog(f"{edge.store.data}/log"), 1.0), edge.token)
    found = other("PROPFIND", f"{base}/f", Depth="0").body.decode()
    assert token in found and "mailto:me" in found and "Second-300" in found
    refused = other("PUT", f"{base}/f", b"2")
    assert refused.status == 423 and b"lock-token-submitted" in refused.body
    assert other("PUT", f"{base}/f", b"2", If=f"(<{token}>)").status == 204
    assert other("UNLOCK", f"{base}/f", Lock_Token=f"<{token}>").status == 204
    assert other("PUT", f"{base}/f", b"3").status == 204
    other.app.close()
    again.close()


def test_a_token_is_of_no_use_to_another_principal(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"1")
    token = token_of(edge("LOCK", f"{base}/f", EXCLUSIVE))
    thief = edge.store.registry.create_token(base.rpartition("/")[2])
    assert edge("PUT", f"{base}/f", b"2", token=thief, If=f"(<{token}>)").status == 423
    assert edge("UNLOCK", f"{base}/f", token=thief, Lock_Token=f"<{token}>").status == 423
    assert edge("LOCK", f"{base}/f", b"", token=thief, If=f"(<{token}>)").status == 412


def test_a_lock_expires(edge: Edge, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    edge("PUT", f"{base}/f", b"1")
    token_of(edge("LOCK", f"{base}/f", EXCLUSIVE, Timeout="Second-10"))
    assert edge("PUT", f"{base}/f", b"2").status == 423
    now = time.time()
    monkeypatch.setattr("mirrorkeep.server.dav_locks.time.time", lambda: now + 12)
    from mirrorkeep.server.dav_locks import LockTable

    monkeypatch.setattr(LockTable.__init__, "__defaults__", (lambda: now + 12,))
    assert edge("PUT", f"{base}/f", b"2").status == 204


def test_a_deep_lock_covers_what_is_below(edge: Edge, base: str) -> None:
    edge("MKCOL", f"{base}/d")
    edge("PUT", f"{base}/d/f", b"1")
    token = token_of(edge("LOCK", f"{base}/d", EXCLUSIVE, Depth="infinity"))
    held = f"<{base}/d> (<{token}>)"
    for method, url, headers in (
        ("PUT", f"{base}/d/f", {}),
        ("PUT", f"{base}/d/new", {}),
        ("DELETE", f"{base}/d/f", {}),
        ("MKCOL", f"{base}/d/c", {}),
        ("PROPPATCH", f"{base}/d/f", {}),
        ("DELETE", f"{base}/d", {}),
        ("MOVE", f"{base}/d", {"Destination": f"{base}/e"}),
    ):
        body = b'<propertyupdate xmlns="DAV:"><remove><prop><x/></prop></remove></propertyupdate>'
        reply = edge(method, url, body if method == "PROPPATCH" else b"", **headers)
        assert reply.status == 423, method
    assert edge("PUT", f"{base}/d/new", b"", If=held).status == 201
    found = edge("PROPFIND", f"{base}/d", Depth="1").body.decode()
    assert found.count(f"<D:locktoken><D:href>{token}") == 3
    assert edge("LOCK", f"{base}/d/f", SHARED).status == 423
    assert edge("MOVE", f"{base}/d", Destination=f"{base}/e", If=held).status == 201
    assert "locktoken" not in edge("PROPFIND", f"{base}/e", Depth="1").body.decode()


def test_a_lock_below_keeps_a_collection_from_being_removed_or_locked(edge: Edge, base: str) -> None:
    edge("MKCOL", f"{base}/d")
    edge("PUT", f"{base}/d/f", b"1")
    token = token_of(edge("LOCK", f"{base}/d/f", EXCLUSIVE, Depth="0"))
    assert edge("DELETE", f"{base}/d").status == 423
    assert edge("LOCK", f"{base}/d", EXCLUSIVE, Depth="infinity").status == 423
    assert token_of(edge("LOCK", f"{base}/d", EXCLUSIVE, Depth="0"))
    assert edge("GET", f"{base}/d/f").body == b"1"
    assert token


def test_a_lock_on_nothing_makes_an_empty_file(edge: Edge, base: str) -> None:
    reply = edge("LOCK", f"{base}/new", EXCLUSIVE, Timeout="Infinite")
    assert reply.status == 201
    assert edge("GET", f"{base}/new").body == b""
    assert edge("LOCK", f"{base}/no/where", EXCLUSIVE).status == 409
    assert edge("LOCK", f"{base}/new", b"<lockinfo xmlns='DAV:'/>").status == 400
    assert edge("UNLOCK", f"{base}/new", Lock_Token="<urn:uuid:none>").status == 409
    assert edge("UNLOCK", f"{base}/new").status == 400


def test_shared_locks_live_together(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"1")
    first, second = (token_of(edge("LOCK", f"{base}/f", SHARED)) for _ in range(2))
    assert first != second
    assert edge("LOCK", f"{base}/f", EXCLUSIVE).status == 423
    assert edge("PUT", f"{base}/f", b"2").status == 423
    assert edge("PUT", f"{base}/f", b"2", If=f"(<{first}>)").status == 204


def test_if_headers() -> None:
    parsed = parse_if('<http://h/a> (<t:1> ["e"]) (Not <DAV:no-lock>) <http://h/b> (["x y"])')
    assert [one.resource for one in parsed] == ["http://h/a", "http://h/a", "http://h/b"]
    assert parsed[0].conditions == (Condition(False, "t:1", ""), Condition(False, "", '"e"'))
    assert parsed[1].conditions == (Condition(True, "DAV:no-lock", ""),)
    assert submitted_tokens(parsed) == {"t:1"}
    assert parse_if("") == []


@pytest.mark.parametrize("header", ["(", "()", "(<t>", "(Not)", "x", "(<a>) y", "((<a>))", "Not (<a>)"])
def test_bad_if_headers(header: str) -> None:
    with pytest.raises(MalformedRequest):
        parse_if(header)


@given(st.text(alphabet='()<>[]"Not tW/:x ', max_size=40))
def test_no_if_header_breaks_the_parser(header: str) -> None:
    try:
        parse_if(header)
    except MirrorkeepError:
        return


def test_timeouts_and_tokens() -> None:
    assert parse_timeout("Second-10") == 10
    assert parse_timeout("Infinite, Second-4100000000") == 7 * 86400
    assert parse_timeout("Second-99999999") == 7 * 86400
    assert parse_timeout("Extended, Second-5") == 5
    assert parse_timeout("") == 3600
    form = r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(form, new_token())


def test_the_way_a_finder_saves(edge: Edge, base: str) -> None:
    """Lock nothing, an empty PUT, a chunked one with the token, look, unlock; and the ``._`` twin."""
    for name in ("letter.txt", "._letter.txt"):
        url = f"{base}/{name}"
        assert edge("PROPFIND", url, Depth="0").status == 404
        token = token_of(edge("LOCK", url, EXCLUSIVE, Depth="0", Timeout="Second-600"))
        assert edge("PUT", url, b"", If=f"(<{token}>)").status == 204
        headers = {"Transfer_Encoding": "chunked", "X_Expected_Entity_Length": "6", "If": f"(<{token}>)"}
        assert edge("PUT", url, [b"let", b"ter"], **headers).status == 204
        assert edge("PROPFIND", url, Depth="0").status == 207
        refreshed = edge("LOCK", url, b"", If=f"(<{token}>)", Timeout="Second-600")
        assert refreshed.status == 200 and token.encode() in refreshed.body
        assert edge("UNLOCK", url, Lock_Token=f"<{token}>").status == 204
        assert edge("GET", url).body == b"letter"


def test_the_way_an_explorer_saves(edge: Edge, base: str) -> None:
    """OPTIONS first, an empty PUT, a lock, the content, Win32 times as properties, a copy with Translate."""
    assert edge("OPTIONS", "/", anonymous=True).headers["ms-author-via"] == "DAV"
    url = f"{base}/New%20Document.txt"
    assert edge("PUT", url, b"", Translate="f").status == 201
    token = token_of(edge("LOCK", url, EXCLUSIVE, Timeout="Second-3600"))
    assert edge("PUT", url, b"text", If=f"(<{token}>)", Translate="f").status == 204
    times = (
        b'<?xml version="1.0" encoding="utf-8"?><D:propertyupdate xmlns:D="DAV:"'
        b' xmlns:Z="urn:schemas-microsoft-com:"><D:set><D:prop>'
        b"<Z:Win32LastModifiedTime>Sun, 22 Nov 2026 10:00:00 GMT</Z:Win32LastModifiedTime>"
        b"<Z:Win32FileAttributes>00000020</Z:Win32FileAttributes></D:prop></D:set></D:propertyupdate>"
    )
    assert b"200 OK" in edge("PROPPATCH", url, times, If=f"(<{token}>)").body
    assert edge("UNLOCK", url, Lock_Token=f"<{token}>").status == 204
    assert b"00000020" in edge("PROPFIND", url, Depth="0").body
