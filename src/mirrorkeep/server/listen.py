"""The address that a service listens at: read, resolved, and kept for this service alone.

Workers listen side by side at one port (SO_REUSEPORT), and the system gives each connection to any of
them: those of a second service at the same port would get a share of the first one's clients.  So a service
first makes sure that nobody listens there, and holds the address as long as it runs.

Not here: listening (the HTTP layer's workers do).  All of it ends with the process.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from mirrorkeep.errors import BadUsage, MirrorkeepError

FREE_WITHIN_S: Final = 2.0
"""How long a start waits for an address: the workers of a service that was just killed may still end."""
_OTHER_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class AddressInUse(MirrorkeepError):
    """Another program, or another store, listens at the address; nothing was started."""

    code = "address_in_use"
    template = "another program listens at {address}; name another one with --listen"
    http_status = 409


@dataclass(frozen=True, slots=True)
class Listen:
    """A listen address; port 0 is replaced by a free one before anything listens."""

    host: str
    port: int
    name: str = ""
    """The name that ``host`` was resolved from."""

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``HOST:PORT`` or ``[IPV6]:PORT``; raises BadUsage."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadUsage(detail=f"{text}: an address is HOST:PORT")
        return cls(host or "0.0.0.0", int(port))

    @property
    def shown(self) -> str:
        """``HOST:PORT`` for URLs: with the name where one was given, as the certificate has it."""
        host = self.name or self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@contextmanager
def reserved(address: Listen) -> Iterator[Listen]:
    """Find out address and port, and keep others from them; workers bind beside this socket.

    Raises AddressInUse, BadUsage when the host is not one of this machine.
    """
    for number, (family, place) in enumerate(found := _resolve(address)):
        deadline = time.monotonic() + FREE_WITHIN_S
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim, _socket(family) as holder:
            try:
                while not _take(claim, holder, family, place):
                    if time.monotonic() > deadline:
                        raise AddressInUse(address=address.shown)
                    time.sleep(0.05)
            except OSError as error:
                if error.errno in _OTHER_FAMILY and number + 1 < len(found):
                    continue
                raise BadUsage(detail=f"cannot listen on {address.shown}: {error.strerror}") from None
            name = "" if address.host == place[0] or ":" in address.host else address.host
            yield Listen(place[0], holder.getsockname()[1], name)
            return


def _resolve(address: Listen) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        rows = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        raise BadUsage(detail=f"cannot listen on {address.shown}: {reason}") from None
    return [(family, place) for family, _, _, _, place in rows]


def _socket(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _take(claim: socket.socket, holder: socket.socket, family: socket.AddressFamily, place: Any) -> bool:
    """Bind ``holder`` where nobody listens and no other service starts; returns whether that is so."""
    try:
        if place[1] and not claim.getsockname():
            # Of two services that start at once neither listens yet; this name only one of them can have.
            claim.bind(f"\0mirrorkeep-listen {place[0]} {place[1]}")
        with _socket(family) as probe:  # fails beside one who listens: it does not share the port
            probe.bind(place)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True
