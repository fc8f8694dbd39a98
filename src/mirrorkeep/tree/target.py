"""What names a tree on a store, and what opens it: target URLs and tokens, as people type and paste them.

What cannot be meant is refused here, before anything is sent.  No message shows a token or a password.

Not here: whether the target exists, and whether the token opens it (the store says that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from mirrorkeep.errors import BadUsage

_FORM: Final = "a target is https://HOST:PORT/volumes/NAME[/PATH] or a directory"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tree lives on a store: ``https://HOST:PORT/volumes/VOLUME/PART``."""

    host: str
    port: int
    volume: str
    """The volume's name as it stands in a URL."""
    part: bytes

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read a target URL; raises BadUsage."""
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise BadUsage(
                detail=f"{_FORM}, without a user and a password; the token goes into MIRRORKEEP_TOKEN or a"
                " --token-file"
            )
        for mark in "?#":
            if mark in url:
                raise BadUsage(detail=f"{url}: {_FORM}; in a PATH write %{ord(mark):02X} for {mark}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadUsage(detail=f"{url}: {error}; {_FORM}") from error
        if parts.scheme != "https" or not host or port == 0:
            raise BadUsage(detail=f"{url}: {_FORM}")
        pieces = parts.path.strip("/").split("/", 2)
        if len(pieces) < 2 or pieces[0] != "volumes":
            raise BadUsage(detail=f"{url}: the path of a target begins with /volumes/NAME")
        volume = unquote_to_bytes(pieces[1])
        part = unquote_to_bytes(pieces[2]).strip(b"/") if len(pieces) > 2 else b""
        for name in (volume, *(part.split(b"/") if part else ())):
            if name in (b"", b".", b"..") or b"\0" in name:
                raise BadUsage(detail=f"{url}: the PATH of a target names folders, without . and .. and //")
        return cls(host, port or 443, quote(volume, safe=""), part)

    @property
    def origin(self) -> str:
        """``HOST:PORT``, for messages."""
        return f"{self.host}:{self.port}"


def clean_token(text: str, origin: str) -> str:
    """Return a token without the white space around it; raises BadUsage for what no token can be.

    ``origin`` says where it came from; what it holds is never shown.
    """
    token = text.strip()
    if not token:
        raise BadUsage(detail=f"{origin} holds no token")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadUsage(
            detail=f"{origin} holds something else than one token: a token is one line of plain letters,"
            " digits and signs, without white space"
        )
    return token
