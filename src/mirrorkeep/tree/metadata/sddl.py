"""Windows security descriptors as text (SDDL), taken apart and put together in pure Python.

``O:BAG:SYD:PAI(A;OICI;FA;;;BA)S:(AU;SA;FA;;;WD)``: owner, group, and two access lists of entries in
parentheses.  A mirror only keeps the text; this module lets any system check and show it.

Not here: asking Windows for descriptors (``windows``).  Pure functions.
Source: Microsoft, Security Descriptor Definition Language; ACE Strings; SID Strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SID: Final = re.compile(r"[A-Z]{2}|S-1-(?:0x[0-9A-Fa-f]+|[0-9]+)(?:-[0-9]+){0,15}")
_LIST_FLAGS: Final = re.compile(r"(?:P|AR|AI|NO_ACCESS_CONTROL)*")
_ACE_FLAGS: Final = re.compile(r"(?:CI|OI|NP|IO|ID|SA|FA|CR|TP)*")
_RIGHTS: Final = re.compile(r"0x[0-9A-Fa-f]{1,8}|[0-9]{1,10}|(?:[A-Z]{2})*")
_GUID: Final = re.compile(r"|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
ACE_TYPES: Final = frozenset(
    ("A", "D", "OA", "OD", "AU", "AL", "OU", "OL", "ML", "SP", "XA", "XD", "XU", "ZA", "TL", "FL", "RA")
)


@dataclass(frozen=True, slots=True)
class Ace:
    """One entry; ``rest`` is the condition or resource attribute of the types that have one."""

    kind: str
    flags: str
    rights: str
    object_guid: str
    inherited_guid: str
    sid: str
    rest: str | None = None

    def __str__(self) -> str:
        parts = [self.kind, self.flags, self.rights, self.object_guid, self.inherited_guid, self.sid]
        return f"({';'.join(parts if self.rest is None else [*parts, self.rest])})"


@dataclass(frozen=True, slots=True)
class AccessList:
    """The entries of a list in order, with the flags before them."""

    flags: str
    entries: tuple[Ace, ...]

    def __str__(self) -> str:
        return self.flags + "".join(map(str, self.entries))


@dataclass(frozen=True, slots=True)
class SecurityDescriptor:
    """A whole descriptor; what is None is absent, which is not the same as an empty list."""

    owner: str | None = None
    group: str | None = None
    dacl: AccessList | None = None
    sacl: AccessList | None = None

    def __str__(self) -> str:
        parts = (("O:", self.owner), ("G:", self.group), ("D:", self.dacl), ("S:", self.sacl))
        return "".join(f"{tag}{value}" for tag, value in parts if value is not None)


def parse_sddl(text: str) -> SecurityDescriptor:
    """Return the descriptor of ``text``; ValueError says what cannot be read and where.

    What is accepted is formatted again to the same text, character for character.
    """
    owner, position = _parse_sid(text, 0, "O:")
    group, position = _parse_sid(text, position, "G:")
    dacl, position = _parse_list(text, position, "D:")
    sacl, position = _parse_list(text, position, "S:")
    if position != len(text):
        raise ValueError(f"character {position}: {text[position : position + 10]!r} is not expected here")
    return SecurityDescriptor(owner, group, dacl, sacl)


def _parse_sid(text: str, position: int, tag: str) -> tuple[str | None, int]:
    if not text.startswith(tag, position):
        return None, position
    position += len(tag)
    match = _SID.match(text, position)
    if match is None:
        raise ValueError(f"character {position}: not a SID")
    return match[0], match.end()


def _parse_list(text: str, position: int, tag: str) -> tuple[AccessList | None, int]:
    if not text.startswith(tag, position):
        return None, position
    match = _LIST_FLAGS.match(text, position + len(tag))
    assert match is not None  # it matches the empty text
    flags, position, entries = match[0], match.end(), []
    while text.startswith("(", position):
        end = _closing(text, position)
        entries.append(_parse_ace(text[position + 1 : end], position))
        position = end + 1
    return AccessList(flags, tuple(entries)), position


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that opens at ``start`` closes; quotes and nesting are respected."""
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character == "(") - (character == ")")
            if not depth:
                return position
    raise ValueError(f"character {start}: a parenthesis is not closed")


def _parse_ace(text: str, position: int) -> Ace:
    parts = text.split(";", 6)
    if len(parts) < 6:
        raise ValueError(f"character {position}: an entry has {len(parts)} fields, not 6")
    kind, flags, rights, object_guid, inherited_guid, sid = parts[:6]
    fields = (
        (kind in ACE_TYPES, "type", kind),
        (_ACE_FLAGS.fullmatch(flags), "flags", flags),
        (_RIGHTS.fullmatch(rights), "rights", rights),
        (_GUID.fullmatch(object_guid), "GUID", object_guid),
        (_GUID.fullmatch(inherited_guid), "GUID", inherited_guid),
        (_SID.fullmatch(sid), "SID", sid),
    )
    for good, what, value in fields:
        if not good:
            raise ValueError(f"character {position}: not the {what} of an entry: {value!r}")
    return Ace(kind, flags, rights, object_guid, inherited_guid, sid, parts[6] if len(parts) > 6 else None)
