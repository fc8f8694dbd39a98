"""Validation of a stored tree in a directory of this machine, without a store (VAL-16).

The tree is examined by the code that a store uses, beside the manifest that lies in it.  Where the tree is a
local copy that runs go to, they are kept away meanwhile, and what is found is left for the next one, which
repairs it.  A copy that cannot be written to is examined all the same; then nothing is left behind.

A crash leaves the patch of an earlier validation, whole, and a temporary folder.

Not here: the comparison (``examine``), the repair (``sync``).  No verdict is signed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from mirrorkeep.errors import ForeignManifest
from mirrorkeep.store.change import Everything, Known
from mirrorkeep.store.examine import Examination, Found, Setting, Tally, manifest_digest
from mirrorkeep.store.findings import FindingsFile, overlay, write_partial
from mirrorkeep.store.repair import patch_lines
from mirrorkeep.sync.local import CopyState, LocalSession, is_copy

_WORKERS = 2

Tell = Callable[[Found], None]
"""Called for each finding, in manifest order."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the validation of a directory came to."""

    manifest: str
    """Digest of the manifest that the tree was compared with."""
    tally: Tally
    findings: int
    repairable: bool
    """The next run is told of the findings."""
    dirty: bool
    """The last run to the copy did not end: what it changed differs from the manifest."""


def validate_directory(root: str, tell: Tell, *, content: bool = True) -> Outcome:
    """Compare the stored tree at ``root`` with its manifest; ``content``: read all content too.

    Raises ForeignManifest when there is no manifest to compare with, or another one than the copy was closed
    with (the next run then takes stock of the copy), StateBusy while a run to the copy is under way.
    """
    with ExitStack() as stack:
        session, state = _hold(stack, root)
        manifest = _check_manifest(root, session, state)
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorkeep-validate-"))
        path = os.path.join(work, "findings")
        file = FindingsFile(path)
        stack.callback(file.close)

        def take(found: list[Found], tally: Tally, last: bytes) -> None:
            for one in found:
                file.add(*one)
                tell(one)

        setting = Setting(processes=min(_WORKERS, os.cpu_count() or 1), polite=False)
        tally = Examination(root, Everything() if content else Known(()), take, setting).run()
        file.publish()
        if session is not None and (file.count or content):
            # Where everything was read, what was found before and is no more is right again.
            leave = write_partial if content else overlay
            leave(os.fsdecode(session.patch_path), patch_lines(root, path))
        dirty = state is not None and state.dirty
        return Outcome(manifest, tally, file.count, session is not None, dirty)


def _hold(stack: ExitStack, root: str) -> tuple[LocalSession | None, CopyState | None]:
    if not is_copy(root):
        return None, None
    session = LocalSession(root)
    try:
        return session, stack.enter_context(session.held())
    except OSError:  # nobody can write here, runs cannot either
        return None, None


def _check_manifest(root: str, session: LocalSession | None, state: CopyState | None) -> str:
    """Return the digest of the tree's manifest, which is the one that the copy was closed with."""
    if session is None or state is None or state.manifest is None:
        return manifest_digest(root, root)
    try:
        digest = manifest_digest(root, root)
        if digest != state.manifest:
            detail = f"the copy was closed with manifest {state.manifest}, this is {digest}"
            raise ForeignManifest(snapshot=root, detail=detail)
    except ForeignManifest:
        session.distrust_manifest()
        raise
    return digest
