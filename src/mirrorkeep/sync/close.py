"""The end of a run: its manifest goes to the store, which freezes what it describes.

The store is told as little as says it all: that nothing changed, a delta against the manifest that it has,
or the whole.  Where what it has of the last one turns out to be damaged, it gets the whole in the same run.

Not here: making the manifest (``late``, ``journal``), what the client keeps of it (``state``).  A close may
be repeated; one that failed leaves the run open, for the next to resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirrorkeep.errors import ForeignManifest, MirrorkeepError
from mirrorkeep.sync.input import Input
from mirrorkeep.sync.session import Closed, RunSession
from mirrorkeep.sync.state import State

FULL_MANIFEST_BYTES: Final = 256 * 1024
"""Manifests up to this size travel whole."""


@dataclass(frozen=True, slots=True)
class Closing:
    """Closes one run; ``wait`` returns when nothing of it is under way any more."""

    session: RunSession
    state: State
    input: Input
    snapshot: bool
    wait: Callable[[], object]

    def close_unchanged(self) -> Closed:
        """Close a run that found nothing to do: the last manifest stands."""
        manifest, digest = self.input.manifest_path, self.input.manifest_digest
        if digest == self.input.server_manifest:
            closed = self._hand_over("same", digest, digest, None, manifest)
        else:
            closed = self.close(manifest, digest, 0)
        if self.input.needs_keeping:
            self.state.keep(manifest, self.input.index_path, digest)
        else:
            self.state.forget_run()
        return closed

    def close(self, manifest: str, digest: str, size_bytes: int) -> Closed:
        """Close with the manifest at a path; raises what the session raises, and the run stays open."""
        base = self.input.server_manifest
        if base and base == self.input.manifest_digest and size_bytes > FULL_MANIFEST_BYTES:
            from mirrorkeep.sync.manifest_delta import write_manifest_delta

            form, body = "delta", os.path.join(self.state.work, "manifest.delta")
            write_manifest_delta(self.input.manifest_path, manifest, body)
        else:
            form, base, body = "full", None, manifest
        if not self.session.closes_beside_commits:
            self.wait()
        try:
            return self._hand_over(form, base, digest, body, manifest)
        except MirrorkeepError:
            with suppress(MirrorkeepError):
                self.wait()  # what was committed counts for the next run
            raise

    def _hand_over(self, form: str, base: str | None, digest: str, body: str | None, manifest: str) -> Closed:
        snapshot = self.snapshot
        try:
            return self.session.close(form=form, base=base, digest=digest, body=body, snapshot=snapshot)
        except ForeignManifest:
            if form == "full":
                raise
            return self._hand_over("full", None, digest, manifest, manifest)
