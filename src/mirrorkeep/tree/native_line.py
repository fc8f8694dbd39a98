"""The record line of a regular file that was just read: the hot path of every first copy.

Nearly all files are plain: no attributes, no flags, no holes, an ordinary name.  Their line is formatted
directly here, in the order of its keys; every other file goes through ``capture_facts`` and
``format_record``.  Both give the same bytes (a unit test holds them against each other).

Not here: reading (``native``), what the keys mean (``manifest.keys``).  Nothing is changed on disk.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from typing import Any, Final

from mirrorkeep.errors import BadUsage
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import escape, format_record
from mirrorkeep.tree.metadata.flags import read_flags
from mirrorkeep.tree.metadata.posix import capture_facts, group_name, user_name
from mirrorkeep.tree.metadata.statx import HAS_BIRTH_TIME, Facts

_LISTS_ATTRIBUTES: Final = hasattr(os, "listxattr")
DIGESTS: Final = ("sha256", "sha1", "blake3")


def digest_maker(name: str) -> Callable[..., Any]:
    """Return the constructor of a digest; BadUsage for one that records do not know."""
    if name == "sha256":
        return hashlib.sha256
    if name == "sha1":
        return lambda data=b"": hashlib.sha1(data, usedforsecurity=False)
    if name == "blake3":
        from blake3 import blake3

        return blake3
    raise BadUsage(detail=f"unknown digest {name}; one of {', '.join(DIGESTS)}")


class LineMaker:
    """Formats record lines of files whose digest is made with ``digest``; safe between threads."""

    __slots__ = ("_name",)

    def __init__(self, digest: str) -> None:
        self._name = digest

    def file(self, path: bytes, fd: int, dir_fd: int, name: bytes, facts: Facts, digest: str) -> bytes:
        """Return the line of the open regular file ``fd`` with content digest ``digest`` (hex)."""
        mask, nlink, uid, gid, mode, ino, size, blocks, a_s, a_n, b_s, b_n, c_s, c_n, m_s, m_n = facts[:16]
        plain = (
            _LISTS_ATTRIBUTES
            and blocks * 512 >= size
            and mask & HAS_BIRTH_TIME
            and (a_s | b_s | c_s | m_s) >= 0
            and self._name != "blake3"
            and not os.listxattr(fd)
            and not read_flags(fd)
        )
        if not plain:
            return self.unusual_file(path, fd, dir_fd, name, facts, digest)
        text = (
            f"{_owners(uid, gid)[0]},hash={digest},inode_ctime={c_s}{_fraction(c_n)}"
            f",st_atime={a_s}{_fraction(a_n)},st_ctime={b_s}{_fraction(b_n)},st_gid={gid},st_ino={ino}"
            f",st_mode={mode:o},st_mtime={m_s}{_fraction(m_n)},st_nlink={nlink},st_size={size}"
            f",st_uid={uid},type=file{_owners(uid, gid)[1]},_internal_record_crc="
        )
        line = b"=" + escape(path) + text.encode("latin-1")
        return b"%b%08x" % (line, zlib.crc32(b"00000000", zlib.crc32(line)))

    def unusual_file(
        self, path: bytes, fd: int, dir_fd: int, name: bytes, facts: Facts, digest: str
    ) -> bytes:
        """Return the same line by way of the field dictionary; for files with anything unusual."""
        fields = capture_facts(fd, dir_fd, name, facts)
        fields[keys.HASH] = digest.encode()
        if self._name == "blake3":
            fields[keys.HASH_NAME] = b"blake3"
        return format_record(path, fields)


def _fraction(ns: int) -> str:
    return f".{ns:09d}".rstrip("0") if ns else ""


_owner_texts: dict[tuple[int, int], tuple[str, str]] = {}


def _owners(uid: int, gid: int) -> tuple[str, str]:
    """Return ``,gname=...`` and ``,uname=...`` as escaped text, each empty when there is no name."""
    texts = _owner_texts.get((uid, gid))
    if texts is None:
        group, user = escape(group_name(gid)).decode("latin-1"), escape(user_name(uid)).decode("latin-1")
        texts = (f",gname={group}" if group else "", f",uname={user}" if user else "")
        if len(_owner_texts) < 4096:
            _owner_texts[uid, gid] = texts
    return texts
