"""What a line says of its entry, without parsing all of it: for passes that only sort and count.

A comma or an equals sign inside a name or value is escaped, so that ``,key=`` stands in a line where that
key begins and nowhere else.  These functions believe the line: they are for lines whose CRC, or whose file's
hashes, were checked, and whoever acts on an entry parses its record (``record.parse_record``), which
refuses what is malformed.

Pure functions.
"""

from __future__ import annotations

import re
from typing import Final

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import unescape

_KIND: Final = b"," + keys.TYPE + b"="
_SIZE: Final = b"," + keys.SIZE + b"="
_HASH: Final = re.compile(rb",hash=([0-9a-f]+),")
_HARD_LINK: Final = b"," + keys.HARD_LINK + b"="
_MOST_DIGITS: Final = 20


def path_of(line: bytes) -> bytes:
    """Return the path; raises MalformedManifest for escapes that nobody writes."""
    text = line[1 : line.find(b",")]
    return unescape(text) if b"&" in text else text


def kind_of(line: bytes) -> bytes:
    """Return the entry's type, as in ``keys``; b"" when there is none."""
    return _value(line, _KIND)


def size_of(line: bytes) -> int:
    """Return the apparent size in bytes, 0 when there is none; raises MalformedManifest."""
    if _SIZE not in line:
        return 0
    text = _value(line, _SIZE)
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise MalformedManifest(offset=0, detail=f"{keys.SIZE.decode()} of {path_of(line)!r} is not a number")
    return int(text)


def digest_of(line: bytes) -> bytes:
    """Return the content's digest in hex; b"" when there is none."""
    found = _HASH.search(line)
    return found.group(1) if found else b""


def is_hard_link(line: bytes) -> bool:
    """Say whether the entry is a further name of a file that another entry brings."""
    return _HARD_LINK in line


def _value(line: bytes, start: bytes) -> bytes:
    at = line.find(start)
    if at < 0:
        return b""
    at += len(start)
    end = line.find(b",", at)
    return line[at:end] if end >= 0 else line[at:]
