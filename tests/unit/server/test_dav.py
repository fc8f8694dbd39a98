"""WebDAV beyond what litmus asks: names, links, ranges, conditions, quotas, index pages, gzip."""

from __future__ import annotations

import gzip
import hashlib
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.server.address import quote_path
from mirrorkeep.server.dav import parse_range
from mirrorkeep.server.dav_index import time_text
from mirrorkeep.tree.protocol import Frame, Op

from .conftest import Edge, Reply

D = "{DAV:}"


def properties(reply: Reply) -> dict[str, dict[str, ET.Element]]:
    """Return href -> name -> element of the properties that were found."""
    assert reply.status == 207
    found: dict[str, dict[str, ET.Element]] = {}
    for response in ET.fromstring(reply.body):
        href = response.findtext(f"{D}href") or ""
        found[href] = {}
        for stat in response.iter(f"{D}propstat"):
            if "200" in (stat.findtext(f"{D}status") or ""):
                found[href].update({one.tag: one for one in stat.find(f"{D}prop") or ()})
    return found


def test_put_get_and_the_digest_that_comes_later(edge: Edge, base: str) -> None:
    made = edge("PUT", f"{base}/f.txt", b"content")
    assert made.status == 201
    edge.app.hasher.drain()
    got = edge("GET", f"{base}/f.txt")
    assert (got.status, got.body) == (200, b"content")
    assert got.headers["etag"] == made.headers["etag"]
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["mirrorkeep-digest"] == "sha256=" + hashlib.sha256(b"content").hexdigest()
    found = properties(edge("PROPFIND", f"{base}/f.txt", Depth="0"))[f"{base}/f.txt"]
    assert found["{urn:mirrorkeep}hash"].text == got.headers["mirrorkeep-digest"]
    head = edge("HEAD", f"{base}/f.txt")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "7")
    assert edge("PUT", f"{base}/f.txt", b"other").status == 204


def test_a_digest_of_an_older_content_is_refused(
    edge: Edge, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrorkeep.server import hashing

    waiting: list[tuple[object, int]] = []
    monkeypatch.setattr(edge.app.hasher, "add", lambda place, generation: waiting.append((place, generation)))
    edge("PUT", f"{base}/f", b"one")
    edge("PUT", f"{base}/f", b"two")
    place, generation = waiting[0]
    hashing.hash_now(place, generation)  # type: ignore[arg-type]
    assert "mirrorkeep-digest" not in edge("GET", f"{base}/f").headers
    hashing.hash_now(*waiting[1])  # type: ignore[arg-type]
    assert hashlib.sha256(b"two").hexdigest() in edge("GET", f"{base}/f").headers["mirrorkeep-digest"]


def test_names_are_bytes(edge: Edge, base: str) -> None:
    names = [b"a b", b"\xff\xfe", "ä€😀".encode(), b"new\nline", b"per%cent", b"qu'ote\"s&<>", b"#?;="]
    for name in names:
        assert edge("PUT", base.encode() + b"/" + quote_path(name), name).status == 201
    hrefs = properties(edge("PROPFIND", base + "/", Depth="1"))
    for name in names:
        url = base.encode() + b"/" + quote_path(name)
        assert url.decode() in hrefs
        assert edge("GET", url).body == name
    index = edge("GET", base + "/")
    assert index.headers["content-type"].startswith("text/html")
    assert b"per%25cent" in index.body


def test_a_name_over_255_bytes_is_kept(edge: Edge, base: str) -> None:
    name = "n" * 300
    assert edge("PUT", f"{base}/{name}", b"long").status == 201
    assert edge("GET", f"{base}/{name}").body == b"long"
    assert f"{base}/{name}" in properties(edge("PROPFIND", base, Depth="1"))


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=3-", 10, (3, 10)),
        ("bytes=-4", 10, (6, 10)),
        ("bytes=-40", 10, (0, 10)),
        ("bytes=5-99", 10, (5, 10)),
        ("bytes=10-", 10, None),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=5-4", 10, (0, -1)),
        ("bytes=0-1,3-4", 10, (0, -1)),
        ("lines=1-2", 10, (0, -1)),
        ("bytes=-", 10, (0, -1)),
    ],
)
def test_ranges(header: str, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == expected


def test_ranges_and_conditions_on_the_wire(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/r", b"0123456789")
    partial = edge("GET", f"{base}/r", Range="bytes=2-4")
    assert (partial.status, partial.body) == (206, b"234")
    assert partial.headers["content-range"] == "bytes 2-4/10"
    beyond = edge("GET", f"{base}/r", Range="bytes=10-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */10")
    etag = partial.headers["etag"]
    assert edge("GET", f"{base}/r", If_None_Match=etag).status == 304
    assert edge("GET", f"{base}/r", If_None_Match='"x", ' + etag).status == 304
    assert edge("GET", f"{base}/r", Range="bytes=2-4", If_Range='"old"').status == 200
    assert edge("PUT", f"{base}/r", b"x", If_Match='"old"').status == 412
    assert edge("PUT", f"{base}/r", b"x", If_None_Match="*").status == 412
    assert edge("PUT", f"{base}/new", b"x", If_Match="*").status == 412
    assert edge("PUT", f"{base}/r", b"x", If_Match=etag).status == 204
    assert edge("DELETE", f"{base}/r", If_Match=etag).status == 412


def test_downloads_are_packed_for_those_who_ask(edge: Edge, base: str) -> None:
    text = b"line of text\n" * 200_000
    edge("PUT", f"{base}/big.txt", text)
    edge("PUT", f"{base}/big.zip", text)
    packed = edge("GET", f"{base}/big.txt", Accept_Encoding="gzip, deflate")
    assert packed.headers["content-encoding"] == packed.headers["content-transfer-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == text
    plain = edge("GET", f"{base}/big.txt")
    assert plain.body == text and plain.pieces > 2
    assert packed.headers["etag"] != plain.headers["etag"]
    assert edge("GET", f"{base}/big.txt", If_None_Match=packed.headers["etag"]).status == 304
    assert "content-encoding" not in edge("GET", f"{base}/big.zip", Accept_Encoding="gzip").headers
    ranged = edge("GET", f"{base}/big.txt", Accept_Encoding="gzip", Range="bytes=0-9")
    assert (ranged.status, ranged.body) == (206, text[:10])


def test_uploads_are_checked_against_the_senders_digest(edge: Edge, base: str) -> None:
    body = b"unpacked" * 100
    right = "sha256=" + hashlib.sha256(body).hexdigest()
    reply = edge(
        "PUT", f"{base}/g", gzip.compress(body), Content_Transfer_Encoding="gzip", Mirrorkeep_Digest=right
    )
    assert reply.status == 201
    assert edge("GET", f"{base}/g").body == body
    wrong = edge("PUT", f"{base}/g", body[:-1], Mirrorkeep_Digest=right)
    assert (wrong.status, wrong.code) == (422, "digest_mismatch")
    assert edge("PUT", f"{base}/g", body, Mirrorkeep_Digest="md5=00").status == 400
    assert edge("PUT", f"{base}/g", body, Content_Range="bytes 0-1/2").status == 400
    assert edge("GET", f"{base}/g").body == body


def test_an_upload_in_many_pieces(edge: Edge, base: str) -> None:
    pieces = [bytes([n]) * 400_000 for n in range(10)]
    assert edge("PUT", f"{base}/p", pieces).status == 201
    assert edge("GET", f"{base}/p").body == b"".join(pieces)


def test_infinity_is_refused_on_collections_only(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"")
    for headers in ({"Depth": "infinity"}, {}):
        refused = edge("PROPFIND", base, **headers)
        assert refused.status == 403
        assert b"propfind-finite-depth" in refused.body
        assert edge("PROPFIND", f"{base}/f", **headers).status == 207
    assert edge("PROPFIND", "/", Depth="infinity").status == 403
    assert edge("PROPFIND", base, Depth="2").status == 400


def test_a_large_collection_is_streamed(edge: Edge, base: str) -> None:
    tree = edge.store.volume(base.rpartition("/")[2]).plain_tree()
    fields = {
        keys.TYPE: keys.FILE,
        keys.SIZE: b"0",
        keys.MODE: b"100644",
        keys.HASH: hashlib.sha256().hexdigest().encode(),
    }
    frames = [Frame(Op.PUT, format_record(b"e%04d" % n, fields)) for n in range(1500)]
    assert tree.apply(frames) == []
    reply = edge("PROPFIND", base, Depth="1")
    assert reply.pieces > 2
    assert len(properties(reply)) == 1501


@pytest.fixture
def nodes(edge: Edge, base: str) -> Iterator[None]:
    tree = edge.store.volume(base.rpartition("/")[2]).plain_tree()
    link = format_record(b"l", {keys.TYPE: keys.LINK, keys.MODE: b"120777", keys.LINK_TARGET: b"/etc/passwd"})
    fifo = format_record(b"p", {keys.TYPE: keys.FIFO, keys.MODE: b"10644"})
    assert tree.apply([Frame(Op.LINK, link), Frame(Op.NODE, fifo)]) == []
    yield


@pytest.mark.usefixtures("nodes")
def test_links_and_nodes_are_resources_and_never_followed(edge: Edge, base: str) -> None:
    got = edge("GET", f"{base}/l")
    assert (got.body, got.headers["content-type"]) == (b"/etc/passwd", "inode/symlink")
    pipe = edge("GET", f"{base}/p")
    assert (pipe.body, pipe.headers["content-type"]) == (b"", "inode/fifo")
    listed = properties(edge("PROPFIND", base, Depth="1"))
    assert len(list(listed[f"{base}/l"][f"{D}resourcetype"])) == 0
    assert edge("GET", f"{base}/l/passwd").status in (403, 404)
    assert edge("PUT", f"{base}/l/x", b"").status in (403, 409)


def test_quota_is_said_when_asked(edge: Edge, base: str) -> None:
    ask = b'<propfind xmlns="DAV:"><prop><quota-available-bytes/><quota-used-bytes/></prop></propfind>'
    found = properties(edge("PROPFIND", base, ask, Depth="0"))[base + "/"]
    assert int(found[f"{D}quota-available-bytes"].text or 0) > 0
    assert int(found[f"{D}quota-used-bytes"].text or -1) >= 0
    assert f"{D}quota-used-bytes" not in properties(edge("PROPFIND", base, Depth="0"))[base + "/"]


def test_the_way_down_from_the_top(edge: Edge, base: str) -> None:
    assert set(properties(edge("PROPFIND", "/", Depth="1"))) == {"/", "/snapshots/", "/volumes/"}
    assert set(properties(edge("PROPFIND", "/volumes", Depth="1"))) == {"/volumes/", base + "/"}
    assert edge("PUT", "/volumes/x", b"").status == 404
    assert edge("PUT", "/x", b"").status == 404
    assert edge("MKCOL", "/volumes/new").status == 404
    assert edge("GET", "/snapshots/none/").status == 404


def test_dead_properties_survive_a_new_application(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"")
    patch = (
        b'<propertyupdate xmlns="DAV:" xmlns:z="urn:z"><set><prop xml:lang="de">'
        b'<z:note a="1">&lt;<z:b/>x</z:note></prop></set>'
        b"<set><prop><displayname>shown</displayname></prop></set></propertyupdate>"
    )
    assert edge("PROPPATCH", f"{base}/f", patch).status == 207
    etag = edge("GET", f"{base}/f").headers["etag"]
    edge.store.close()
    found = properties(edge("PROPFIND", f"{base}/f", Depth="0"))[f"{base}/f"]
    note = found["{urn:z}note"]
    assert (note.text, note[0].tag, note[0].tail, note.get("a")) == ("<", "{urn:z}b", "x", "1")
    assert note.get("{http://www.w3.org/XML/1998/namespace}lang") == "de"
    assert found[f"{D}displayname"].text == "shown"
    assert edge("GET", f"{base}/f").headers["etag"] == etag
    protected = b'<propertyupdate xmlns="DAV:"><set><prop><getetag>x</getetag></prop></set></propertyupdate>'
    assert b"403" in edge("PROPPATCH", f"{base}/f", protected).body
    big = patch.replace(b"shown", b"x" * 70_000)
    assert edge("PROPPATCH", f"{base}/f", big).status == 507


@pytest.mark.parametrize(
    "body",
    [
        b"<",
        b"<nonsense/>",
        b'<!DOCTYPE x [<!ENTITY e "e">]><propfind xmlns="DAV:"><prop>&e;</prop></propfind>',
        b'<?xml version="1.0" encoding="nonsense"?><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<propfind xmlns="DAV:"><allprop/><propname/></propfind>',
        b'<propfind xmlns="DAV:"/>',
    ],
)
def test_bad_xml_is_a_bad_request(edge: Edge, base: str, body: bytes) -> None:
    assert edge("PROPFIND", base, body, Depth="0").status == 400


def test_deeply_nested_xml_is_refused(edge: Edge, base: str) -> None:
    nested = b"<a>" * 5000 + b"</a>" * 5000
    body = b'<propertyupdate xmlns="DAV:"><set><prop>' + nested + b"</prop></set></propertyupdate>"
    assert edge("PROPPATCH", base, body).status == 400


def test_copy_and_move_stay_inside_their_tree(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/f", b"1")
    edge("MKCOL", f"{base}/d")
    for target, status in (
        (f"{base}/g", 201),
        (f"{base}/g", 204),
        (f"{base}/f", 403),
        (f"{base}/no/where", 409),
        ("/volumes/other/f", 502),
        ("https://elsewhere/volumes/x", 502),
        (f"{base}/../x", 403),
        (f"{base}/.mirrorkeep/../x", 403),
        (f"{base}/.mirrorkeep/x", 409),
        ("", 400),
    ):
        assert edge("COPY", f"{base}/f", Destination=target, Host="h").status == status, target
    assert edge("COPY", f"{base}/f", Destination=f"{base}/g", Overwrite="F").status == 412
    assert edge("MOVE", f"{base}/d", Destination=f"{base}/d/inside").status == 403
    assert edge("MOVE", f"{base}/g", Destination=f"{base}/d/g").status == 201
    assert edge("GET", f"{base}/d/g").body == b"1"
    assert edge("DELETE", base + "/").status == 405


def test_allow_lists_the_extension_verbs(edge: Edge, base: str) -> None:
    reply = edge("OPTIONS", base)
    assert reply.status == 200
    for verb in ("PATCH-APPLY", "BUNDLE-APPLY", "BUNDLE-READ", "PROPFIND", "LOCK"):
        assert verb in reply.headers["allow"]
    assert reply.headers["dav"] == "1, 2"
    assert reply.headers["ms-author-via"] == "DAV"
    refused = edge("BREW", base)
    assert refused.status == 405 and "PUT" in refused.headers["allow"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_links_of_an_index_lead_into_the_folder_with_and_without_a_slash(
    edge: Edge, base: str, slash: str
) -> None:
    folder = f"{base}/a%20b%26'c"
    edge("MKCOL", folder)
    edge("PUT", f"{folder}/f%3F.txt", b"content")
    page = edge("GET", folder + slash).body.decode()
    [link] = re.findall("<td><a href='([^']*)'", page)
    assert edge("GET", urljoin(folder + slash, html.unescape(link))).body == b"content"


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_head_of_an_index_leads_back_up(edge: Edge, base: str, slash: str) -> None:
    edge("MKCOL", f"{base}/a")
    edge("MKCOL", f"{base}/a/b%20&c")
    url = f"{base}/a/b%20&c{slash}"
    page = edge("GET", url).body.decode()
    links = re.findall('<a href="([^"]*)">([^<]*)</a>', page)
    volume = base.rpartition("/")[2]
    assert [(urljoin(url, link), name) for link, name in links] == [
        ("/", "mirrorkeep"),
        ("/volumes/", "volumes"),
        (f"{base}/", volume),
        (f"{base}/a/", "a"),
    ]
    assert f"<title>volumes/{volume}/a/b &amp;c</title>" in page
    for link, _ in links:
        assert edge("GET", urljoin(url, link)).status == 200


def test_an_index_tells_sizes_and_times_and_takes_no_markup_from_names(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/%3Cscript%3E", b"x" * 12345, headers=[(b"x-oc-mtime", b"1700000000")])
    reply = edge("GET", base)
    page = reply.body.decode()
    assert "<script" not in page
    assert "&lt;script&gt;</a><td>12,345<td>2023-11-14 22:13:20" in page
    assert reply.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline';"
    )


def test_a_time_that_no_calendar_has_is_left_out() -> None:
    assert time_text(1_700_000_000_999_999_999) == "2023-11-14 22:13:20"
    assert time_text(-1) == "1969-12-31 23:59:59"
    assert time_text(1 << 100) == time_text(None) == ""


@pytest.mark.parametrize("name", ["page.html", "picture.svg", "text.txt"])
def test_what_was_mirrored_runs_no_script_in_a_browser(edge: Edge, base: str, name: str) -> None:
    """It would run with the rights of whoever looks at it."""
    edge("PUT", f"{base}/{name}", b"<script>fetch('/volumes/')</script>")
    headers = edge("GET", f"{base}/{name}").headers
    assert headers["content-security-policy"].split("; ")[-1] == "sandbox"
    assert headers["x-content-type-options"] == "nosniff"
