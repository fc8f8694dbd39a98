"""Signatures: the block sums of a file's last uploaded state, in librsync's rk-blake2 format.

A signature is a head (magic, block length, strong length) and, for each block of the base, a rolling
weak sum and the first bytes of its BLAKE2b.  ``rdiff`` reads what is made here, and what ``rdiff``
makes is read here.  A signature is a *hint*: everything found with it is proven by the digest of the
published file, so a wrong one costs bytes and never data (DEL-13).

Not here: where signatures are kept (``cache.py``), what is found with them (``difference.py``).

Nothing here writes; a crash leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from mirrorkeep.delta.librsync import RK_BLAKE2_MAGIC, Signing, SumSet
from mirrorkeep.errors import MalformedSignature, SourceChanged

MIN_BLOCK_BYTES: Final = 4096
STRONG_BYTES: Final = 16
MAX_SIGNATURE_BYTES: Final = 16 * 1024 * 1024
"""A signature that we make is smaller than this, whatever the size of the file."""
GROUP_BLOCKS: Final = 16
GROUP_SUM_BYTES: Final = 16

_HEAD: Final = struct.Struct(">III")
_WEAK_BYTES: Final = 4
_ROLLSUM_BLAKE2_MAGIC: Final = 0x72730137
_MD4_MAGICS: Final = frozenset({0x72730136, 0x72730146})
_LARGEST_BLOCK_BYTES: Final = 256 * 1024 * 1024
"""What :func:`choose_block_bytes` says up to 200 TB; a larger file is sent whole when it changes."""
_SMALLEST_BLOCK_BYTES: Final = 256
"""Smaller blocks, which no tool makes by itself, would cost more than they save."""
_LEAST_STRONG_BYTES: Final = 8
_MOST_STRONG_BYTES: Final = 32
_MOST_BYTES: Final = 256 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
_STRIPE_BYTES: Final = 64 * 1024 * 1024
_LONGEST_TAIL_SEARCH_BYTES: Final = 256 * 1024
_RABINKARP_MULTIPLIER: Final = 0x08104225


def choose_block_bytes(size_bytes: int) -> int:
    """Return the block length for a file: 4096, doubled until the signature stays below 16 MiB."""
    block_bytes = MIN_BLOCK_BYTES
    room = (MAX_SIGNATURE_BYTES - 1 - _HEAD.size) // (_WEAK_BYTES + STRONG_BYTES)
    while -(-size_bytes // block_bytes) > room:
        block_bytes *= 2
    return block_bytes


def make_signature(fd: int, size_bytes: int) -> bytes:
    """Return the signature file of the first ``size_bytes`` of ``fd``; see :func:`sign_file`."""
    return sign_file(fd, size_bytes).signature


@dataclass(frozen=True, slots=True)
class SignedFile:
    """The signature of a file, and its outline: 16 bytes of BLAKE3 for each whole group of 16 blocks.

    The outline is ours alone and optional: what did not change is recognised by it five times faster.
    """

    signature: bytes
    outline: bytes
    size_bytes: int


def sign_file(fd: int, size_bytes: int, *, block_bytes: int | None = None, workers: int = 2) -> SignedFile:
    """Read the first ``size_bytes`` of ``fd`` once, by position, and return signature and outline.

    Stripes of about 64 MiB are signed by ``workers`` threads; memory is the result, and a chunk of 1 MiB and
    a block a worker.  Raises SourceChanged when the file is shorter, EngineMissing, OSError.
    """
    block = block_bytes or choose_block_bytes(size_bytes)
    group = block * GROUP_BLOCKS
    stripe = max(_STRIPE_BYTES // group, 1) * group

    def sign(start: int) -> tuple[bytes, bytes]:
        return _sign_range(fd, start, min(start + stripe, size_bytes), block)

    if size_bytes <= stripe or workers < 2:
        signature, outline = _sign_range(fd, 0, size_bytes, block)
        return SignedFile(signature, outline, size_bytes)
    with ThreadPoolExecutor(workers, thread_name_prefix="sign") as pool:
        parts = list(pool.map(sign, range(0, size_bytes, stripe)))
    sums = b"".join(signature[_HEAD.size :] for signature, _ in parts)
    return SignedFile(parts[0][0][: _HEAD.size] + sums, b"".join(outline for _, outline in parts), size_bytes)


def sign_range(fd: int, start: int, end: int, block_bytes: int) -> bytes:
    """Return the signature file of bytes ``start`` (on a block's border) to ``end`` of ``fd``.

    Pieces that adjoin make the whole file's signature when all but the first lose their head.  Raises
    SourceChanged when the file is shorter, EngineMissing, OSError.
    """
    return _sign_range(fd, start, end, block_bytes)[0]


def _sign_range(fd: int, start: int, end: int, block_bytes: int) -> tuple[bytes, bytes]:
    """Return signature and outline of bytes ``start`` (on a group's border) to ``end``."""
    chunk = bytearray(_CHUNK_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
    view, outline = memoryview(chunk), _Outline(block_bytes * GROUP_BLOCKS)
    with Signing(block_bytes, STRONG_BYTES) as signing:
        for position in range(start, end, len(chunk)):
            piece = view[: min(len(chunk), end - position)]
            _read_exactly(fd, piece, position)
            signing.add(address, len(piece))
            outline.add(piece)
        return signing.finish(), b"".join(outline.sums)


class _Outline:
    """The sums of whole groups of blocks, from pieces of any length: a group may be larger than memory."""

    def __init__(self, group_bytes: int) -> None:
        self.sums: list[bytes] = []
        self._group_bytes = self._left_bytes = group_bytes
        self._hasher = blake3()

    def add(self, piece: memoryview) -> None:
        while piece:
            part, piece = piece[: self._left_bytes], piece[self._left_bytes :]
            self._hasher.update(part)
            self._left_bytes -= len(part)
            if not self._left_bytes:
                self.sums.append(self._hasher.digest(GROUP_SUM_BYTES))
                self._hasher, self._left_bytes = blake3(), self._group_bytes


def _read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` of ``fd``; raises SourceChanged when the file ends before."""
    while view:
        got = os.preadv(fd, [view], offset)
        if not got:
            raise SourceChanged(path="the file being compared")
        view, offset = view[got:], offset + got


class Signature:
    """A checked signature, ready for several threads.

    ``base_bytes`` is the size of the base where it is known (told by the caller, or learned when the
    short last block was recognised), else None; ``least_base_bytes`` and ``most_base_bytes`` bound it.
    """

    __slots__ = (
        "_lock",
        "_sums",
        "base_bytes",
        "block_bytes",
        "blocks",
        "data",
        "first_strong",
        "groups",
        "outline",
        "stride",
        "strong_bytes",
        "weak_is_rabinkarp",
    )

    def __init__(self, data: bytes, magic: int, block_bytes: int, strong_bytes: int, blocks: int) -> None:
        self.data = data
        self.block_bytes = block_bytes
        self.strong_bytes = strong_bytes
        self.blocks = blocks
        self.stride = _WEAK_BYTES + strong_bytes
        self.first_strong = _HEAD.size + _WEAK_BYTES
        self.weak_is_rabinkarp = magic == RK_BLAKE2_MAGIC
        self.base_bytes: int | None = None if blocks else 0
        self.outline = b""
        self.groups = 0
        self._sums: SumSet | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(cls, data: bytes, *, base_bytes: int | None = None, outline: bytes = b"") -> Signature:
        """Check ``data`` and return the signature; nothing of it has reached C yet.

        ``base_bytes``, where the caller knows the size of the base, must fit the number of blocks, and
        so must an ``outline`` (of the same base, from :func:`sign_file`).
        Raises MalformedSignature: not a signature, cut off, too weak to rely on, or of another size.
        """
        if len(data) < _HEAD.size:
            raise MalformedSignature(detail="it is shorter than a head")
        if len(data) > _MOST_BYTES:
            raise MalformedSignature(detail=f"it is longer than {_MOST_BYTES} bytes")
        magic, block_bytes, strong_bytes = _HEAD.unpack_from(data)
        if magic in _MD4_MAGICS:
            raise MalformedSignature(detail="its sums are MD4, which is broken")
        if magic not in (RK_BLAKE2_MAGIC, _ROLLSUM_BLAKE2_MAGIC):
            raise MalformedSignature(detail="it does not begin with a magic number of librsync")
        if not _SMALLEST_BLOCK_BYTES <= block_bytes <= _LARGEST_BLOCK_BYTES:
            raise MalformedSignature(detail=f"blocks of {block_bytes} bytes")
        if not _LEAST_STRONG_BYTES <= strong_bytes <= _MOST_STRONG_BYTES:
            raise MalformedSignature(detail=f"strong sums of {strong_bytes} bytes")
        blocks, rest = divmod(len(data) - _HEAD.size, _WEAK_BYTES + strong_bytes)
        if rest:
            raise MalformedSignature(detail="it is cut off inside a block's sums")
        signature = cls(bytes(data), magic, block_bytes, strong_bytes, blocks)
        if base_bytes is not None:
            if -(-base_bytes // block_bytes) != blocks:
                raise MalformedSignature(detail=f"it is not of a file of {base_bytes} bytes")
            signature.base_bytes = base_bytes
        if outline:
            signature.groups, rest = divmod(len(outline), GROUP_SUM_BYTES)
            if rest or signature.groups not in (blocks // GROUP_BLOCKS, max(blocks - 1, 0) // GROUP_BLOCKS):
                raise MalformedSignature(detail="its outline is not of the same file")
            signature.outline = outline
        return signature

    @property
    def least_base_bytes(self) -> int:
        """Return the smallest size that the base can have."""
        return (self.blocks - 1) * self.block_bytes + 1 if self.base_bytes is None else self.base_bytes

    @property
    def most_base_bytes(self) -> int:
        """Return the largest size that the base can have."""
        return self.blocks * self.block_bytes if self.base_bytes is None else self.base_bytes

    def strong(self, block: int) -> bytes:
        """Return the strong sum of block number ``block``."""
        at = self.first_strong + block * self.stride
        return self.data[at : at + self.strong_bytes]

    def sums(self) -> SumSet:
        """Return the signature as loaded into librsync, which happens once, when it is first needed."""
        if self._sums is None:
            with self._lock:
                if self._sums is None:
                    self._sums = SumSet(self.data)
        return self._sums

    def find_tail(self, data: bytes | memoryview) -> int:
        """Return the length of the base's last block if ``data`` begins with it, else 0.

        Where the size of the base is unknown, the length is found by the weak sum of every prefix of
        ``data`` (at most a block) and proven by the strong sum; then ``base_bytes`` is learned.
        """
        if not self.blocks:
            return 0
        last = self.blocks - 1
        if self.base_bytes is not None:
            length = self.base_bytes - last * self.block_bytes
            return length if len(data) >= length and self._is_strong(last, data[:length]) else 0
        for length in self._tail_lengths(data[: self.block_bytes]):
            if self._is_strong(last, data[:length]):
                self.base_bytes = last * self.block_bytes + length
                return length
        return 0

    def _tail_lengths(self, data: bytes | memoryview) -> list[int]:
        """Return the lengths of prefixes that may be the last block, the likeliest first."""
        lengths = [len(data)] if data else []
        if self.weak_is_rabinkarp and self.block_bytes <= _LONGEST_TAIL_SEARCH_BYTES:
            at = self.first_strong + (self.blocks - 1) * self.stride - _WEAK_BYTES
            wanted = int.from_bytes(self.data[at : at + _WEAK_BYTES], "big")
            weak = 1
            for length, byte in enumerate(data, 1):
                weak = (weak * _RABINKARP_MULTIPLIER + byte) & 0xFFFFFFFF
                if weak == wanted and length != len(data):
                    lengths.append(length)
        return lengths[:8]

    def _is_strong(self, block: int, data: bytes | memoryview) -> bool:
        return hashlib.blake2b(data, digest_size=32).digest()[: self.strong_bytes] == self.strong(block)
