"""Who is asking: the Authorization header in, a grant of the registry out.

Two schemes: ``Bearer TOKEN``, and ``Basic`` with the user name ``token`` and a token as the password (so
that any WebDAV client can mount) or with a user of the registry.  A wrong credential is told from a
missing one nowhere.  Credentials are never logged and never kept.

Not here: what a grant reaches (``store.registry``); which requests need one (``app``).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from mirrorkeep.errors import NotAuthenticated, NotAuthorised, NotFound
from mirrorkeep.store.registry import Grant, Registry

TOKEN_USER: Final = "token"
MAX_CREDENTIAL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What the header says; ``user`` is None for a token."""

    user: str | None
    secret: str


def parse_credentials(header: str) -> Credentials:
    """Read an Authorization header; raises NotAuthenticated when there is none that makes sense."""
    if not header:
        raise NotAuthenticated(detail="credentials are needed")
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if not value or len(value) > MAX_CREDENTIAL_BYTES:
        raise NotAuthenticated(detail="the credentials cannot be read")
    if scheme.lower() == "bearer":
        return Credentials(None, value)
    if scheme.lower() == "basic":
        try:
            user, colon, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise NotAuthenticated(detail="the credentials cannot be read") from None
        if colon:
            return Credentials(None if user == TOKEN_USER else user, secret)
    raise NotAuthenticated(detail="the credentials cannot be read")


def authenticate(registry: Registry, credentials: Credentials) -> Grant:
    """Return the grant; raises NotAuthenticated.  A password may cost 40 ms: call it in a thread."""
    if credentials.user is None:
        grant = registry.authenticate_token(credentials.secret)
    else:
        grant = registry.authenticate_user(credentials.user, credentials.secret)
    if grant is None:
        raise NotAuthenticated(detail="wrong credentials")
    return grant


def require_read(grant: Grant, volume: str, path: bytes) -> None:
    """Raise NotFound unless the grant reads here: what one may not read does not exist."""
    if not grant.may_read(volume, path):
        raise NotFound(what=f"/volumes/{volume}")


def require_write(grant: Grant, volume: str, path: bytes) -> None:
    """Raise NotFound or NotAuthorised unless the grant writes here."""
    require_read(grant, volume, path)
    if not grant.may_write(volume, path):
        raise NotAuthorised(detail="these credentials may read here, not write")
