"""What a URL means: raw path bytes in, an :class:`Address` out.

The path is taken apart *before* it is decoded, so ``%2F`` can never become a separator; every component
is decoded to bytes, because names are bytes.  Whatever could leave a tree or mean two things (``..``, empty
components, NUL, encoded slashes, broken escapes) is refused here, once, for every verb and for the
``Destination`` header alike.

Inside a tree a path is made of the names that entries have at their source.  One that begins like a hidden
folder is a name like any other there: the tree stores it under an id (``tree.layout``), and no request can
spell what the store keeps for itself (ADR 0010).  Everywhere else such names are refused: of volumes,
snapshots, resources, and of parts, whose paths are native ones.

Not here: whether the thing exists (``place``), who may see it (``auth``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_from_bytes

from mirrorkeep.errors import MalformedRequest, NotFound, PathRefused
from mirrorkeep.tree.layout import HIDDEN

MAX_COMPONENT_BYTES: Final = 4096
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_SAFE: Final = "!$&'()*+,;=:@-._~"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request points.  ``area``: "root", "volumes", "snapshots", "api" or "other".

    ``volume`` and ``snapshot`` are "" when the path ends before them (the virtual collections above
    the trees).  ``path`` is relative to the volume.  For "api" and "other", ``path`` is the whole path.
    """

    area: str
    volume: str
    snapshot: str
    path: bytes
    slash: bool
    """The URL ended with a slash: the client means a collection."""

    @property
    def base(self) -> bytes:
        """The URL path of the volume's root, percent-encoded, without a trailing slash."""
        if self.area == "snapshots":
            return b"/snapshots/" + _quote_text(self.snapshot) + b"/" + _quote_text(self.volume)
        return b"/volumes/" + _quote_text(self.volume)


def parse_address(raw_path: bytes) -> Address:
    """Take a raw URL path apart.  Raises MalformedRequest, PathRefused, NotFound; touches nothing."""
    if raw_path in (b"", b"/", b"*"):
        return Address("root", "", "", b"", True)
    if not raw_path.startswith(b"/"):
        raise MalformedRequest(detail="the path does not start with a slash")
    slash = raw_path.endswith(b"/")
    parts = [_decode(component) for component in raw_path[1 : -1 if slash else None].split(b"/")]
    above = {b"volumes": 2, b"snapshots": 3}.get(parts[0], len(parts))
    _refuse_reserved(parts[:above])
    if parts[0] == b"api":
        return Address("api", "", "", b"/".join(parts), slash)
    if parts[0] == b"volumes":
        volume = _text(parts[1]) if len(parts) > 1 else ""
        return Address("volumes", volume, "", b"/".join(parts[2:]), slash)
    if parts[0] == b"snapshots":
        snapshot = _text(parts[1]) if len(parts) > 1 else ""
        volume = _text(parts[2]) if len(parts) > 2 else ""
        return Address("snapshots", volume, snapshot, b"/".join(parts[3:]), slash)
    return Address("other", "", "", b"/".join(parts), slash)


def check_tree_path(path: bytes) -> bytes:
    """Return ``path`` (already decoded, relative) when it may name an entry of a tree, else raise."""
    if path:
        for component in path.split(b"/"):
            _check(component, path)
    return path


def check_part_path(value: bytes) -> bytes:
    """Return the path of a part in a decoded value; slashes at its ends are fine.  Raises PathRefused."""
    path = check_tree_path(value.strip(b"/"))
    _refuse_reserved(path.split(b"/"))
    return path


def quote_path(path: bytes) -> bytes:
    """Percent-encode a tree path for a URL or href: every byte that is not plainly safe, slashes kept."""
    return quote_from_bytes(path, safe=_SAFE + "/").encode("ascii")


def unquote(value: bytes) -> bytes:
    """Decode percent escapes; raises MalformedRequest on a broken one."""
    if b"%" not in value:
        return value
    return _ESCAPE.sub(_byte, value)


def _decode(component: bytes) -> bytes:
    decoded = unquote(component)
    _check(decoded, decoded)
    return decoded


def _check(component: bytes, whole: bytes) -> None:
    if component in (b"", b".", b".."):
        raise PathRefused(path=whole, detail="empty and dotted components are not taken")
    if b"/" in component or b"\0" in component:
        raise PathRefused(path=whole, detail="a name cannot hold a slash or NUL")
    if len(component) > MAX_COMPONENT_BYTES:
        raise PathRefused(path=whole[:64], detail="a component is too long")


def _refuse_reserved(components: list[bytes]) -> None:
    for component in components:
        if component.startswith(HIDDEN):
            raise PathRefused(path=component, detail="hidden names are the store's own")


def _byte(match: re.Match[bytes]) -> bytes:
    digits = match.group(1)
    if digits is None:
        raise MalformedRequest(detail="a broken percent escape in the URL")
    return bytes((int(digits, 16),))


def _text(component: bytes) -> str:
    try:
        return component.decode("utf-8")
    except UnicodeDecodeError:
        raise NotFound(what=component) from None


def _quote_text(name: str) -> bytes:
    return quote_path(name.encode("utf-8", "surrogateescape"))
