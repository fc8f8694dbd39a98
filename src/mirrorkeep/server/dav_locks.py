"""WebDAV locks: kept in the sidecars of what they lock, so they survive restarts and are frozen with it.

Answers for: making, refreshing, removing and finding locks, the ``If`` header, and the question every
plain write asks: may this client, with the tokens it sent, change this path?  A lock covers a path when
it lies on it, or with depth infinity on a collection above it.

The root's sidecar keeps the *horizon*, the latest expiry of any lock in the tree: past it, no sidecar is
looked at, so trees without locks pay one small read a write.  A crash between lock and horizon cannot
happen the wrong way: the horizon is moved first.

Not here: sidecars themselves (``tree.stored``); writes of runs, which no lock stops.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from mirrorkeep.errors import Locked, MalformedRequest, MirrorkeepError, NotFound, PathRefused
from mirrorkeep.tree.sidecar import LOCK_PREFIX

if TYPE_CHECKING:
    from mirrorkeep.tree.stored import StoredTree

HORIZON: Final = b"lock-horizon"
DEFAULT_TIMEOUT_S: Final = 3600
MAX_TIMEOUT_S: Final = 7 * 86400
MAX_LOCKS: Final = 64
MAX_OWNER_CHARACTERS: Final = 4096
TOKEN_SCHEME: Final = "urn:uuid:"
_TIMEOUT: Final = re.compile(r"Second-(\d{1,10})", re.IGNORECASE)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lock:
    """One write lock.  ``expires`` in seconds since 1970; ``owner`` is markup as the client sent it."""

    token: str
    path: bytes
    exclusive: bool
    infinite: bool
    owner: str
    principal: str
    expires: float
    timeout_s: int

    def covers(self, path: bytes) -> bool:
        """Whether the lock protects ``path``."""
        if path == self.path:
            return True
        return self.infinite and (not self.path or path.startswith(self.path + b"/"))


# --- on disk ------------------------------------------------------------------------------------


def locks_in(path: bytes, entries: Iterable[tuple[bytes, bytes]], now: float) -> list[Lock]:
    """Return the locks that have not expired among the entries of the sidecar of ``path``."""
    found: list[Lock] = []
    for key, value in entries:
        if not key.startswith(LOCK_PREFIX):
            continue
        try:
            row = json.loads(value)
            lock = Lock(token=key[len(LOCK_PREFIX) :].decode("ascii"), path=path, **row)
        except (ValueError, TypeError):
            continue  # not a lock that this version wrote: it protects nothing
        if lock.expires > now:
            found.append(lock)
    return found


def _row(lock: Lock) -> bytes:
    row = asdict(lock)
    del row["token"], row["path"]
    return json.dumps(row, separators=(",", ":")).encode("ascii")


def _drop_expired(entries: dict[bytes, bytes], path: bytes, now: float) -> None:
    alive = {LOCK_PREFIX + lock.token.encode("ascii") for lock in locks_in(path, entries.items(), now)}
    for key in [key for key in entries if key.startswith(LOCK_PREFIX) and key not in alive]:
        del entries[key]


class LockTable:
    """The locks of one tree."""

    def __init__(self, tree: StoredTree, clock: Clock = time.time) -> None:
        self._tree = tree
        self._clock = clock

    def now(self) -> float:
        """Return the present, in seconds since 1970."""
        return self._clock()

    def idle(self) -> bool:
        """Whether no lock in the whole tree can be alive."""
        value = self._entries(b"").get(HORIZON, b"0")
        try:
            return float(value) <= self._clock()
        except ValueError:
            return False

    def on(self, path: bytes) -> list[Lock]:
        """Return the locks that cover ``path``: its own, and those of depth infinity above it."""
        found = self.directly_on(path)
        while path:
            path = path.rpartition(b"/")[0]
            found += [lock for lock in self.directly_on(path) if lock.infinite]
        return found

    def directly_on(self, path: bytes) -> list[Lock]:
        """Return the locks whose root is ``path``."""
        return locks_in(path, self._entries(path).items(), self._clock())

    def below(self, path: bytes) -> Iterator[Lock]:
        """Yield the locks on anything below the collection ``path``."""
        for entry in self._tree.list(path):
            if entry.sidecar is not None:
                yield from locks_in(entry.path, entry.sidecar.entries.items(), self._clock())
            if entry.kind == b"directory":
                yield from self.below(entry.path)

    def add(self, path: bytes, lock: Lock) -> None:
        """Put a lock on ``path``.  Raises Locked when another lock stands in its way; durable."""
        self._move_horizon(lock.expires)

        def change(entries: dict[bytes, bytes]) -> None:
            now = self._clock()
            _drop_expired(entries, path, now)
            there = locks_in(path, entries.items(), now)
            if any(lock.exclusive or other.exclusive for other in there) or len(there) >= MAX_LOCKS:
                raise Locked(path=path)
            entries[LOCK_PREFIX + lock.token.encode("ascii")] = _row(lock)

        self._tree.update_sidecar(path, change)

    def refresh(self, lock: Lock, timeout_s: int) -> Lock:
        """Give a lock a new time-out and return it."""
        fresh = Lock(**{**asdict(lock), "expires": self._clock() + timeout_s, "timeout_s": timeout_s})
        self._move_horizon(fresh.expires)

        def change(entries: dict[bytes, bytes]) -> None:
            key = LOCK_PREFIX + lock.token.encode("ascii")
            if key not in entries:
                raise Locked(path=lock.path)
            entries[key] = _row(fresh)

        self._tree.update_sidecar(lock.path, change)
        return fresh

    def remove(self, lock: Lock) -> None:
        """Take a lock away; durable, repeatable."""

        def change(entries: dict[bytes, bytes]) -> None:
            entries.pop(LOCK_PREFIX + lock.token.encode("ascii"), None)
            _drop_expired(entries, lock.path, self._clock())

        self._tree.update_sidecar(lock.path, change)

    def _move_horizon(self, expires: float) -> None:
        def change(entries: dict[bytes, bytes]) -> None:
            try:
                known = float(entries.get(HORIZON, b"0"))
            except ValueError:
                known = 0.0
            entries[HORIZON] = b"%d" % (max(known, expires) + 1)

        self._tree.update_sidecar(b"", change)

    def _entries(self, path: bytes) -> dict[bytes, bytes]:
        try:
            return dict(self._tree.read_sidecar(path).entries)
        except (NotFound, PathRefused):
            return {}

    # --- the question every write asks --------------------------------------------------------

    def require(self, path: bytes, tokens: frozenset[str], principal: str, *, deep: bool = False) -> None:
        """Raise Locked unless every lock on ``path`` (``deep``: and below it) was named by its owner.

        Of several shared locks on one path, one that the caller holds is enough.
        """
        if self.idle():
            return
        covering = self.on(path)
        mine = [lock for lock in covering if lock.token in tokens and lock.principal == principal]
        if covering and not mine:
            raise Locked(path=covering[0].path)
        if deep:
            for lock in self.below(path):
                if lock.token not in tokens or lock.principal != principal:
                    raise Locked(path=lock.path)

    def require_membership(self, path: bytes, tokens: frozenset[str], principal: str) -> None:
        """Raise Locked when adding or removing ``path`` changes a locked collection of somebody else."""
        if path:
            self.require(path.rpartition(b"/")[0], tokens, principal)

    def conflict(self, path: bytes, *, exclusive: bool, infinite: bool) -> Lock | None:
        """Return a lock that forbids a new one on ``path``, None when there is none."""
        if self.idle():
            return None
        there = self.on(path)
        if infinite:
            try:
                there += self.below(path)
            except MirrorkeepError:
                pass  # a file, or nothing yet: there is nothing below
        return next((lock for lock in there if exclusive or lock.exclusive), None)


def new_token() -> str:
    """Return a fresh lock token."""
    digits = secrets.token_hex(16)
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{TOKEN_SCHEME}{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    )


def parse_timeout(header: str) -> int:
    """Return the seconds that a Timeout header asks for, within bounds."""
    for choice in header.split(","):
        choice = choice.strip()
        if choice.lower() == "infinite":
            return MAX_TIMEOUT_S
        match = _TIMEOUT.fullmatch(choice)
        if match:
            return min(max(int(match.group(1)), 1), MAX_TIMEOUT_S)
    return DEFAULT_TIMEOUT_S


# --- the If header --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a list: a state token or an entity tag, perhaps negated."""

    negated: bool
    token: str
    etag: str


@dataclass(frozen=True, slots=True)
class ConditionList:
    """Conditions that hold together, about ``resource`` (a URL) or, when None, the request's own."""

    resource: str | None
    conditions: tuple[Condition, ...]


_IF: Final = re.compile(
    r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<not>Not\b)|<(?P<uri>[^>]*)>|\[(?P<etag>(?:W/)?"[^"]*")\])""",
    re.IGNORECASE,
)


def parse_if(header: str) -> list[ConditionList]:
    """Read an If header (RFC 4918, 10.4); [] when there is none.  Raises MalformedRequest."""
    lists: list[ConditionList] = []
    resource: str | None = None
    inside: list[Condition] | None = None
    negated = False
    position = 0
    header = header.rstrip()
    while position < len(header):
        match = _IF.match(header, position)
        if match is None:
            raise MalformedRequest(detail="the If header cannot be read")
        position = match.end()
        if inside is None:
            if match["open"]:
                inside = []
            elif match["uri"] is not None and not negated:
                resource = match["uri"]
            else:
                raise MalformedRequest(detail="the If header cannot be read")
        elif match["close"]:
            if not inside or negated:
                raise MalformedRequest(detail="an empty list in the If header")
            lists.append(ConditionList(resource, tuple(inside)))
            inside = None
        elif match["not"] and not negated:
            negated = True
        elif match["uri"] is not None or match["etag"]:
            inside.append(Condition(negated, match["uri"] or "", match["etag"] or ""))
            negated = False
        else:
            raise MalformedRequest(detail="the If header cannot be read")
    if inside is not None:
        raise MalformedRequest(detail="the If header ends inside a list")
    return lists


def submitted_tokens(lists: Iterable[ConditionList]) -> frozenset[str]:
    """Return every state token that a client showed, negated ones left out."""
    return frozenset(
        condition.token
        for one in lists
        for condition in one.conditions
        if condition.token and not condition.negated
    )
