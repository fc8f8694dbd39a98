"""A thin binding to Debian's librsync 2: block sums of a file, and the rolling search in a window.

Only what pure Python is too slow for is asked of C, and only with input that Python has validated:
librsync's assertions abort the whole process.  Every job lives inside one call, and a :class:`SumSet`
owns its C handle, so that no handle outlives what it points to.  Calls release the interpreter lock.

Not here: the meaning of signatures (``signature.py``), the decision what to search (``alignment.py``),
applying deltas (``patch.py``, which is our own strict parser).

Nothing here touches the disk except by reading; a crash leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from mirrorkeep.errors import EngineMissing, MalformedSignature, MirrorkeepError

LIBRARY: Final = "librsync.so.2"
REMEDY: Final = "install it, on Debian and Ubuntu with: apt install librsync2"
RK_BLAKE2_MAGIC: Final = 0x72730147

_SILENT: Final = 0
_DONE: Final = 0
_BLOCKED: Final = 1
_MEMORY_ERROR: Final = 102
_OUTPUT_BYTES: Final = 64 * 1024
_MOST_OUTPUT_BYTES: Final = 1024 * 1024


class _Buffers(ctypes.Structure):
    """``rs_buffers_t``."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_size_t),
        ("eof_in", ctypes.c_int),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_size_t),
    )


@functools.cache
def open_library(name: str = LIBRARY) -> Any:
    """Return the loaded library with its prototypes set; raises EngineMissing with the remedy."""
    try:
        library = ctypes.CDLL(name)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        prototypes: dict[str, tuple[Any, list[Any]]] = {
            "rs_trace_set_level": (None, [ctypes.c_int]),
            "rs_strerror": (ctypes.c_char_p, [ctypes.c_int]),
            "rs_sig_begin": (pointer, [size, size, ctypes.c_int]),
            "rs_loadsig_begin": (pointer, [ctypes.POINTER(ctypes.c_void_p)]),
            "rs_build_hash_table": (ctypes.c_int, [pointer]),
            "rs_delta_begin": (pointer, [pointer]),
            "rs_job_iter": (ctypes.c_int, [pointer, ctypes.POINTER(_Buffers)]),
            "rs_job_free": (ctypes.c_int, [pointer]),
            "rs_free_sumset": (None, [pointer]),
        }
        for symbol, (result, arguments) in prototypes.items():
            function = getattr(library, symbol)
            function.restype, function.argtypes = result, arguments
        library.rs_trace_set_level(_SILENT)  # refusals are raised here, not printed to standard error
    except (OSError, AttributeError) as error:
        raise EngineMissing(what="librsync 2", remedy=REMEDY) from error
    return library


def is_available() -> bool:
    """Say whether librsync can be used on this machine."""
    try:
        open_library()
    except EngineMissing:
        return False
    return True


class _Job:
    """One librsync job, fed piece by piece; freed when its block ends."""

    def __init__(self, handle: int | None, output_bytes: int = _OUTPUT_BYTES) -> None:
        if not handle:
            raise MemoryError("librsync could not begin a job")
        self._library = open_library()
        self._handle: int | None = handle
        self._buffers = _Buffers()
        self._space = ctypes.create_string_buffer(output_bytes)
        self._space_bytes = output_bytes
        self.output: list[bytes] = []

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handle:
            self._library.rs_job_free(self._handle)
            self._handle = None

    def feed(self, address: int, size_bytes: int, *, last: bool) -> int:
        """Give the job ``size_bytes`` at ``address``; return the result code, output goes to the list."""
        buffers = self._buffers
        buffers.next_in, buffers.avail_in, buffers.eof_in = address, size_bytes, int(last)
        while True:
            before = buffers.avail_in
            buffers.next_out = ctypes.addressof(self._space)
            buffers.avail_out = self._space_bytes
            code = int(self._library.rs_job_iter(self._handle, ctypes.byref(buffers)))
            made = self._space_bytes - buffers.avail_out
            if made:
                self.output.append(ctypes.string_at(self._space, made))
            if code != _BLOCKED:
                return code
            if not made and before == buffers.avail_in:  # no progress: it waits for the next piece
                return code


def _address(data: bytes) -> int:
    """Return where ``data`` lies in memory; good as long as the caller keeps ``data``."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _describe(code: int) -> str:
    return str(open_library().rs_strerror(code).decode("ascii", "replace"))


def _check(code: int, wanted: int) -> None:
    if code == _MEMORY_ERROR:
        raise MemoryError("librsync ran out of memory")
    if code != wanted:
        raise MirrorkeepError(detail=f"librsync failed: {_describe(code)}")


class Signing:
    """The rk-blake2 signature of one stream of bytes in the making; a context manager."""

    def __init__(self, block_bytes: int, strong_bytes: int) -> None:
        library = open_library()
        self._job = _Job(library.rs_sig_begin(block_bytes, strong_bytes, RK_BLAKE2_MAGIC))

    def __enter__(self) -> Signing:
        return self

    def __exit__(self, *exc: object) -> None:
        self._job.__exit__()

    def add(self, address: int, size_bytes: int) -> None:
        """Take the next ``size_bytes``, which lie at ``address`` during the call."""
        _check(self._job.feed(address, size_bytes, last=False), _BLOCKED)

    def finish(self) -> bytes:
        """Return the signature, head included."""
        _check(self._job.feed(0, 0, last=True), _DONE)
        return b"".join(self._job.output)


class SumSet:
    """A signature loaded into librsync, ready for rolling searches from several threads at once.

    That is sound because a search changes nothing of the set but statistics, which are never read.
    ``data`` must have passed :meth:`Signature.load`; raises MalformedSignature, EngineMissing.
    """

    def __init__(self, data: bytes) -> None:
        self._library = open_library()
        self._handle = ctypes.c_void_p()
        job = _Job(self._library.rs_loadsig_begin(ctypes.byref(self._handle)))
        with job:
            code = job.feed(_address(data), len(data), last=True)
        if code == _DONE:
            code = int(self._library.rs_build_hash_table(self._handle))
        if code != _DONE:
            self.close()
            raise MalformedSignature(detail=f"librsync refused it: {_describe(code)}")

    def search(self, data: bytes, start: int, end: int) -> bytes:
        """Return the librsync delta that makes bytes ``start`` to ``end`` of ``data`` out of the base."""
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"bytes {start} to {end} of {len(data)}")
        output_bytes = min(end - start + 4096, _MOST_OUTPUT_BYTES)
        with _Job(self._library.rs_delta_begin(self._handle), output_bytes) as job:
            _check(job.feed(_address(data) + start, end - start, last=True), _DONE)
            return b"".join(job.output)

    def close(self) -> None:
        """Free the C side; the set cannot be used afterwards.  May be repeated."""
        if self._handle:
            self._library.rs_free_sumset(self._handle)
            self._handle = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()
