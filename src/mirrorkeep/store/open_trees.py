"""The tips' trees that a process keeps open: those that were used last.

A tree that is open holds two descriptors. A store has thousands of parts, a process often 1,024 descriptors:
beyond ``MOST_OPEN`` trees the one that was not used for longest is let go. Whoever still works with it keeps
it open; the next who asks opens it again (about 20 us).

Not here: trees of snapshots, which are opened for one request. Nothing is written.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mirrorkeep.tree.stored import StoredTree

MOST_OPEN: Final = 128


class OpenTrees:
    """Which trees of this process are open, by their last use.  Safe for several threads."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._used: OrderedDict[weakref.ref[TipTree], None] = OrderedDict()
        self._lock = threading.Lock()

    def note_use(self, tree: TipTree) -> None:
        """Take note that ``tree`` is used now, and let go of what is too much (about 0.3 us)."""
        reference = weakref.ref(tree)  # a deleted volume's trees are not kept by this
        with self._lock:
            self._used[reference] = None
            self._used.move_to_end(reference)
            oldest = self._used.popitem(last=False)[0]() if len(self._used) > self._most else None
        if oldest is not None:
            oldest.let_go()


class TipTree:
    """One tip's tree, opened when it is asked for and shared by the threads of this process."""

    def __init__(self, trees: OpenTrees, root: str) -> None:
        self._trees = trees
        self._root = root
        self._tree: StoredTree | None = None

    def get(self) -> StoredTree:
        """Return the tree, open for as long as the caller keeps it.  Raises NotFound."""
        from mirrorkeep.tree.stored import StoredTree

        tree = self._tree
        if tree is None:
            tree = self._tree = StoredTree(self._root)
        self._trees.note_use(self)
        return tree

    def let_go(self) -> None:
        """Forget the tree; its descriptors are closed when nobody uses it any more."""
        self._tree = None

    def close(self) -> None:
        """Close the tree, whoever uses it."""
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.close()
