"""When and how an upload is compressed.

gzip pays when the link is slower than the processor: the decision is made upload by upload, from a
sample of the content and from the rate at which the link has been taking bytes.  On a fast link
(loopback, 10 Gbit/s) nothing is compressed, on a WAN everything that shrinks is (TX-07..10).
``isal`` level 1 where it is installed, ``zlib`` otherwise; the gzip container carries the checksum.

Not here: unpacking (the server checks the unpacked bytes against the sender's digest).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Literal

Policy = Literal["auto", "always", "never"]

SLOW_LINK_BYTES_PER_S: Final = 20_000_000
SAMPLE_BYTES: Final = 32 * 1024
WORTHWHILE_RATIO: Final = 0.9
MIN_BYTES: Final = 512

PACKED_SUFFIXES: Final = frozenset(
    b"7z aac apk avi br bz2 cab deb docx epub flac gif gz heic jar jpeg jpg lz4 lzma m4a m4v mkv mov mp3 mp4"
    b" mpeg mpg odp ods odt ogg opus pdf png pptx rar rpm svgz tgz txz vob webm webp whl wma wmv woff woff2"
    b" xlsx xz zip zst".split()
)
"""File types that are compressed already (TX-08); their content is not even sampled."""


def packed_by_type(path: bytes) -> bool:
    """Return whether the file type says that the content is compressed already."""
    dot = path.rfind(b".")
    return dot >= 0 and path[dot + 1 :].lower() in PACKED_SUFFIXES


class Compressor:
    """Decides and compresses for one connection; remembers how fast its link is."""

    def __init__(self, policy: Policy = "auto") -> None:
        self.policy = policy
        self._rate: float | None = None

    def note_sent(self, size_bytes: int, seconds: float) -> None:
        """Take note of how long an upload's bytes took to leave."""
        if size_bytes < 64 * 1024:
            return
        rate = size_bytes / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def pack(self, body: bytes, packed: Callable[[], bool] = lambda: False) -> bytes | None:
        """Return the gzip container of ``body``, or None when it should go as it is.

        ``packed`` tells whether the content is compressed already; asked only where that matters.
        """
        if self.policy == "never" or len(body) < MIN_BYTES:
            return None
        if self.policy == "auto" and self._rate is not None and self._rate > SLOW_LINK_BYTES_PER_S:
            return None
        if self.policy == "auto" and self._rate is None and len(body) > 4 * SAMPLE_BYTES:
            return None  # the first large upload measures the link
        if packed():
            return None
        middle = max(0, (len(body) - SAMPLE_BYTES) // 2)
        sample = body[middle : middle + SAMPLE_BYTES]
        if len(zlib.compress(sample, 1)) > WORTHWHILE_RATIO * len(sample):
            return None
        packed_body = _gzip(body)
        return packed_body if len(packed_body) < len(body) else None


def _gzip(body: bytes) -> bytes:
    """Return the gzip container of ``body`` (the accelerator is loaded when it is first wanted)."""
    try:
        from isal import igzip
    except ImportError:
        import gzip

        return gzip.compress(body, 1)
    packed: bytes = igzip.compress(body, 1)
    return packed
