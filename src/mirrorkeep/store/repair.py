"""What a validation's findings mean for the next run: the patch of a stored tree, from what is really there.

Answers for saying of each entry with findings, in manifest order, what the tree has: nothing, something that
the manifest does not know, or something that is not to be trusted.

Not here: the patch's file, and merging it with an older one (``findings``).  It only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from mirrorkeep.manifest.order import order_key
from mirrorkeep.store import findings
from mirrorkeep.store.examine import extra_record
from mirrorkeep.tree.stored import StoredTree


def patch_lines(root: str, findings_path: str) -> Iterator[bytes]:
    """Yield the record of what the tree at ``root`` really has for each entry with findings, in order.

    The directory above each goes with it: losing or gaining an entry moved its time, and so does the
    repair, though that is no finding of its own.
    """
    above: list[bytes] = []
    """Directories of entries already yielded that are still to come, the deepest last."""
    with StoredTree(root, read_only=True) as tree:
        for path, group in groupby(findings.read_findings(findings_path), key=finding_path):
            key = order_key(path)
            while above and order_key(above[-1]) <= key:
                passed = above.pop()
                if passed != path:
                    yield findings.unknown_record(passed)
            yield _real_record(tree, path, {row["kind"] for row in group})
            parent = path.rpartition(b"/")[0]
            if path and (not above or above[-1] != parent):
                above.append(parent)
    yield from map(findings.unknown_record, reversed(above))


def finding_path(row: dict[str, str]) -> bytes:
    """Return the path that a finding names."""
    return row["path"].encode("utf-8", "surrogateescape")


def _real_record(tree: StoredTree, path: bytes, kinds: set[str]) -> bytes:
    if "missing" in kinds:
        return findings.absent_record(path)
    if "extra" in kinds:
        return extra_record(tree, path)
    return findings.unknown_record(path)
