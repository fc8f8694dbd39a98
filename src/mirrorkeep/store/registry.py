"""Who may do what: volumes, tokens and users, one small JSON file each, readable by every worker.

Answers for: names of volumes, credentials (a token's SHA-256 names its file, the token itself is stored
nowhere; passwords as scrypt hashes) and the scopes they grant.  Changes made by another process are seen
at the next look, because every look checks the file.

Not here: the trees of a volume (``pool``, ``volume``), HTTP authentication schemes (``server``).
A crash between any two lines leaves each object whole or absent; a token whose volume is gone grants
nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from mirrorkeep.errors import AlreadyExists, BadUsage, NotFound
from mirrorkeep.store import locks
from mirrorkeep.store.records import RecordCache, make_durable_folder, remove_record, write_record
from mirrorkeep.tree.durability import flush_directory

_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCRYPT: Final = {"n": 1 << 14, "r": 8, "p": 1}
"""16 MiB and about 40 ms a check: paid once a minute by a client that sends its password every time."""
_CACHED_CHECK_S: Final = 60.0
_CACHED_CHECKS: Final = 1024
_TOKEN_ID: Final = 12


@dataclass(frozen=True)
class Scope:
    """A place that a grant reaches: the part's subtree of a volume, for reading or also for writing."""

    volume: str
    part: bytes
    write: bool

    def covers(self, volume: str, path: bytes) -> bool:
        """Whether ``path`` of ``volume`` lies in this scope."""
        if volume != self.volume:
            return False
        return not self.part or path == self.part or path.startswith(self.part + b"/")


@dataclass(frozen=True)
class Grant:
    """What proven credentials allow.  ``principal`` goes into the audit trail."""

    principal: str
    kind: Literal["agent", "user"]
    scopes: tuple[Scope, ...]

    def may_read(self, volume: str, path: bytes) -> bool:
        """Whether ``path`` of ``volume`` (tip and snapshots alike) may be read."""
        return any(scope.covers(volume, path) for scope in self.scopes)

    def may_write(self, volume: str, path: bytes) -> bool:
        """Whether ``path`` of the tip of ``volume`` may be written (history never may)."""
        return any(scope.write and scope.covers(volume, path) for scope in self.scopes)


class Registry:
    """The registry of the store at ``data``.  Threads and processes may share it freely."""

    def __init__(self, data: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = os.path.join(data, "registry")
        self._clock = clock
        self._cache = RecordCache()
        self._checked: dict[bytes, tuple[float, str, str]] = {}
        self._check_key = secrets.token_bytes(32)

    def prepare(self) -> None:
        """Make the registry's folders, for the owner alone.  Repeatable."""
        for kind in ("volumes", "tokens", "users"):
            make_durable_folder(os.path.join(self._folder, kind))

    # --- volumes --------------------------------------------------------------------------------

    def create_volume(self, name: str) -> None:
        """Record the volume.  Raises BadUsage for a name that cannot be one, AlreadyExists."""
        path = self._volume_path(name)
        self.refuse_existing(name)
        record = {"name": name, "id": secrets.token_hex(8), "created": time.time()}
        write_record(path, record, mode=0o600)

    def refuse_existing(self, name: str) -> None:
        """Raise AlreadyExists for a volume that is there, durably when this is heard."""
        path = self._volume_path(name)
        if os.path.exists(path):
            flush_directory(os.path.dirname(path))  # who made it may have been killed before that
            raise AlreadyExists(what=f"volume {name}")

    def volumes(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        return [name for name in self._recorded() if self.has_volume(name)]

    def deletions(self) -> list[str]:
        """Return the names of volumes whose deletion was decided and has not come to its end."""
        return [name for name in self._recorded() if self.is_being_deleted(name)]

    def _recorded(self) -> list[str]:
        try:
            names = os.listdir(os.path.join(self._folder, "volumes"))
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def is_being_deleted(self, name: str) -> bool:
        """Whether a deletion of the volume was decided and has not come to its end."""
        if _VOLUME_NAME.fullmatch(name) is None:
            return False
        record = self._cache.read(self._volume_path(name))
        return record is not None and bool(record.get("deleted"))

    def changing(self) -> locks.Held:
        """Hold off everybody else who makes or deletes volumes."""
        return locks.exclusive(os.path.join(self._folder, "lock"))

    def has_volume(self, name: str) -> bool:
        """Whether the volume exists (about 2 us)."""
        return self.volume_identity(name) is not None

    def volume_identity(self, name: str) -> str | None:
        """Return what tells the volume from earlier ones of its name, None when there is none (2 us)."""
        if _VOLUME_NAME.fullmatch(name) is None:
            return None
        record = self._cache.read(self._volume_path(name))
        if record is None or record.get("deleted"):
            return None
        return str(record.get("id") or record["created"])

    def decide_deletion(self, name: str) -> None:
        """Have the volume be no more, durably: what is left of it is to be removed, by whoever comes next.

        Raises NotFound.
        """
        record = self._cache.read(self._volume_path(name))
        if record is None or record.get("deleted"):
            flush_directory(os.path.dirname(self._volume_path(name)))  # who deleted it may have been killed
            raise NotFound(what=f"volume {name}")
        write_record(self._volume_path(name), {**record, "deleted": True}, mode=0o600)

    def delete_volume(self, name: str) -> None:
        """Forget the volume, its tokens, and what users may do with it.

        Raises NotFound.  The volume goes last, so that a crash leaves nothing for a later namesake.
        """
        if self._cache.read(self._volume_path(name)) is None:
            raise NotFound(what=f"volume {name}")
        tokens = os.path.join(self._folder, "tokens")
        for file in os.listdir(tokens):
            record = self._token_record(file)
            if record is not None and record["volume"] == name:
                remove_record(os.path.join(tokens, file))
        flush_directory(tokens)  # those too that somebody removed who was killed before that
        for user in self.users():
            if name in self.rights(user):
                self.grant_user(user, name, None)
        remove_record(self._volume_path(name))

    def check_name(self, name: str) -> None:
        """Raise BadUsage unless ``name`` can name a volume."""
        if not _VOLUME_NAME.fullmatch(name):
            raise BadUsage(
                detail=f"{name!r} cannot name a volume: 1 to 64 letters, digits, '.', '_', '-',"
                " beginning with a letter or digit"
            )

    def _volume_path(self, name: str) -> str:
        self.check_name(name)
        return os.path.join(self._folder, "volumes", f"{name}.json")

    # --- tokens ---------------------------------------------------------------------------------

    def create_token(self, volume: str, part: bytes = b"") -> str:
        """Return a new token that may write the part's tip and read its history; shown only here."""
        if not self.has_volume(volume):
            raise NotFound(what=f"volume {volume}")
        token = _new_token()
        record = {"volume": volume, "part": quote_from_bytes(part), "created": time.time()}
        write_record(self._token_path(token), record, mode=0o600)
        return token

    def tokens(self, volume: str) -> list[dict[str, Any]]:
        """Return the volume's tokens, oldest first: ``id`` (as in the access log), ``part``, ``created``."""
        rows = []
        for file in os.listdir(os.path.join(self._folder, "tokens")):
            record = self._token_record(file)
            if record is not None and record["volume"] == volume:
                part = unquote_to_bytes(record["part"])
                rows.append({"id": file[:_TOKEN_ID], "part": part, "created": record["created"]})
        return sorted(rows, key=lambda row: (row["created"], row["id"]))

    def revoke_token(self, volume: str, token_id: str) -> None:
        """Have the token grant nothing from the next request on, durably.  Raises NotFound.

        ``token_id`` is what :meth:`tokens` and the access log call it, or the token itself.
        """
        folder = os.path.join(self._folder, "tokens")
        own = os.path.basename(self._token_path(token_id))
        for file in os.listdir(folder):
            record = self._token_record(file)
            if (
                record is not None
                and record["volume"] == volume
                and token_id
                and (file == own or file[:_TOKEN_ID] == token_id)
            ):
                remove_record(os.path.join(folder, file))
                return
        flush_directory(folder)  # who revoked it may have been killed, or told of an error, before that
        raise NotFound(what=f"token {token_id if len(token_id) <= _TOKEN_ID else '(not shown)'} of {volume}")

    def _token_record(self, file: str) -> dict[str, Any] | None:
        return (
            self._cache.read(os.path.join(self._folder, "tokens", file)) if file.endswith(".json") else None
        )

    def authenticate_token(self, token: str) -> Grant | None:
        """Return what ``token`` grants, None when it is not one (about 4 us when known)."""
        path = self._token_path(token)
        record = self._cache.read(path)
        if record is None or not self.has_volume(record["volume"]):
            return None
        scope = Scope(record["volume"], unquote_to_bytes(record["part"]), write=True)
        principal = f"token:{os.path.basename(path)[:_TOKEN_ID]}"
        return Grant(principal, "agent", (scope,))

    def _token_path(self, token: str) -> str:
        # A lookup by digest leaks nothing through its time: the attacker cannot steer SHA-256.
        name = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        return os.path.join(self._folder, "tokens", f"{name}.json")

    # --- users ----------------------------------------------------------------------------------

    def create_user(self, name: str, password: str, volumes: Mapping[str, str]) -> None:
        """Record or replace a user with rights ``{volume: "read" | "write"}``.  Raises BadUsage."""
        if not name or len(quote(name, safe="")) > 200 or name == "token":
            raise BadUsage(detail=f"{name!r} cannot name a user")
        if not set(volumes.values()) <= {"read", "write"}:
            raise BadUsage(detail="a user's right on a volume is read or write")
        salt = secrets.token_bytes(16)
        record = {
            "name": name,
            "salt": base64.b64encode(salt).decode(),
            "hash": base64.b64encode(_scrypt(password, salt, _SCRYPT)).decode(),
            **_SCRYPT,
            "volumes": dict(volumes),
        }
        write_record(self._user_path(name), record, mode=0o600)

    def rights(self, name: str) -> dict[str, str]:
        """Return the user's rights, a volume each.  Raises NotFound."""
        record = self._cache.read(self._user_path(name))
        if record is None:
            raise NotFound(what=f"user {name}")
        return dict(record["volumes"])

    def grant_user(self, name: str, volume: str, right: str | None) -> None:
        """Give a user a right on a volume, or take it away (None).  Raises NotFound, BadUsage."""
        if right not in ("read", "write", None):
            raise BadUsage(detail="a user's right on a volume is read or write")
        record = self._cache.read(self._user_path(name))
        if record is None:
            raise NotFound(what=f"user {name}")
        volumes = {**record["volumes"], volume: right}
        kept = {volume: right for volume, right in volumes.items() if right is not None}
        write_record(self._user_path(name), {**record, "volumes": kept}, mode=0o600)

    def users(self) -> list[str]:
        """Return the names of all users, sorted."""
        names = os.listdir(os.path.join(self._folder, "users"))
        return sorted(unquote(name.removesuffix(".json")) for name in names if name.endswith(".json"))

    def delete_user(self, name: str) -> None:
        """Forget the user.  Raises NotFound."""
        if not remove_record(self._user_path(name)):
            raise NotFound(what=f"user {name}")

    def authenticate_user(self, name: str, password: str) -> Grant | None:
        """Return what the user may, None for a wrong name or password (both take as long).

        A successful check is remembered for 60 s under a keyed hash, in memory only, and only while the
        user's record stays the same.
        """
        record = self._cache.read(self._user_path(name)) if name else None
        if record is None:
            _scrypt(password, b"\0" * 16, _SCRYPT)
            return None
        key = hmac.digest(self._check_key, f"{name}\0{password}".encode("utf-8", "surrogateescape"), "sha256")
        known = self._checked.get(key)
        if known is None or known[0] < self._clock() or known[1] != record["hash"]:
            salt, expected = base64.b64decode(record["salt"]), base64.b64decode(record["hash"])
            if not hmac.compare_digest(_scrypt(password, salt, record), expected):
                return None
            if len(self._checked) >= _CACHED_CHECKS:
                self._checked.clear()
            self._checked[key] = (self._clock() + _CACHED_CHECK_S, record["hash"], name)
        scopes = tuple(Scope(volume, b"", right == "write") for volume, right in record["volumes"].items())
        return Grant(f"user:{name}", "user", scopes)

    def _user_path(self, name: str) -> str:
        return os.path.join(self._folder, "users", f"{quote(name, safe='')[:240]}.json")


def _scrypt(password: str, salt: bytes, cost: Mapping[str, Any]) -> bytes:
    secret = password.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(
        secret, salt=salt, n=cost["n"], r=cost["r"], p=cost["p"], maxmem=64 * 1024 * 1024, dklen=32
    )


def _new_token() -> str:
    """Return 43 letters, digits, ``-`` and ``_`` (256 random bits), a letter or digit first.

    Tokens are typed as arguments of other people's tools (``rclone obscure``, ``litmus``), which
    take a leading ``-`` for an option.
    """
    while not (token := secrets.token_urlsafe(32))[0].isalnum():
        pass
    return token
