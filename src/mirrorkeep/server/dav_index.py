"""The page that a browser shows of a collection: names with their sizes and times, and the way back up.

For people; machines use PROPFIND.  The page is streamed, so that a collection of any size takes no memory,
and all its links are relative, so that it works behind a proxy that puts something in front of the path.

Not here: which names there are (``dav``, ``virtual``).  Nothing is changed.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from mirrorkeep.server.address import quote_path
from mirrorkeep.server.call import Call
from mirrorkeep.server.response import Response

_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}"
    "h1{font-size:1.2em;font-weight:600;overflow-wrap:anywhere}"
    "table{border-collapse:collapse;width:100%}"
    "th{text-align:left;color:#666;font-weight:400;border-bottom:1px solid #ccc}"
    "td,th{padding:.2em 1em .2em 0}tr:hover td{background:#f3f6f5}"
    "td:first-child{overflow-wrap:anywhere;width:100%}"
    "td+td,th+th{white-space:nowrap;text-align:right;font-variant-numeric:tabular-nums}"
    "a{color:#00695c;text-decoration:none}a:hover{text-decoration:underline}"
)
_PIECE_CHARACTERS: Final = 65536


class Row(NamedTuple):
    """One name of a collection; ``size`` in bytes and ``mtime_ns`` where there is such a thing."""

    name: bytes
    collection: bool
    size: int | None = None
    mtime_ns: int | None = None


def index_page(call: Call, rows: Iterable[Row]) -> Response:
    """Answer with the page of the collection at the call's address."""
    response = Response(200, list(_HEADERS), compressible=True)
    response.stream = _pieces(call.request.raw_path, rows)
    return response


def _pieces(raw_path: bytes, rows: Iterable[Row]) -> Iterator[bytes]:
    names = [name for name in raw_path.split(b"/") if name]
    # A browser takes the last name of a URL without a slash for a file's: the links begin with it then.
    slash = not names or raw_path.endswith(b"/")
    stem = "" if slash else _escaped(names[-1]) + "/"
    here = html.escape(_shown(b"/".join(names)) or "/")
    parts = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{here}</title><style>{_STYLE}</style><h1>{_way(names, slash)}</h1>"
        "<table><tr><th>Name<th>Bytes<th>Changed (UTC)\n"
    ]
    length = 0
    for row in rows:
        parts.append(_line(stem, row))
        length += len(parts[-1])
        if length > _PIECE_CHARACTERS:
            yield "".join(parts).encode("utf-8", "replace")
            parts, length = [], 0
    parts.append("</table>\n")
    yield "".join(parts).encode("utf-8", "replace")


def _way(names: list[bytes], slash: bool) -> str:
    """Return the way down to the collection, each part a link to it."""
    up = len(names) - (not slash)
    shown = [f'<a href="{"../" * up or "./"}">mirrorkeep</a>']
    for number, name in enumerate(names[:-1], 1):
        shown.append(f'<a href="{"../" * (up - number) or "./"}">{html.escape(_shown(name))}</a>')
    shown += [html.escape(_shown(name)) for name in names[-1:]]
    return " / ".join(shown)


def _line(stem: str, row: Row) -> str:
    slash = "/" if row.collection else ""
    name = html.escape(row.name.decode("utf-8", "replace"))
    size = "" if row.size is None else f"{row.size:,}"
    return (
        f"<tr><td><a href='./{stem}{_escaped(quote_path(row.name))}{slash}'>{name}{slash}</a>"
        f"<td>{size}<td>{time_text(row.mtime_ns)}\n"
    )


def time_text(mtime_ns: int | None) -> str:
    """Return a time as the page shows it, in UTC; nothing for none, and for what no calendar has."""
    if mtime_ns is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns // 1_000_000_000))
    except (OverflowError, OSError, ValueError):
        return ""


def _shown(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _escaped(href: bytes) -> str:
    return href.decode("ascii", "replace").replace("&", "&amp;").replace("'", "%27")
