"""The collections above the trees: ``/``, ``/volumes``, ``/snapshots``, and what leads down to parts.

They exist so that a client can start anywhere and find its way; they list only what the caller may read,
are read-only, and have no properties of their own.

Not here: anything inside a tree.
"""

from __future__ import annotations

from mirrorkeep.errors import NotFound
from mirrorkeep.server.call import Call


def children(call: Call) -> list[bytes] | None:
    """Return the names in the virtual collection at the address; None when it lies in a tree.

    Raises NotFound when it would be a virtual collection that does not exist for this caller.
    """
    address = call.address
    if address.area == "root":
        return [b"snapshots", b"volumes"]
    if address.area == "volumes":
        return None if address.volume else [name.encode() for name in _readable(call)]
    if address.area != "snapshots":
        raise NotFound(what="the resource")
    if not address.snapshot:
        names = {name for volume in _readable(call) for name in _snapshots(call, volume)}
        return sorted(name.encode() for name in names)
    if not address.volume:
        held = [v.encode() for v in _readable(call) if address.snapshot in _snapshots(call, v)]
        if not held:
            raise NotFound(what=f"snapshot {address.snapshot}")
        return held
    return _towards_parts(call)


def _towards_parts(call: Call) -> list[bytes] | None:
    """Inside a snapshot but above its parts: the next components of the paths that lead to them."""
    address = call.address
    if not call.grant.may_read(address.volume, address.path):
        return None
    volume = call.store.volume(address.volume)
    if volume.part_for(address.path) is not None:
        return None
    prefix = address.path + b"/" if address.path else b""
    names = {
        part.path[len(prefix) :].partition(b"/")[0]
        for part in volume.parts()
        if part.path.startswith(prefix) and any(s.name == address.snapshot for s in part.snapshots())
    }
    return sorted(names) if names else None


def _readable(call: Call) -> list[str]:
    return [name for name in call.store.registry.volumes() if call.grant.may_read(name, b"")]


def _snapshots(call: Call, volume: str) -> set[str]:
    return {one.name for part in call.store.volume(volume).parts() for one in part.snapshots()}
