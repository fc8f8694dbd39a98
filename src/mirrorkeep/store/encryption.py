"""Encryption at rest: what protects a store at a place, and what to say where nothing does.

Answers for: naming it.  The storage layer encrypts (design section 6); a store whose blocks lie on an
encrypted device is ``luks``, any other ``unencrypted``, and that word is kept in ``store.json`` and shown.

Not here: setting engines up.  Looks, and changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mirrorkeep.errors import EngineMissing

UNENCRYPTED = "unencrypted"


@dataclass(frozen=True)
class Encryption:
    """What protects a store, and a sentence for the person who makes one without."""

    name: str
    warning: str = ""


def choose_encryption(data: str, wanted: str, device: str | None) -> Encryption:
    """Return what protects a store at ``data`` (or on ``device``).

    ``auto`` takes what is there.  Raises EngineMissing when ``wanted`` names an engine that is not.
    """
    encrypted = is_encrypted(device or data)
    if wanted == "luks" or (wanted == "auto" and encrypted):
        if not encrypted:
            raise EngineMissing(what="a LUKS device", remedy=f"put {device or data} on one (cryptsetup)")
        return Encryption("luks")
    if wanted in ("gocryptfs", "fscrypt"):
        remedy = "use a LUKS device under DATA (--encrypt luks), or --encrypt none"
        raise EngineMissing(what=f"the {wanted} engine", remedy=remedy)
    if wanted == "none":
        return Encryption(UNENCRYPTED)
    return Encryption(
        UNENCRYPTED,
        f"{device or data} is not encrypted at rest; put it on a LUKS device, or say --encrypt none",
    )


def is_encrypted(path: str) -> bool:
    """Whether the block device of ``path`` (a device or a place on one) is under dm-crypt, at any depth."""
    while not os.path.exists(path):
        path = os.path.dirname(os.path.abspath(path))
    found = os.stat(path)
    number = found.st_rdev or found.st_dev
    return _is_crypt(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _is_crypt(device: str) -> bool:
    try:
        with open(os.path.join(device, "dm", "uuid"), encoding="ascii") as stream:
            if stream.read().startswith("CRYPT-"):
                return True
    except OSError:
        pass
    try:
        below = os.listdir(os.path.join(device, "slaves"))
    except OSError:
        return False
    return any(_is_crypt(os.path.join(device, "slaves", name)) for name in below)
