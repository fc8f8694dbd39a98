"""Tags and classifications of documents: kept beside the file, whatever they are called (META-01)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.tree.protocol import Frame, Op

from .conftest import Edge
from .test_dav import properties
from .test_runs import Run

TAGGING = (
    b'<propertyupdate xmlns="DAV:" xmlns:c="urn:example:classification" xmlns:t="urn:example:tags"><set>'
    b"<prop>"
    b"<c:level>confidential</c:level><c:until>2031-12-31</c:until>"
    b"<t:tags><t:tag>contract</t:tag><t:tag>\xc3\x9cbersicht</t:tag></t:tags>"
    b"</prop></set></propertyupdate>"
)
LEVEL, TAGS = "{urn:example:classification}level", "{urn:example:tags}tags"
LONG_NAME = b"n" * 400


def tags_at(edge: Edge, url: str) -> tuple[str | None, list[str | None]]:
    found = properties(edge("PROPFIND", url, Depth="0"))[url]
    if TAGS not in found:
        return None, []
    return found[LEVEL].text, [tag.text for tag in found[TAGS]]


def test_tags_that_a_person_sets_go_where_the_document_goes(edge: Edge, base: str) -> None:
    """Over a copy, a rename, a new content and the end of the server's process; a name of 400 bytes too."""
    tagged = ("confidential", ["contract", "Übersicht"])
    for name in ("plan.odt", LONG_NAME.decode()):
        url = f"{base}/{name}"
        edge("PUT", url, b"the plan")
        assert edge("PROPPATCH", url, TAGGING).status == 207
        assert edge("PUT", url, b"the plan, revised").status == 204
        assert tags_at(edge, url) == tagged
        edge("MKCOL", f"{base}/{name[:8]}-folder")
        for method, goal in (("COPY", "copy"), ("MOVE", "moved")):
            goal = f"{base}/{name[:8]}-folder/{goal}"
            assert edge(method, url, Destination=goal, Host="h").status == 201
            assert tags_at(edge, goal) == tagged
        edge("PUT", url, b"another document of that name")
        assert tags_at(edge, url) == (None, [])
    edge.store.close()
    assert tags_at(edge, f"{base}/plan.odt-folder/moved") == tagged


def test_tags_that_a_record_carries_are_kept_with_the_file_and_frozen_with_it(
    edge: Edge, base: str, tmp_path: Path
) -> None:
    """Any key at all, also what no file system can hold: an SDDL, classifications, tags of any system."""
    volume = base.rpartition("/")[2]
    extra = {
        keys.SDDL: b"O:BAG:SYD:(A;;FA;;;SY)(A;;FR;;;S-1-5-21-1-2-3-1001)",
        b"classification": b"confidential; until=2031-12-31, by=<anna>&\n",
        keys.XATTR_PREFIX + b"user.xdg.tags": b"contract,\xc3\x9cbersicht",
        keys.XATTR_PREFIX + b"com.apple.metadata:_kMDItemUserTags": bytes(range(256)),
    }
    content = b"the plan"
    fields = {
        keys.TYPE: keys.FILE,
        keys.SIZE: b"%d" % len(content),
        keys.MTIME: b"1700000000.5",
        keys.MODE: b"100644",
        keys.HASH: hashlib.sha256(content).hexdigest().encode(),
    }
    run = Run(edge, volume)
    lines = [format_record(name, fields | extra) for name in sorted((LONG_NAME, b"plan.odt"))]
    root = format_record(b"", {keys.TYPE: keys.DIRECTORY, keys.MODE: b"40755", keys.MTIME: b"1700000000"})
    frames = [Frame(Op.PUT, line, content) for line in lines] + [Frame(Op.STAMP, root)]
    assert run.bundle(*frames).json()["failed"] == []
    closed = run.close(*lines, root).json()
    edge.store.close()
    for asked in ("actual", closed["snapshot"]):
        body = edge("GET", f"/api/v1/volumes/{volume}/manifest?snapshot={asked}").body
        (tmp_path / asked).write_bytes(body)
        with (tmp_path / asked).open("rb") as stream:
            records = {record.path: record.fields for record in ManifestReader(stream)}
        for line in lines:
            kept = records[parse_record(line).path]
            assert {key: kept.get(key) for key in extra} == extra
