"""The OpenAPI description of ``/api/v1``, as data; served at ``/api/v1/openapi.json``.

A unit test holds that it names exactly the resources and methods of ``api.RESOURCES``; schemathesis
holds the server to it.

Not here: behaviour.  Prose for people is in ``docs/reference/protocol.md``.
"""

from __future__ import annotations

from typing import Any, Final

from mirrorkeep import __version__

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
_HEX64: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_OPEN: Final[Schema] = {"type": "object"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(schema: Schema, description: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _stream(kind: str, description: str) -> Schema:
    return {"description": description, "content": {kind: {"schema": _TEXT}}}


def _body(schema: Schema, *, required: bool = True) -> Schema:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


_PROBLEM: Final[Schema] = {
    "description": "what went wrong (RFC 9457)",
    "content": {
        "application/problem+json": {
            "schema": _object(
                type=_TEXT, title=_TEXT, status={"type": "integer"}, code=_TEXT, retryable={"type": "boolean"}
            )
        }
    },
}
_COMMON: Final[tuple[int, ...]] = (400, 401, 403, 404, 408, 409, 413, 500, 507)
_PART: Final = _query("part", _TEXT, "path of the part inside the volume, empty for the whole volume")
_VALIDATION: Final = _query("validation", _TEXT, "id of one validation; default: the newest")
_SINCE: Final = _query(
    "since",
    _TEXT,
    "digest of a verdict of the part; `links` then carries the chain from the newest one to it",
)
_WAIT: Final = _query(
    "wait", {"type": "number", "minimum": 0, "maximum": 60}, "seconds to wait for a final verdict"
)


def _operation(
    summary: str,
    answers: dict[int, Schema],
    *parameters: Schema,
    body: Schema | None = None,
    public: bool = False,
) -> Schema:
    operation: Schema = {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {str(status): answer for status, answer in answers.items()},
    }
    if public:
        operation["security"] = []
        errors: tuple[int, ...] = (400,)
    else:
        errors = _COMMON
    for status in errors:
        operation["responses"].setdefault(str(status), {"$ref": "#/components/responses/Problem"})
    if body is not None:
        operation["requestBody"] = body
    return operation


_RUN_BEGIN: Final = _object(volume=_TEXT) | {
    "properties": {
        "volume": _TEXT,
        "part": _TEXT,
        "source": _TEXT,
        "state": {
            "type": "object",
            "properties": {"manifest": _TEXT, "run": _TEXT, "commit": {"type": "integer"}},
        },
    }
}
_RUN: Final = _object(
    run=_TEXT,
    epoch=_WHOLE,
    incarnation=_TEXT,
    manifest=_TEXT,
    dirty={"type": "boolean"},
    resume={"type": "boolean"},
    patch={"type": "boolean"},
)
_SNAPSHOT: Final = _object(
    name=_TEXT,
    sequence=_WHOLE,
    time=_TEXT,
    verdict={"enum": ["pending", "verified", "repaired", "failed"]},
    coverage={},
    entries=_WHOLE,
    bytes=_WHOLE,
)
_CLOSED: Final = _object(snapshot=_optional(_TEXT), sequence=_WHOLE, validation=_optional(_TEXT))
_NOTHING: Final[Schema] = {"description": "done; nothing to say"}

_PATHS: Final[dict[str, dict[str, Schema]]] = {
    "/runs": {
        "post": _operation(
            "Begin a run of a part, superseding its unfinished one",
            {201: _json(_RUN, "the run")},
            body=_body(_RUN_BEGIN),
        )
    },
    "/runs/{run}/commit": {
        "post": _operation(
            "Make everything acknowledged in this run durable",
            {200: _json(_object(commit=_WHOLE), "number of the commit")},
            _path("run"),
            body=_body(_object(epoch=_WHOLE, incarnation=_TEXT, position={})),
        )
    },
    "/runs/{run}/close": {
        "post": _operation(
            "End the run: take its manifest, snapshot the part, queue the validation",
            {200: _json(_CLOSED, "what was made")},
            _path("run"),
            _query("epoch", _WHOLE, "epoch of the run", required=True),
            _query("incarnation", _TEXT, "incarnation of the service", required=True),
            _query("digest", _HEX64, "SHA-256 of the new manifest", required=True),
            _query("base", _HEX64, "SHA-256 of the manifest that a delta builds on"),
            _query("form", {"enum": ["same", "delta", "full"]}, "what the body is"),
            _query("snapshot", {"enum": ["0", "1"]}, "0: close without a snapshot"),
            body={
                "required": False,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            },
        )
    },
    "/runs/{run}": {"delete": _operation("Give a run up", {204: _NOTHING}, _path("run"))},
    "/volumes/{volume}/manifest": {
        "get": _operation(
            "The manifest of a snapshot, or of what the tip really holds",
            {200: _stream("text/plain", "the manifest")},
            _path("volume"),
            _PART,
            _query("snapshot", _TEXT, "a name, `latest` (default) or `actual`"),
        )
    },
    "/volumes/{volume}/patch": {
        "get": _operation(
            "What validation found, as a partial manifest",
            {200: _stream("text/plain", "the patch"), 204: _NOTHING},
            _path("volume"),
            _PART,
        )
    },
    "/volumes/{volume}/snapshots": {
        "get": _operation(
            "Snapshots of a part, oldest first",
            {200: _json(_object(snapshots={"type": "array", "items": _SNAPSHOT}), "the list")},
            _path("volume"),
            _PART,
        )
    },
    "/volumes/{volume}/validations": {
        "post": _operation(
            "Queue a validation",
            {202: _json(_object(validation=_TEXT, snapshot=_TEXT, sequence=_WHOLE), "the ticket")},
            _path("volume"),
            _PART,
            body=_body(
                {
                    "type": "object",
                    "properties": {
                        "snapshot": _optional(_TEXT),
                        "mode": {"enum": ["full", "incremental", "metadata"]},
                    },
                },
                required=False,
            ),
        )
    },
    "/volumes/{volume}/verdicts/{snapshot}": {
        "get": _operation(
            "The verdict of a snapshot",
            {200: _json(_OPEN, "the signed verdict, with `state`")},
            _path("volume"),
            _path("snapshot"),
            _PART,
            _VALIDATION,
            _WAIT,
            _SINCE,
        )
    },
    "/volumes/{volume}/findings/{snapshot}": {
        "get": _operation(
            "The findings of a validation, a JSON object a line",
            {200: _stream("application/x-ndjson", "the findings")},
            _path("volume"),
            _path("snapshot"),
            _PART,
            _VALIDATION,
        )
    },
    "/health": {
        "get": _operation(
            "Whether the service answers",
            {200: _json(_object(status=_TEXT, version=_TEXT, protocol=_WHOLE), "it does")},
            public=True,
        )
    },
    "/key": {
        "get": _operation(
            "The public key of verdicts",
            {200: _stream("application/x-pem-file", "PEM")},
            public=True,
        )
    },
    "/openapi.json": {"get": _operation("This description", {200: _json(_OPEN, "OpenAPI 3.1")}, public=True)},
}

SCHEMA: Final[Schema] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Mirrorkeep store",
        "version": __version__,
        "description": "Runs, manifests, snapshots and verdicts of one store. Data travels by WebDAV.",
    },
    "servers": [{"url": "/api/v1"}],
    "security": [{"token": []}, {"basic": []}],
    "paths": _PATHS,
    "components": {
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic"},
        },
        "responses": {"Problem": _PROBLEM},
    },
}
