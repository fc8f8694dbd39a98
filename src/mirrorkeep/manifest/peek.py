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
_INODE: Final = b"," + keys.INODE + b"="
_HARD_LINK: Final = b"," + keys.HARD_LINK + b"="
_ONE_NAME: Final = b"," + keys.LINKS + b"=1,"
_SIZE_DIGITS: Final = 20
_INODE_DIGITS: Final = 39
"""Of 128 bits, as some file systems of Windows number their files."""


def path_of(line: bytes) -> bytes:
    """Return the path; raises MalformedManifest for escapes that nobody writes."""
    text = line[1:].partition(b",")[0]
    return unescape(text) if b"&" in text else text


def kind_of(line: bytes) -> bytes:
    """Return the entry's type, as in ``keys``; b"" when there is none."""
    return _value(line, _KIND)


def size_of(line: bytes) -> int:
    """Return the apparent size in bytes, 0 when there is none; raises MalformedManifest."""
    return _number(line, _SIZE, _SIZE_DIGITS) if _SIZE in line else 0


def inode_of(line: bytes) -> int:
    """Return the inode's number at the source, -1 when there is none; raises MalformedManifest."""
    return _number(line, _INODE, _INODE_DIGITS) if _INODE in line else -1


def digest_of(line: bytes) -> bytes:
    """Return the content's digest in hex; b"" when there is none."""
    found = _HASH.search(line)
    return found.group(1) if found else b""


def is_hard_link(line: bytes) -> bool:
    """Say whether the entry is a further name of a file that another entry brings."""
    return _HARD_LINK in line


def has_one_name(line: bytes) -> bool:
    """Say whether the entry's inode had no other name at the source, in the tree or outside of it."""
    return _ONE_NAME in line


def _number(line: bytes, start: bytes, most_digits: int) -> int:
    text = _value(line, start)
    if not text.isdigit() or len(text) > most_digits:
        key = start.decode().strip(",=")
        raise MalformedManifest(offset=0, detail=f"{key} of {path_of(line)!r} is not a number")
    return int(text)


def _value(line: bytes, start: bytes) -> bytes:
    at = line.find(start)
    if at < 0:
        return b""
    at += len(start)
    end = line.find(b",", at)
    return line[at:end] if end >= 0 else line[at:]
