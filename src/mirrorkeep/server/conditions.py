"""The conditions of a request: If-Match, If-None-Match, and the If header of WebDAV.

Answers for: whether the conditions hold now, and which lock tokens the client showed.  ETags are strong
and made from the generation of the data; the form that a gzip answer carries counts as the same.

Not here: locks themselves (``dav_locks``).  The compare-and-set that closes the gap between this check
and the write is the tree's (``GenerationConflict``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mirrorkeep.errors import MirrorkeepError, NotFound, PathRefused, PreconditionFailed
from mirrorkeep.server.address import parse_address
from mirrorkeep.server.dav_locks import ConditionList, LockTable, parse_if, submitted_tokens

if TYPE_CHECKING:
    from mirrorkeep.server.call import Call
    from mirrorkeep.server.place import Place
    from mirrorkeep.tree.stored import StoredEntry

_PACKED: Final = ';gzip"'


class Conditions:
    """The conditions of one request, about one place."""

    def __init__(self, call: Call, place: Place) -> None:
        """Read the headers; raises MalformedRequest."""
        self._place = place
        self._if_match = call.request.header("if-match")
        self._if_none_match = call.request.header("if-none-match")
        self._lists = parse_if(call.request.header("if"))
        self.tokens = submitted_tokens(self._lists)
        self.principal = call.grant.principal

    @property
    def expects_state(self) -> bool:
        """Whether the client named the state that it wants to replace."""
        return bool(self._if_match) or any(c.etag for one in self._lists for c in one.conditions)

    def check(self, locks: LockTable, entry: StoredEntry | None) -> None:
        """Raise PreconditionFailed unless every condition holds for ``entry`` (None: nothing is there)."""
        etag = entry.etag if entry is not None else None
        if self._if_match and not matches(self._if_match, etag):
            raise PreconditionFailed(path=self._name, detail="If-Match does not hold")
        if self._if_none_match and matches(self._if_none_match, etag):
            raise PreconditionFailed(path=self._name, detail="If-None-Match does not hold")
        if self._lists and not any(self._holds(one, locks, entry) for one in self._lists):
            raise PreconditionFailed(path=self._name, detail="no list of the If header holds")

    def is_not_modified(self, entry: StoredEntry) -> bool:
        """Whether a GET is answered with 304."""
        return bool(self._if_none_match) and matches(self._if_none_match, entry.etag)

    @property
    def _name(self) -> bytes:
        return self._place.path or b"/"

    def _holds(self, one: ConditionList, locks: LockTable, entry: StoredEntry | None) -> bool:
        path: bytes | None = self._place.path
        if one.resource is not None:
            path = self._tree_path(one.resource)
            entry = self._look(path)
        tokens = {lock.token for lock in locks.on(path)} if path is not None and not locks.idle() else set()
        etag = entry.etag if entry is not None else None
        return all(
            condition.negated
            != (condition.token in tokens if condition.token else matches(condition.etag, etag))
            for condition in one.conditions
        )

    def _tree_path(self, url: str) -> bytes | None:
        try:
            address = parse_address(url_path(url))
        except MirrorkeepError:
            return None
        return self._place.relative(address)

    def _look(self, path: bytes | None) -> StoredEntry | None:
        if path is None:
            return None
        try:
            return self._place.tree.stat(path)
        except (NotFound, PathRefused):
            return None


def matches(header: str, etag: str | None) -> bool:
    """Say whether a list of entity tags (or ``*``) names the current one; None: there is no resource."""
    if etag is None:
        return False
    if header.strip() == "*":
        return True
    return etag in (_plain(tag.strip()) for tag in header.split(","))


def _plain(tag: str) -> str:
    return tag[: -len(_PACKED)] + '"' if tag.endswith(_PACKED) else tag


def url_path(url: str) -> bytes:
    """Return the raw path of an absolute URL or of an absolute path, without query and fragment."""
    _, separator, rest = url.partition("://")
    if separator:
        _, slash, rest = rest.partition("/")
        url = slash + rest
    return url.partition("#")[0].partition("?")[0].encode("latin-1", "replace")
