"""The one error tree: every error that a user or a client can meet, with its stable code.

Each class says, as class attributes, what the field wants to know: the message template, the stable
code, the exit status of a command, the HTTP status of a response, and whether the same request may
simply be tried again.  Errors are raised near their cause and translated only at the edges (the CLI
turns them into one line and an exit status, the server into ``application/problem+json``, RFC 9457).
``docs/reference/errors.md`` is generated from this module.

Not here: any behaviour.  An error changes nothing; each docstring says what it means for the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


def printable(value: object) -> str:
    """Return ``value`` for a message: bytes as UTF-8 with lone surrogates escaped, never raising."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


class MirrorkeepError(Exception):
    """Something failed for a reason that has no better class; nothing that was committed is lost."""

    code: ClassVar[str] = "internal_error"
    template: ClassVar[str] = "{detail}"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.template.format_map({k: printable(v) for k, v in fields.items()}))

    def problem(self) -> dict[str, Any]:
        """Return the machine-readable body (RFC 9457) that a server answers with."""
        return {
            "type": f"urn:mirrorkeep:error:{self.code}",
            "title": str(self),
            "status": self.http_status,
            "code": self.code,
            "retryable": self.retryable,
            "fields": {key: printable(value) for key, value in self.fields.items()},
        }

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross the pipe between worker and coordinator
        return _rebuild, (type(self), self.fields)


def _rebuild(cls: type[MirrorkeepError], fields: dict[str, Any]) -> MirrorkeepError:
    return cls(**fields)


def all_errors() -> Iterator[type[MirrorkeepError]]:
    """Yield every error class, parents first; codes are unique (a unit test holds that)."""
    stack: list[type[MirrorkeepError]] = [MirrorkeepError]
    while stack:
        cls = stack.pop(0)
        yield cls
        stack.extend(cls.__subclasses__())


# --- usage and rights -------------------------------------------------------------------------


class BadUsage(MirrorkeepError):
    """The command or request asks for something that cannot be meant; nothing was done."""

    code = "bad_usage"
    exit_status = 2
    http_status = 400


class NotAuthenticated(MirrorkeepError):
    """No credentials, or wrong ones; nothing was done."""

    code = "not_authenticated"
    template = "not authenticated: {detail}"
    exit_status = 5
    http_status = 401


class NotAuthorised(MirrorkeepError):
    """The credentials are good but do not reach this far; nothing was done."""

    code = "not_authorised"
    template = "not authorised: {detail}"
    exit_status = 5
    http_status = 403


class NotFound(MirrorkeepError):
    """The named thing does not exist (or the caller may not know that it does)."""

    code = "not_found"
    template = "not found: {what}"
    http_status = 404


class AlreadyExists(MirrorkeepError):
    """The name is taken; the existing thing was left as it is."""

    code = "already_exists"
    template = "{what} exists already"
    http_status = 409


class NewerKept(MirrorkeepError):
    """What a restore found in the way is newer than what was to come, and stays as it is."""

    code = "newer_kept"
    template = "what is there is newer and was kept (--overwrite-newer replaces it)"
    http_status = 409


# --- formats ----------------------------------------------------------------------------------


class MalformedManifest(MirrorkeepError):
    """A manifest cannot be read at ``offset`` (bytes from its start); it was not used."""

    code = "malformed_manifest"
    template = "malformed manifest at byte {offset}: {detail}"
    http_status = 400


class ForeignManifest(MirrorkeepError):
    """A sound manifest that does not belong to this snapshot; no finding was made from it (VAL-15)."""

    code = "foreign_manifest"
    template = "this manifest does not belong to snapshot {snapshot}: {detail}"
    http_status = 409


class MalformedSidecar(MirrorkeepError):
    """A sidecar cannot be read; the file it shadows counts as unverified and is sent again."""

    code = "malformed_sidecar"
    template = "malformed sidecar: {detail}"


class MalformedSignature(MirrorkeepError):
    """A signature cannot be used; the file is sent whole (DEL-13)."""

    code = "malformed_signature"
    template = "malformed signature: {detail}"
    http_status = 400


class MalformedDelta(MirrorkeepError):
    """A delta cannot be applied; the old file stays."""

    code = "malformed_delta"
    template = "malformed delta: {detail}"
    http_status = 400


class MalformedBundle(MirrorkeepError):
    """A bundle is not well framed; it is refused whole, none of its frames was applied."""

    code = "malformed_bundle"
    template = "malformed bundle at byte {offset}: {detail}"
    http_status = 400


class MalformedRequest(MirrorkeepError):
    """A request's headers, query or body make no sense; nothing was changed."""

    code = "malformed_request"
    template = "malformed request: {detail}"
    http_status = 400


# --- content ----------------------------------------------------------------------------------


class DigestMismatch(MirrorkeepError):
    """Received bytes do not hash to the sender's digest; the old file stays."""

    code = "digest_mismatch"
    template = "{path}: content does not match its digest (expected {expected}, got {actual})"
    http_status = 422
    retryable = True


class LengthMismatch(MirrorkeepError):
    """More or fewer bytes arrived than were announced; the old file stays."""

    code = "length_mismatch"
    template = "{path}: {actual} bytes arrived, {expected} were announced"
    http_status = 400
    retryable = True


class PathRefused(MirrorkeepError):
    """A path would leave its tree, follow a link, or name something hidden; nothing was touched."""

    code = "path_refused"
    template = "refused path {path}: {detail}"
    http_status = 403


class GenerationConflict(MirrorkeepError):
    """The file moved on since the caller looked at it; the newer state stays (META-13)."""

    code = "generation_conflict"
    template = "{path} changed in the meantime"
    http_status = 412


class PatchTargetMissing(MirrorkeepError):
    """PATCH-APPLY names a file or an offset that does not exist (TX-18); nothing was changed."""

    code = "patch_target_missing"
    template = "{path}: {detail}"
    http_status = 500


class PreconditionFailed(MirrorkeepError):
    """A condition of the request (If, If-Match, If-None-Match, Overwrite) does not hold; nothing was done."""

    code = "precondition_failed"
    template = "{path}: {detail}"
    http_status = 412


class ParentMissing(MirrorkeepError):
    """The collection that the resource would lie in does not exist; nothing was done."""

    code = "parent_missing"
    template = "{path}: the collection above it does not exist"
    http_status = 409


class NotAllowedHere(MirrorkeepError):
    """The verb makes no sense for what is at this path; nothing was done."""

    code = "not_allowed_here"
    template = "{path}: {detail}"
    http_status = 405


class UnsupportedBody(MirrorkeepError):
    """The request carries a body of a kind that this verb does not take; nothing was done."""

    code = "unsupported_body"
    template = "{detail}"
    http_status = 415


class ForeignDestination(MirrorkeepError):
    """COPY or MOVE names a place that this server cannot reach from there; nothing was done."""

    code = "foreign_destination"
    template = "{detail}"
    http_status = 502


class Locked(MirrorkeepError):
    """A WebDAV lock of somebody else covers the resource; nothing was changed."""

    code = "locked"
    template = "{path} is locked"
    http_status = 423


class ReadOnly(MirrorkeepError):
    """Snapshots, mirrored parts and read-only users refuse writes; nothing was changed."""

    code = "read_only"
    template = "{path} is read-only: {detail}"
    http_status = 403


class TooLarge(MirrorkeepError):
    """The request is larger than the server accepts in one piece; nothing was changed."""

    code = "too_large"
    template = "{detail}"
    http_status = 413


# --- runs -------------------------------------------------------------------------------------


class RunSuperseded(MirrorkeepError):
    """A newer run of the same part has begun; writes of this one are refused, nothing is torn."""

    code = "run_superseded"
    template = "run {run} was superseded by a newer run of the same part"
    http_status = 409


class StoreRestarted(MirrorkeepError):
    """The store restarted since this run's last commit; what was not committed is sent again."""

    code = "store_restarted"
    template = "the store restarted since run {run} began; resuming from its last commit"
    http_status = 409
    retryable = True


class PartNesting(MirrorkeepError):
    """Parts never nest: the path lies inside, or around, an existing part; nothing was done."""

    code = "part_nesting"
    template = "{path} lies inside or around the part {other}"
    http_status = 409


class DeletionGuard(MirrorkeepError):
    """The run would delete more than its share allows; it stopped and deleted nothing."""

    code = "deletion_guard"
    template = (
        "this run would delete {removed} of {total} entries, more than the limit of {limit}; nothing was"
        " deleted. If that is meant, run again with --allow-deletes"
    )
    exit_status = 6


class SourceUnreadable(MirrorkeepError):
    """An entry of the source could not be read; the mirror keeps its last good state of it."""

    code = "source_unreadable"
    template = "{path}: {detail}"
    exit_status = 3


class SourceUnmounted(MirrorkeepError):
    """A file system of the source is not mounted as last time; the mirror keeps what it has of it."""

    code = "source_unmounted"
    template = (
        "{path}: another file system was mounted here last time and is not now; the mirror keeps what it has"
        " of it. Mount it, or if it is gone for good run once with --allow-deletes"
    )
    exit_status = 6


class SourceChanged(MirrorkeepError):
    """A file kept changing while it was read; the mirror keeps its last good state of it."""

    code = "source_changed"
    template = "{path} changed while it was being read"
    exit_status = 3
    retryable = True


class SourceAltered(MirrorkeepError):
    """The content of a source file changed although its size and times did not: it rots, or somebody tampered
    with it.  The mirror keeps the old version."""

    code = "source_altered"
    template = "{path}: the content changed although size and times did not; the mirror keeps the old version"
    exit_status = 3


class ValidationDifferences(MirrorkeepError):
    """Validation found differences; each was named, the next run repairs them."""

    code = "validation_differences"
    template = "{findings} differences found in snapshot {snapshot}"
    exit_status = 4


class VerdictRefused(MirrorkeepError):
    """A verdict's key, signature, manifest or chain does not hold; nothing may be concluded from it.

    A run that waited for it is closed all the same.
    """

    code = "verdict_refused"
    template = "the verdict does not hold: {detail}"


class Interrupted(MirrorkeepError):
    """A person or the schedule stopped the run; the next one resumes from the last commit."""

    code = "interrupted"
    template = "interrupted; the next run resumes where this one stopped"
    exit_status = 130


# --- machines and networks --------------------------------------------------------------------


class NoSpace(MirrorkeepError):
    """The pool is full; old files stay, the run can go on once there is room."""

    code = "no_space"
    template = "no space left on the storage: {detail}"
    http_status = 507


class StorageFailure(MirrorkeepError):
    """The storage answered with an I/O error; old files stay, nothing uncommitted counts."""

    code = "storage_failure"
    template = "storage failure: {detail}"


class DamagedRecord(MirrorkeepError):
    """A small record, of the store as a rule, cannot be read; nothing was changed.

    A power cut does not leave one: the disk, or somebody's hand, damaged it.  It has to be put back from a
    copy of the store's folder.
    """

    code = "damaged_record"
    template = "the record {path} is damaged: {detail}"


class SystemFailure(MirrorkeepError):
    """The system refused a file or a call on this machine, which the message names; what was committed is
    kept, and the same command may be run again once that is put right."""

    code = "system_error"


class StoreUnreachable(MirrorkeepError):
    """The store does not answer; committed work is kept and the next run resumes."""

    code = "store_unreachable"
    template = "cannot reach {url}: {detail}"
    http_status = 503
    retryable = True


class ServerRefused(MirrorkeepError):
    """The store answered with an error that has no local class."""

    code = "server_refused"
    template = "the store refused: {detail} (HTTP {status})"


class RequestTimeout(MirrorkeepError):
    """The body did not arrive in time; nothing was changed."""

    code = "request_timeout"
    template = "no data for {seconds} s"
    http_status = 408
    retryable = True


class EngineMissing(MirrorkeepError):
    """Something that this machine lacks is needed; the message says how to get it."""

    code = "engine_missing"
    template = "{what} is missing: {remedy}"


def error_for_code(code: str, fields: dict[str, Any], status: int) -> MirrorkeepError:
    """Rebuild the error that a server reported under ``code``; ``fields`` may lack template names."""
    for cls in all_errors():
        if cls.code == code:
            try:
                return cls(**fields)
            except KeyError:
                break
    return ServerRefused(detail=fields.get("title", code), status=status)
