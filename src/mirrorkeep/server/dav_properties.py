"""The properties of a resource: live ones computed from the stored entry, dead ones from its sidecar.

Not here: XML syntax (``dav_xml``), locks themselves (``dav_locks``).  Dead properties live under ``dav:``
keys of the sidecar, the Clark name behind the prefix, the value as a self-contained XML element.
"""

from __future__ import annotations

import email.utils
import mimetypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mirrorkeep.errors import NoSpace
from mirrorkeep.manifest import keys
from mirrorkeep.server import dav_xml
from mirrorkeep.server.dav_locks import Lock
from mirrorkeep.server.dav_xml import Find, PropertyChange
from mirrorkeep.tree.sidecar import DAV_PREFIX

if TYPE_CHECKING:
    from mirrorkeep.tree.stored import StoredEntry

MAX_DEAD_BYTES: Final = 64 * 1024
"""Most bytes of dead properties on one resource."""
_TYPES: Final = mimetypes.MimeTypes(filenames=())
_SPECIAL: Final[Mapping[bytes, str]] = {
    keys.LINK: "inode/symlink",
    keys.FIFO: "inode/fifo",
    keys.SOCKET: "inode/socket",
    keys.CHAR_DEVICE: "inode/chardevice",
    keys.BLOCK_DEVICE: "inode/blockdevice",
}
_LOCK_ENTRY: Final = (
    "<D:lockentry><D:lockscope><D:{}/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockentry>"
)
_SUPPORTED_LOCKS: Final = _LOCK_ENTRY.format("exclusive") + _LOCK_ENTRY.format("shared")
RESOURCE_TYPE: Final = "{DAV:}resourcetype"
DISPLAY_NAME: Final = "{DAV:}displayname"
LOCK_DISCOVERY: Final = "{DAV:}lockdiscovery"
HASH: Final = "{urn:mirrorkeep}hash"


@dataclass(slots=True)
class Resource:
    """What properties are made from; ``locks`` are those that cover it, its own included."""

    name: bytes
    collection: bool
    entry: StoredEntry | None = None
    locks: Sequence[Lock] = ()
    lockable: bool = False
    quota: tuple[int, int] | None = None
    """(available, used) in bytes, for collections."""
    lock_href: Callable[[Lock], bytes] | None = None
    dead: dict[str, str] = field(default_factory=dict)


def dead_properties(entries: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the dead properties among a sidecar's entries: Clark name to XML text."""
    skip = len(DAV_PREFIX)
    return {
        key[skip:].decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in entries.items()
        if key.startswith(DAV_PREFIX)
    }


# --- live properties ----------------------------------------------------------------------------


def content_type(name: bytes, kind: bytes) -> str:
    """Return the media type of a stored entry, by its name."""
    if kind in _SPECIAL:
        return _SPECIAL[kind]
    guessed, coding = _TYPES.guess_type(name.decode("utf-8", "replace"))
    return guessed if guessed and not coding else "application/octet-stream"


def http_date(mtime_ns: int) -> str:
    """Return an HTTP date; times outside of what it can say are clamped to 1970 or 9999."""
    return email.utils.formatdate(min(max(mtime_ns // 1_000_000_000, 0), 253402300799), usegmt=True)


def digest_text(fields: Mapping[bytes, bytes]) -> str:
    """Return ``NAME=HEX`` of a record's digest, "" when it has none."""
    digits = fields.get(keys.HASH, b"")
    if not digits:
        return ""
    name = fields.get(keys.HASH_NAME) or {40: b"sha1", 64: b"sha256"}.get(len(digits), b"")
    return f"{name.decode('ascii')}={digits.decode('ascii')}"


def known_digest(entry: StoredEntry) -> str:
    """Return the digest that the stored entry should have, "" when it is not known or outdated."""
    record = entry.record
    if record is None or entry.kind != keys.FILE or record.size != entry.size:
        return ""
    return digest_text(record.fields)


def _creation_date(resource: Resource) -> str | None:
    entry = resource.entry
    if entry is None:
        return None
    seconds = min(max(entry.mtime_ns // 1_000_000_000, 0), 253402300799)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _display_name(resource: Resource) -> str | None:
    return dav_xml.escape(resource.name.decode("utf-8", "replace"))


def _length(resource: Resource) -> str | None:
    return str(resource.entry.size) if resource.entry is not None and not resource.collection else None


def _type(resource: Resource) -> str | None:
    if resource.entry is None or resource.collection:
        return None
    return content_type(resource.name, resource.entry.kind)


def _etag(resource: Resource) -> str | None:
    if resource.entry is None or resource.collection:
        return None
    return dav_xml.escape(resource.entry.etag)


def _modified(resource: Resource) -> str | None:
    return http_date(resource.entry.mtime_ns) if resource.entry is not None else None


def _resource_type(resource: Resource) -> str | None:
    return "<D:collection/>" if resource.collection else ""


def _supported_lock(resource: Resource) -> str | None:
    return _SUPPORTED_LOCKS if resource.lockable else ""


def _lock_discovery(resource: Resource) -> str | None:
    href = resource.lock_href
    if href is None:
        return ""
    return "".join(active_lock(lock, href(lock)) for lock in resource.locks)


def _hash(resource: Resource) -> str | None:
    return known_digest(resource.entry) or None if resource.entry is not None else None


def _available(resource: Resource) -> str | None:
    return str(resource.quota[0]) if resource.quota is not None else None


def _used(resource: Resource) -> str | None:
    return str(resource.quota[1]) if resource.quota is not None else None


LIVE: Final[Mapping[str, Callable[[Resource], str | None]]] = {
    RESOURCE_TYPE: _resource_type,
    "{DAV:}creationdate": _creation_date,
    DISPLAY_NAME: _display_name,
    "{DAV:}getcontentlength": _length,
    "{DAV:}getcontenttype": _type,
    "{DAV:}getetag": _etag,
    "{DAV:}getlastmodified": _modified,
    "{DAV:}supportedlock": _supported_lock,
    LOCK_DISCOVERY: _lock_discovery,
    HASH: _hash,
    "{DAV:}quota-available-bytes": _available,
    "{DAV:}quota-used-bytes": _used,
}
QUOTA: Final = frozenset(("{DAV:}quota-available-bytes", "{DAV:}quota-used-bytes"))
"""Only answered when asked for by name (RFC 4331)."""
PROTECTED: Final = frozenset(LIVE) - {DISPLAY_NAME}
_ALL: Final = tuple(name for name in LIVE if name not in QUOTA)


def active_lock(lock: Lock, href: bytes) -> str:
    """Return the ``activelock`` element of a lock."""
    scope = "exclusive" if lock.exclusive else "shared"
    owner = f"<D:owner>{lock.owner}</D:owner>" if lock.owner else ""
    return (
        f"<D:activelock><D:locktype><D:write/></D:locktype><D:lockscope><D:{scope}/></D:lockscope>"
        f"<D:depth>{'infinity' if lock.infinite else '0'}</D:depth>{owner}"
        f"<D:timeout>Second-{lock.timeout_s}</D:timeout>"
        f"<D:locktoken><D:href>{dav_xml.escape(lock.token)}</D:href></D:locktoken>"
        f"<D:lockroot><D:href>{dav_xml.escape(href.decode('ascii'))}</D:href></D:lockroot></D:activelock>"
    )


# --- answers to PROPFIND and PROPPATCH ------------------------------------------------------------


def find_properties(find: Find, resource: Resource) -> list[str]:
    """Return the ``propstat`` elements that answer a PROPFIND for one resource."""
    if find.kind == "propname":
        names = [name for name in _ALL if LIVE[name](resource) is not None]
        names += [name for name in resource.dead if name not in LIVE]
        return [dav_xml.propstat(200, map(dav_xml.empty_element, names))]
    found: list[str] = []
    missing: list[str] = []
    if find.kind == "allprop":
        names = [*_ALL, *(name for name in resource.dead if name not in LIVE)]
        names += [name for name in find.names if name not in names]
    else:
        names = list(find.names)
    for name in names:
        element = _element(name, resource)
        if element is not None:
            found.append(element)
        elif find.kind == "prop" or name in find.names:
            missing.append(dav_xml.empty_element(name))
    return [dav_xml.propstat(200, found), dav_xml.propstat(404, missing)]


def _element(name: str, resource: Resource) -> str | None:
    dead = resource.dead.get(name)
    if dead is not None and name not in PROTECTED:
        return dead
    live = LIVE.get(name)
    if live is None:
        return None
    value = live(resource)
    return None if value is None else dav_xml.text_element(name, value)


def change_properties(entries: dict[bytes, bytes], changes: Sequence[PropertyChange]) -> None:
    """Carry out PROPPATCH instructions in order on a sidecar's entries.  Raises NoSpace, then none counts."""
    for change in changes:
        key = DAV_PREFIX + change.name.encode("utf-8")
        if change.text is None:
            entries.pop(key, None)
        else:
            entries[key] = change.text.encode("utf-8")
    size = sum(len(key) + len(value) for key, value in entries.items() if key.startswith(DAV_PREFIX))
    if size > MAX_DEAD_BYTES:
        raise NoSpace(detail=f"the properties of one resource may take {MAX_DEAD_BYTES} bytes")


def change_answer(changes: Sequence[PropertyChange]) -> tuple[list[str], bool]:
    """Return the ``propstat`` elements of a PROPPATCH, and whether it may be carried out (all or none)."""
    names = list(dict.fromkeys(change.name for change in changes))
    refused = [name for name in names if name in PROTECTED]
    if not refused:
        return [dav_xml.propstat(200, map(dav_xml.empty_element, names))], True
    others = [name for name in names if name not in PROTECTED]
    return [
        dav_xml.propstat(403, map(dav_xml.empty_element, refused)),
        dav_xml.propstat(424, map(dav_xml.empty_element, others)),
    ], False
