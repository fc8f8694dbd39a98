"""What a verdict is: canonical JSON, signed, chained, and checkable without the store.

Answers for: the bytes that are signed (:func:`canonical`), the digest by which the next verdict names
this one (:func:`digest_of`), the offline checks, and a key rotation that old and new key both sign.
``docs/reference/verdict.md`` describes the form for other programs.

Not here: how a verdict is found (``validation``), where its files lie (``findings``), the store's keys
(``keys``).  Nothing here writes; a crash leaves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BufferedReader
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from mirrorkeep.errors import VerdictRefused

VERSION: Final = 1
ALGORITHM: Final = "ed25519"

PENDING: Final = "pending"
VERIFIED: Final = "verified"
REPAIRED: Final = "repaired"
FAILED: Final = "failed"

FIRST: Final = "0" * 64
"""What the first verdict of a part names as the one before it."""

ENVELOPE: Final = frozenset({"state", "progress", "links"})
"""Keys that an answer of the store adds around a verdict; neither signed nor part of its digest."""

Verdict = dict[str, Any]
Sign = Callable[[bytes], bytes]

_REQUIRED: Final = {
    "version": int,
    "volume": str,
    "part": str,
    "snapshot": str,
    "sequence": int,
    "manifest": str,
    "verdict": str,
    "mode": str,
    "coverage": dict,
    "findings": int,
    "findings_digest": str,
    "started": str,
    "ended": str,
    "previous": str,
    "key": str,
}


def canonical(statement: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON object in its one form: sorted keys, no spaces, ASCII."""
    return json.dumps(
        statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def digest_of(verdict: Mapping[str, Any]) -> str:
    """Return the lowercase hex SHA-256 of a whole verdict, signature included."""
    whole = {key: value for key, value in verdict.items() if key not in ENVELOPE}
    return hashlib.sha256(canonical(whole)).hexdigest()


def sign_verdict(statement: Mapping[str, Any], sign: Sign, public_key: bytes) -> Verdict:
    """Return ``statement`` with the key's fingerprint and its Ed25519 signature (base64) added."""
    signed = {**statement, "algorithm": ALGORITHM, "key": fingerprint(public_key)}
    return {**signed, "signature": base64.b64encode(sign(canonical(signed))).decode("ascii")}


def fingerprint(public_key: bytes) -> str:
    """Return the lowercase hex SHA-256 of the raw 32 bytes of a public key (PEM, DER or raw)."""
    return hashlib.sha256(_raw(load_public_key(public_key))).hexdigest()


def load_public_key(data: bytes) -> Ed25519PublicKey:
    """Read a public key: PEM, or the raw 32 bytes, or their hex or base64.  Raises VerdictRefused."""
    text = data.strip()
    try:
        if text.startswith(b"-----"):
            key = load_pem_public_key(text)
            if not isinstance(key, Ed25519PublicKey):
                raise VerdictRefused(detail="the key is not an Ed25519 public key")
            return key
        if len(data) == 32:
            return Ed25519PublicKey.from_public_bytes(data)
        raw = (
            bytes.fromhex(text.decode("ascii")) if len(text) == 64 else base64.b64decode(text, validate=True)
        )
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise VerdictRefused(detail=f"the key cannot be read: {error}") from error


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


# --- checks ------------------------------------------------------------------------------------


def check_form(verdict: Mapping[str, Any]) -> None:
    """Raise VerdictRefused unless every field is there with its type and the version is known."""
    for name, kind in _REQUIRED.items():
        if not isinstance(verdict.get(name), kind):
            raise VerdictRefused(detail=f"the field {name!r} is missing or of the wrong type")
    if verdict["version"] != VERSION:
        raise VerdictRefused(detail=f"version {verdict['version']} is not known here")


def check_signature(verdict: Mapping[str, Any], public_keys: Sequence[bytes]) -> None:
    """Raise VerdictRefused unless one of ``public_keys`` made the verdict's signature."""
    check_form(verdict)
    body = {key: value for key, value in verdict.items() if key not in ENVELOPE}
    signature = _decode_signature(body.pop("signature", None))
    by_fingerprint = {fingerprint(key): key for key in public_keys}
    key = by_fingerprint.get(verdict["key"])
    if key is None:
        raise VerdictRefused(detail=f"it was signed by another key ({verdict['key'][:16]}...)")
    _verify(key, signature, canonical(body), "the signature does not match: the verdict was altered")


def check_manifest(verdict: Mapping[str, Any], stream: BufferedReader) -> None:
    """Raise VerdictRefused unless the manifest in ``stream`` is the one that the verdict is about."""
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != verdict["manifest"]:
        raise VerdictRefused(detail=f"it is about another manifest ({verdict['manifest']}, given {digest})")


def check_chain(verdict: Mapping[str, Any], earlier: Iterable[Mapping[str, Any]]) -> int:
    """Follow ``previous`` from ``verdict`` through all of ``earlier`` (in any order); return the links.

    Raises VerdictRefused when one of them is not on the chain: verdicts were removed or rewritten.
    """
    known = {digest_of(one): one for one in earlier}
    links, current = 0, verdict
    while known:
        found = known.pop(current["previous"], None)
        if found is None:
            raise VerdictRefused(detail=f"the chain breaks before the verdict of {current['snapshot']}")
        if (found["volume"], found["part"]) != (current["volume"], current["part"]):
            raise VerdictRefused(detail="the chain leads to another part")
        current = found
        links += 1
    return links


# --- rotation ----------------------------------------------------------------------------------


def make_rotation(old: Sign, old_key: bytes, new: Sign, new_key: bytes, time: str) -> dict[str, Any]:
    """Return the statement that ``new_key`` takes over from ``old_key``, signed by both."""
    body = {
        "version": VERSION,
        "rotation": True,
        "time": time,
        "old_key": base64.b64encode(_raw(load_public_key(old_key))).decode("ascii"),
        "new_key": base64.b64encode(_raw(load_public_key(new_key))).decode("ascii"),
    }
    payload = canonical(body)
    return {
        **body,
        "signature_old": base64.b64encode(old(payload)).decode("ascii"),
        "signature_new": base64.b64encode(new(payload)).decode("ascii"),
    }


def follow_rotations(key: bytes, rotations: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """Return ``key`` (raw) and every key that it handed over to, each step checked on both sides.

    Rotations that do not start at a trusted key are not followed.  Raises VerdictRefused for a
    rotation whose signatures are wrong.
    """
    trusted = [_raw(load_public_key(key))]
    left = list(rotations)
    while True:
        step = next((one for one in left if _rotation_key(one, "old_key") in trusted), None)
        if step is None:
            return trusted
        left.remove(step)
        body = {k: v for k, v in step.items() if not k.startswith("signature_")}
        new_key = _rotation_key(step, "new_key")
        for signer, name in ((_rotation_key(step, "old_key"), "signature_old"), (new_key, "signature_new")):
            signature = _decode_signature(step.get(name))
            _verify(signer, signature, canonical(body), f"a key rotation's {name} does not match")
        trusted.append(new_key)


def rotations_between(statements: Sequence[Mapping[str, Any]], old: str, new: str) -> list[Mapping[str, Any]]:
    """Return the statements that lead from the key of fingerprint ``old`` to that of ``new``, in order.

    Statements come oldest first; nothing is returned when they do not lead there.
    """
    path: list[Mapping[str, Any]] = []
    for one in statements:
        if fingerprint(str(one["old_key"]).encode()) == old:
            path.append(one)
            old = fingerprint(str(one["new_key"]).encode())
            if old == new:
                return path
    return []


def stated_rotations(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the statements that a verdict carries.  Raises VerdictRefused when they are none."""
    stated = verdict.get("rotations", [])
    if not isinstance(stated, list) or not all(isinstance(one, dict) for one in stated):
        raise VerdictRefused(detail="its key rotations are malformed")
    return stated


def _rotation_key(rotation: Mapping[str, Any], name: str) -> bytes:
    return _raw(load_public_key(str(rotation.get(name, "")).encode()))


def _decode_signature(value: object) -> bytes:
    if not isinstance(value, str):
        raise VerdictRefused(detail="it is not signed")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise VerdictRefused(detail="its signature is not base64") from error


def _verify(key: bytes, signature: bytes, payload: bytes, complaint: str) -> None:
    try:
        load_public_key(key).verify(signature, payload)
    except InvalidSignature as error:
        raise VerdictRefused(detail=complaint) from error
