"""What Windows' mini-redirector and macOS' webdavfs send when a person maps a drive (TX-03, REC-06).

Neither system takes part: the requests are those that the clients are known to send, in their order, with
their headers and bodies, and what is asserted is what they need in order to go on.
"""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from email.utils import parsedate_to_datetime

import pytest

from .conftest import Edge, Reply
from .test_runs import Run, put_frame

D = "{DAV:}"
HOST = "backup.example.net"
EXPLORER = "Microsoft-WebDAV-MiniRedir/10.0.19045"
FINDER = "WebDAVFS/3.0.0 (03008000) Darwin/22.6.0 (x86_64)"
WINDOWS_TIMES = (
    "Win32CreationTime",
    "Win32LastAccessTime",
    "Win32LastModifiedTime",
    "Win32FileAttributes",
)


class Desktop:
    """Sends what a desktop client sends with every request: its name, its host, Basic credentials."""

    def __init__(self, edge: Edge, agent: str) -> None:
        self.edge = edge
        login = base64.b64encode(f"token:{edge.token}".encode()).decode()
        self.always = {"User_Agent": agent, "Host": HOST, "Authorization": f"Basic {login}"}

    def __call__(self, method: str, url: str, body: bytes | list[bytes] = b"", **headers: str) -> Reply:
        return self.edge(method, url, body, anonymous=True, **self.always, **headers)

    def found(
        self, url: str, body: bytes = b"", depth: str = "0", **headers: str
    ) -> dict[str, dict[str, str]]:
        """Return href -> property -> text of what a PROPFIND found, as its client reads the answer."""
        reply = self("PROPFIND", url, body, Depth=depth, **headers)
        assert reply.status == 207, reply.body
        answer: dict[str, dict[str, str]] = {}
        for response in ET.fromstring(reply.body):
            properties = answer.setdefault(response.findtext(f"{D}href") or "", {})
            for stat in response.iter(f"{D}propstat"):
                if " 200 " in f"{stat.findtext(f'{D}status')} ":
                    for one in stat.find(f"{D}prop") or ():
                        kind = "collection" if one.find(f"{D}collection") is not None else one.text or ""
                        properties[one.tag.removeprefix(D)] = kind
        return answer


# --- Windows Explorer ---------------------------------------------------------------------------------

WINDOWS_LOCK = (
    b'<?xml version="1.0" encoding="utf-8" ?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/>'
    b"</D:lockscope><D:locktype><D:write/></D:locktype><D:owner><D:href>OFFICE\\anna</D:href></D:owner>"
    b"</D:lockinfo>"
)


def windows_times(**values: str) -> bytes:
    """Return the PROPPATCH with which the redirector keeps what a file of Windows has besides its content."""
    set_ = "".join(f"<Z:{name}>{value}</Z:{name}>" for name, value in values.items())
    return (
        '<?xml version="1.0" encoding="utf-8" ?><D:propertyupdate xmlns:D="DAV:" '
        f'xmlns:Z="urn:schemas-microsoft-com:"><D:set><D:prop>{set_}</D:prop></D:set></D:propertyupdate>'
    ).encode()


@pytest.fixture
def explorer(edge: Edge) -> Desktop:
    return Desktop(edge, EXPLORER)


def test_windows_finds_a_server_that_it_takes_for_a_drive(edge: Edge, base: str, explorer: Desktop) -> None:
    """First without credentials: the root must say that it speaks WebDAV, all else which login it wants."""
    greeted = edge("OPTIONS", "/", anonymous=True, User_Agent=EXPLORER, Host=HOST, translate="f")
    assert greeted.status == 200
    assert greeted.headers["ms-author-via"] == "DAV"
    assert {"1", "2"} <= {level.strip() for level in greeted.headers["dav"].split(",")}
    assert "PROPFIND" in greeted.headers["allow"] and "LOCK" in greeted.headers["allow"]
    refused = edge("PROPFIND", base, anonymous=True, User_Agent=EXPLORER, Host=HOST, Depth="0", translate="f")
    assert refused.status == 401
    challenges = [value for name, value in refused.all_headers if name == b"www-authenticate"]
    assert any(one.startswith(b'Basic realm="') for one in challenges)
    assert explorer("OPTIONS", base, translate="f").headers["ms-author-via"] == "DAV"
    # The redirector walks down from the top before it shows the drive.
    for url in ("/", "/volumes", base):
        assert "collection" in explorer.found(url, translate="f")[url.rstrip("/") + "/"]["resourcetype"]


def test_windows_lists_a_folder(base: str, explorer: Desktop) -> None:
    explorer("MKCOL", f"{base}/New%20folder", translate="f")
    explorer("PUT", f"{base}/%C3%9Cbersicht%20%26%20Plan.docx", b"office", translate="f")
    listed = explorer.found(base, depth="1", translate="f")
    folder, file = listed[f"{base}/New%20folder/"], listed[f"{base}/%C3%9Cbersicht%20&%20Plan.docx"]
    assert (folder["resourcetype"], folder["displayname"]) == ("collection", "New folder")
    assert (file["resourcetype"], file["getcontentlength"]) == ("", "6")
    for one in (folder, file):
        parsedate_to_datetime(one["getlastmodified"])
        assert one["creationdate"].endswith("Z")
    assert file["getcontenttype"].startswith("application/")
    assert explorer("PROPFIND", f"{base}/desktop.ini", Depth="0", translate="f").status == 404
    assert explorer("PROPFIND", f"{base}/New%20folder/Thumbs.db", Depth="0", translate="f").status == 404


def test_windows_saves_a_file_between_lock_and_unlock(base: str, explorer: Desktop) -> None:
    """Created empty, locked, its times noted, written, noted again, unlocked: Explorer's copy of one file."""
    url = f"{base}/report.docx"
    assert explorer("PROPFIND", url, Depth="0", translate="f").status == 404
    assert explorer("PUT", url, translate="f", Content_Length="0").status == 201
    locked = explorer(
        "LOCK",
        url,
        WINDOWS_LOCK,
        translate="f",
        Timeout="Second-3600",
        Content_Type='text/xml; charset="utf-8"',
    )
    assert locked.status == 200
    token = locked.headers["lock-token"].strip("<>")
    assert token.startswith(("opaquelocktoken:", "urn:uuid:"))
    discovered = ET.fromstring(locked.body)
    assert discovered.findtext(f".//{D}owner/{D}href") == "OFFICE\\anna"
    assert discovered.findtext(f".//{D}locktoken/{D}href") == token
    assert discovered.findtext(f".//{D}timeout") == "Second-3600"
    held = {"If": f"(<{token}>)", "translate": "f"}
    times = dict.fromkeys(WINDOWS_TIMES[:3], "Tue, 24 Nov 2026 10:00:00 GMT") | {WINDOWS_TIMES[3]: "00000020"}
    assert explorer("PROPPATCH", url, windows_times(**times), **held).status == 207
    assert explorer("HEAD", url, translate="f").headers["content-length"] == "0"
    assert explorer("PUT", url, b"the whole report", **held).status == 204
    assert explorer("PUT", url, b"of somebody else", translate="f").status == 423
    assert explorer("PROPPATCH", url, windows_times(Win32FileAttributes="00000021"), **held).status == 207
    refreshed = explorer("LOCK", url, If=f"(<{token}>)", Timeout="Second-3600", translate="f")
    assert refreshed.status == 200 and token in refreshed.body.decode()
    assert explorer("UNLOCK", url, Lock_Token=f"<{token}>", translate="f").status == 204
    assert explorer("GET", url, translate="f").body == b"the whole report"
    kept = explorer.found(url, translate="f")[url]
    windows = {name: kept[f"{{urn:schemas-microsoft-com:}}{name}"] for name in WINDOWS_TIMES}
    assert windows == times | {"Win32FileAttributes": "00000021"}


def test_windows_renames_and_deletes(base: str, explorer: Desktop) -> None:
    explorer("MKCOL", f"{base}/New%20folder", translate="f")
    explorer("PUT", f"{base}/New%20folder/a.txt", b"a", translate="f")
    to = {"Destination": f"https://{HOST}{base}/Letters%202026", "Overwrite": "F", "translate": "f"}
    assert explorer("MOVE", f"{base}/New%20folder", **to).status == 201
    assert explorer("GET", f"{base}/Letters%202026/a.txt", translate="f").body == b"a"
    explorer("MKCOL", f"{base}/New%20folder", translate="f")
    assert explorer("MOVE", f"{base}/New%20folder", **to).status == 412
    assert explorer("DELETE", f"{base}/Letters%202026", translate="f").status == 204
    assert explorer("PROPFIND", f"{base}/Letters%202026", Depth="0", translate="f").status == 404


# --- old versions (REC-06, REC-07) ----------------------------------------------------------------------


@pytest.fixture
def versions(edge: Edge, base: str) -> list[str]:
    """Two snapshots of the volume: their URLs, the older one first."""
    volume = base.rpartition("/")[2]
    for content in (b"of Monday", b"of Tuesday"):
        run = Run(edge, volume)
        frame = put_frame(b"file.txt", content)
        assert run.bundle(frame).status == 200
        assert run.close(frame.line).status == 200
    rows = edge("GET", f"/api/v1/volumes/{volume}/snapshots").json()["snapshots"]
    return [f"/snapshots/{row['name']}/{volume}" for row in rows]


@pytest.mark.parametrize("agent", [EXPLORER, FINDER])
def test_a_person_browses_to_any_version_and_can_only_read_it(
    edge: Edge, versions: list[str], agent: str
) -> None:
    desktop = Desktop(edge, agent)
    tops = desktop.found("/snapshots", depth="1")
    assert {f"/snapshots/{url.split('/')[2]}/" for url in versions} <= set(tops)
    for url, content in zip(versions, (b"of Monday", b"of Tuesday"), strict=True):
        folder = url.rpartition("/")[0]
        assert f"{url}/" in desktop.found(f"{folder}/", depth="1")
        listed = desktop.found(f"{url}/", FINDER_FIND, depth="1", **XML)
        assert set(listed) == {f"{url}/", f"{url}/file.txt"}
        assert desktop("GET", f"{url}/file.txt", translate="f").body == content
        assert desktop("GET", f"{url}/file.txt", Range="bytes=3-").body == content[3:]
        for method, name, body in (
            ("PUT", "file.txt", b"changed"),
            ("PUT", "._file.txt", b""),
            ("LOCK", "file.txt", WINDOWS_LOCK),
            ("PROPPATCH", "file.txt", windows_times(Win32FileAttributes="00000020")),
            ("DELETE", "file.txt", b""),
            ("MKCOL", "New%20folder", b""),
        ):
            assert desktop(method, f"{url}/{name}", body).status == 403, method
        assert desktop("GET", f"{url}/file.txt").body == content


# --- macOS Finder -------------------------------------------------------------------------------------

FINDER_FIND = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:propfind xmlns:D="DAV:">\n<D:prop>\n<D:getlastmodified/>\n'
    b"<D:getcontentlength/>\n<D:creationdate/>\n<D:resourcetype/>\n</D:prop>\n</D:propfind>\n"
)
FINDER_QUOTA = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:propfind xmlns:D="DAV:">\n<D:prop>\n'
    b"<D:quota-available-bytes/>\n<D:quota-used-bytes/>\n<D:quota/>\n<D:quotaused/>\n</D:prop>\n</D:propfind>\n"
)
FINDER_LOCK = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:lockinfo xmlns:D="DAV:">\n'
    b"<D:lockscope><D:exclusive/></D:lockscope>\n<D:locktype><D:write/></D:locktype>\n<D:owner>\n"
    b"<D:href>http://www.apple.com/webdav_fs/</D:href>\n</D:owner>\n</D:lockinfo>\n"
)
XML = {"Content_Type": "text/xml", "Accept": "*/*"}


@pytest.fixture
def finder(edge: Edge) -> Desktop:
    return Desktop(edge, FINDER)


def save_with_finder(finder: Desktop, url: str, body: bytes) -> None:
    """Do what webdavfs does for one new file: an empty PUT, a lock, the content under it, unlock."""
    assert finder("PROPFIND", url, FINDER_FIND, Depth="0", **XML).status == 404
    assert finder("PUT", url, Content_Length="0").status == 201
    locked = finder("LOCK", url, FINDER_LOCK, Depth="0", Timeout="Second-600", **XML)
    assert locked.status == 200
    token = ET.fromstring(locked.body).findtext(f".//{D}locktoken/{D}href")
    held = f"(<{token}>)"
    chunked = {"Transfer_Encoding": "chunked", "X_Expected_Entity_Length": str(len(body))}
    put = finder("PUT", url, [body[:7], body[7:]], If=held, **chunked)
    assert put.status == 204
    assert finder("LOCK", url, If=held, Depth="0", Timeout="Second-600").status == 200
    assert finder("UNLOCK", url, Lock_Token=f"<{token}>").status == 204


def test_finder_mounts_a_volume_for_writing(base: str, finder: Desktop) -> None:
    """Without class 2 in the answer to OPTIONS it would mount it read-only."""
    options = finder("OPTIONS", f"{base}/", Accept="*/*")
    assert options.status == 200
    assert "2" in {level.strip() for level in options.headers["dav"].split(",")}
    root = finder.found(f"{base}/", FINDER_FIND, **XML)[f"{base}/"]
    assert root["resourcetype"] == "collection"
    parsedate_to_datetime(root["getlastmodified"])
    room = finder.found(f"{base}/", FINDER_QUOTA, **XML)[f"{base}/"]
    assert int(room["quota-available-bytes"]) > 0
    assert "quota" not in room and "quotaused" not in room
    assert "quota-used-bytes" in room


def test_finder_saves_a_file_with_its_shadow_and_its_folder_notes(base: str, finder: Desktop) -> None:
    """``._NAME`` (the resource fork) and ``.DS_Store`` are files like any other: kept, listed, removed."""
    double = bytes.fromhex("00051607") + bytes(78)
    for name, body in (
        ("Foto.jpg", b"the picture itself"),
        ("._Foto.jpg", double),
        (".DS_Store", b"\0\0\0\1Bud1"),
    ):
        save_with_finder(finder, f"{base}/{name}", body)
        assert finder("GET", f"{base}/{name}", Accept="*/*").body == body
    listed = finder.found(f"{base}/", FINDER_FIND, depth="1", **XML)
    assert set(listed) == {f"{base}/", f"{base}/Foto.jpg", f"{base}/._Foto.jpg", f"{base}/.DS_Store"}
    assert listed[f"{base}/._Foto.jpg"]["getcontentlength"] == str(len(double))
    for name in (".hidden", ".Spotlight-V100", ".metadata_never_index", "._.", "Contents"):
        assert finder("PROPFIND", f"{base}/{name}", FINDER_FIND, Depth="0", **XML).status == 404
    for name in ("._Foto.jpg", "Foto.jpg"):
        assert finder("DELETE", f"{base}/{name}", Accept="*/*").status == 204
    assert set(finder.found(f"{base}/", FINDER_FIND, depth="1", **XML)) == {f"{base}/", f"{base}/.DS_Store"}


def test_finder_replaces_a_file_through_a_temporary_one(base: str, finder: Desktop) -> None:
    """An application on the Mac saves beside the document and moves the new one over the old one."""
    save_with_finder(finder, f"{base}/letter.txt", b"the first version")
    assert finder("MKCOL", f"{base}/.TemporaryItems").status == 201
    save_with_finder(finder, f"{base}/.TemporaryItems/letter.txt.sb-1234", b"the second version")
    moved = finder(
        "MOVE",
        f"{base}/.TemporaryItems/letter.txt.sb-1234",
        Destination=f"https://{HOST}{base}/letter.txt",
        Overwrite="T",
    )
    assert moved.status == 204
    assert finder("GET", f"{base}/letter.txt").body == b"the second version"


def test_finder_names_are_decomposed_and_stay_so(base: str, finder: Desktop) -> None:
    """macOS spells an umlaut as two characters; the name must come back as it was spelt."""
    name = "U%CC%88bersicht.txt"
    save_with_finder(finder, f"{base}/{name}", b"decomposed")
    assert f"{base}/{name}" in finder.found(f"{base}/", FINDER_FIND, depth="1", **XML)
    assert finder("GET", f"{base}/%C3%9Cbersicht.txt").status == 404
