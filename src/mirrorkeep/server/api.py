"""The JSON API under ``/api/v1``: runs, manifests, patches, snapshots, validations, verdicts.

Answers for: the resources in ``RESOURCES``, their rights and the shape of their answers (told in
``docs/reference/protocol.md`` and, for machines, by ``openapi``).  Agents hold tokens that reach their
own part alone; nothing here deletes or shortens history (design section 7).

Not here: what a run or a verdict is (``store.runs``, ``store.validation``).  A crash leaves what those
leave, and an uploaded manifest in ``DATA/run/uploads`` that the next start removes.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final

from mirrorkeep import __version__
from mirrorkeep.errors import BadUsage, MalformedRequest, NotFound, TooLarge
from mirrorkeep.server import auth, openapi
from mirrorkeep.server.address import check_part_path
from mirrorkeep.server.call import Call, Upload
from mirrorkeep.server.place import find_part
from mirrorkeep.server.request import Unpacker
from mirrorkeep.server.response import PIECE_BYTES, Response, json_response
from mirrorkeep.store import keys, runs, validation
from mirrorkeep.store.volume import Part
from mirrorkeep.tree import wire

Handler = Callable[..., Response]

MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024 * 1024
"""Most unpacked bytes of one uploaded manifest: three hundred million entries."""
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_LINES: Final = (b"content-type", b"application/x-ndjson")
_MODES: Final = ("full", "incremental", "metadata")
_FORMS: Final = ("same", "delta", "full")
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Resource:
    """A path pattern under ``/api/v1`` and its handlers; each gets the pattern's groups as text."""

    pattern: re.Pattern[bytes]
    handlers: Mapping[str, Handler]
    uploads: Mapping[str, Callable[..., Upload]]
    public: bool = False


def find_resource(path: bytes) -> tuple[Resource, tuple[str, ...]] | None:
    """Return the resource at ``path`` (decoded, without the leading slash) and the values in it."""
    for resource in RESOURCES:
        match = resource.pattern.fullmatch(path)
        if match is not None:
            return resource, tuple(group.decode("utf-8", "replace") for group in match.groups())
    return None


# --- runs -------------------------------------------------------------------------------------


def begin_run(call: Call) -> Response:
    """Begin a run of a part, superseding its unfinished one; the part is made on first use."""
    body = call.json()
    volume, part_text = _text(body, "volume"), _text(body, "part", "")
    source, state = _text(body, "source", ""), body.get("state") or {}
    if not isinstance(state, dict):
        raise MalformedRequest(detail="state is an object")
    path = check_part_path(part_text.encode("utf-8", "surrogateescape"))
    auth.require_write(call.grant, volume, path)
    part = call.store.volume(volume).part(path, create=True)
    return json_response(asdict(runs.begin_run(part, source, state)), 201)


def commit_run(call: Call, run: str) -> Response:
    """Make everything that the run acknowledged durable, in one go."""
    part = _part_of_run(call, run)
    body = call.json()
    position = body.get("position")
    commit = runs.commit_run(
        part, run, _whole(body, "epoch"), _text(body, "incarnation"), position if position is not None else {}
    )
    return json_response({"commit": commit})


def abandon_run(call: Call, run: str) -> Response:
    """Give a run up; what it committed stays for the next one."""
    part = _part_of_run(call, run)
    runs.abandon_run(part, run)
    return Response(204)


class CloseUpload:
    """Close a run: take the manifest (whole, as a delta, or none), snapshot, queue the validation."""

    def __init__(self, call: Call, run: str) -> None:
        self._call = call
        self._run = run
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._unpacker = Unpacker(gzipped=call.request.gzipped)

    def whole(self, packed: bytes) -> Response:
        self.feed(packed)
        return self.finish()

    def feed(self, packed: bytes) -> None:
        if self._file is None:
            _part_of_run(self._call, self._run)  # no byte is stored for those who may not
            folder = uploads_folder(self._call.store.data)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._file = tempfile.NamedTemporaryFile(dir=folder, prefix="manifest-", buffering=0)
        self._store(self._unpacker.feed(packed))

    def _store(self, pieces: Iterator[bytes]) -> None:
        assert self._file is not None
        for piece in pieces:
            if self._unpacker.size_bytes > MAX_MANIFEST_BYTES:
                raise TooLarge(detail="the manifest is too large")
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]

    def finish(self) -> Response:
        self._store(self._unpacker.finish())
        assert self._file is not None
        query = self._call.request.query
        form = query.get("form", b"full").decode("latin-1")
        digest, base = (query.get(name, b"").decode("latin-1") for name in ("digest", "base"))
        if form not in _FORMS:
            raise BadUsage(detail=f"form= is one of {', '.join(_FORMS)}")
        if not _HEX.fullmatch(digest) or (form == "delta" and not _HEX.fullmatch(base)):
            raise BadUsage(detail="digest= and base= are SHA-256 in lowercase hex")
        closed = runs.close_run(
            _part_of_run(self._call, self._run),
            self._run,
            self._call.request.query_int("epoch"),
            query.get("incarnation", b"").decode("latin-1"),
            form=form,
            base=base,
            digest=digest,
            body_path=self._file.name,
            snapshot=query.get("snapshot", b"1") != b"0",
        )
        self.abandon()
        return json_response(asdict(closed))

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def uploads_folder(data: str) -> str:
    """Return where manifests wait while a run closes; emptied at start-up."""
    return os.path.join(data, "run", "uploads")


def _part_of_run(call: Call, run: str) -> Part:
    part = runs.find_part(call.store, run)
    auth.require_write(call.grant, part.volume.name, part.path)
    return part


# --- what a volume holds ------------------------------------------------------------------------


def read_manifest(call: Call, volume: str) -> Response:
    """The manifest of a snapshot, of the last closed run, or of what the tip really holds."""
    part = _readable_part(call, volume)
    name = call.request.query.get("snapshot", b"latest").decode("utf-8", "replace")
    if name == "actual":
        return Response(200, [_TEXT], stream=runs.actual_manifest(part), compressible=True)
    return _stream_file(part.manifest_path(part.snapshot(name).name), _TEXT)


def read_patch(call: Call, volume: str) -> Response:
    """What validation found, as a partial manifest for the next run; 204 when there is nothing."""
    path = _readable_part(call, volume).patch_path
    if not os.path.exists(path):
        return Response(204)
    return _stream_file(path, _TEXT)


def list_snapshots(call: Call, volume: str) -> Response:
    """The part's snapshots, oldest first; none where a part may still be made by its first run."""
    path = call.query_part()
    auth.require_read(call.grant, volume, path)
    found = call.store.volume(volume)
    if found.has_room_for(path):
        return json_response({"snapshots": []})
    part = found.part(path)
    rows = [validation.describe_snapshot(part, snapshot) for snapshot in part.snapshots()]
    return json_response({"snapshots": rows})


def request_validation(call: Call, volume: str) -> Response:
    """Queue a validation of one snapshot, or of the newest."""
    part = _readable_part(call, volume)
    body = call.json()
    snapshot, mode = body.get("snapshot"), body.get("mode", "full")
    if mode not in _MODES or not (snapshot is None or isinstance(snapshot, str)):
        raise MalformedRequest(detail=f"mode is one of {', '.join(_MODES)}, snapshot a name or null")
    return json_response(asdict(validation.request_validation(part, snapshot, mode)), 202)


def read_verdict(call: Call, volume: str, snapshot: str) -> Response:
    """The verdict of a snapshot; with ``wait`` the answer waits until it is done.

    With ``since`` it carries the links of the chain back to the verdict of that digest.
    """
    part = _readable_part(call, volume)
    waited_for = "wait" in call.request.query
    since = call.request.query.get("since", b"").decode("latin-1")
    verdict = validation.read_verdict(part, snapshot, _validation(call), waited_for=waited_for, since=since)
    response = json_response(verdict)
    response.waiting = verdict.get("state") != "done"
    return response


def read_findings(call: Call, volume: str, snapshot: str) -> Response:
    """The findings of a validation, one JSON object a line, known ones included."""
    part = _readable_part(call, volume)
    return _stream_file(validation.findings_path(part, snapshot, _validation(call)), _LINES)


def _readable_part(call: Call, volume: str) -> Part:
    path = call.query_part()
    auth.require_read(call.grant, volume, path)
    return find_part(call.store, volume, path)


def _validation(call: Call) -> str | None:
    value = call.request.query.get("validation")
    return value.decode("latin-1") if value else None


# --- the service itself -------------------------------------------------------------------------


def read_health(call: Call) -> Response:
    """Whether this worker serves."""
    return json_response({"status": "ok", "version": __version__, "protocol": wire.PROTOCOL_VERSION})


def read_key(call: Call) -> Response:
    """The public key that verdicts are signed with, as PEM."""
    return Response(
        200, [(b"content-type", b"application/x-pem-file")], keys.public_key(call.store.keys_folder)
    )


def read_openapi(call: Call) -> Response:
    """This API, for machines."""
    response = json_response(openapi.SCHEMA)
    response.compressible = True
    return response


def _resource(
    pattern: str,
    *,
    public: bool = False,
    uploads: Mapping[str, Callable[..., Upload]] | None = None,
    **handlers: Handler,
) -> Resource:
    compiled = re.compile(rb"api/v1/" + pattern.encode("ascii"))
    return Resource(compiled, handlers, uploads or {}, public)


RESOURCES: Final = (
    _resource("runs", POST=begin_run),
    _resource("runs/([^/]+)/commit", POST=commit_run),
    _resource("runs/([^/]+)/close", uploads={"POST": CloseUpload}),
    _resource("runs/([^/]+)", DELETE=abandon_run),
    _resource("volumes/([^/]+)/manifest", GET=read_manifest),
    _resource("volumes/([^/]+)/patch", GET=read_patch),
    _resource("volumes/([^/]+)/snapshots", GET=list_snapshots),
    _resource("volumes/([^/]+)/validations", POST=request_validation),
    _resource("volumes/([^/]+)/verdicts/([^/]+)", GET=read_verdict),
    _resource("volumes/([^/]+)/findings/([^/]+)", GET=read_findings),
    _resource("health", GET=read_health, public=True),
    _resource("key", GET=read_key, public=True),
    _resource("openapi.json", GET=read_openapi, public=True),
)


# --- pieces -------------------------------------------------------------------------------------


def _stream_file(path: str, kind: tuple[bytes, bytes]) -> Response:
    try:
        stream = open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise NotFound(what="the file of this resource") from None
    length = os.fstat(stream.fileno()).st_size
    return Response(200, [kind], stream=_pieces(stream), length_bytes=length, compressible=True)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str):
        raise MalformedRequest(detail=f"{name} has to be a text")
    return value


def _whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or value < 0:
        raise MalformedRequest(detail=f"{name} has to be a whole number")
    return value
