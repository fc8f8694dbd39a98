"""What a stored tree holds, by name alone: the cheap side of a validation's comparison.

Answers for naming everything that is there, data or sidecar, in manifest order, at the cost of two
directory listings a directory and no ``stat``: the coordinator walks while worker processes look into
the entries.

Not here: the names in one directory (``tree.stored_names``), what an entry is (``StoredTree.check``).
"""

from __future__ import annotations

from collections.abc import Iterator

from mirrorkeep.tree.placement import Placement
from mirrorkeep.tree.stored_names import Names, list_names


def list_paths(placement: Placement) -> Iterator[tuple[bytes, bytes]]:
    """Yield ``(path, path)`` of everything stored, data or sidecar, in manifest order, the root last.

    A name that cannot be read now is left out: the manifest names it too, and the check says what is wrong.
    Raises StorageFailure when a directory cannot be listed: nothing may be concluded about it.
    """
    with placement.directories() as directories:

        def names_in(path: bytes) -> Names:
            return list_names(placement, directories, path, skip_unreadable=True)

        stack = [(b"", names_in(b""))]
        while stack:
            path, names = stack[-1]
            prefix = path + b"/" if path else b""
            for name, is_folder in names:
                below = prefix + name
                if is_folder:
                    stack.append((below, names_in(below)))
                    break
                yield below, below
            else:
                stack.pop()
                yield path, path
