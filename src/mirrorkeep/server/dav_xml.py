"""The XML of WebDAV: request bodies in, multi-status answers out (as strings, not as a tree).

Answers for: PROPFIND, PROPPATCH and LOCK bodies (parsed by ``defusedxml``: no DTD, no entities), the
rendering of properties, and the text form in which dead properties are kept.  Names are in Clark form,
``{namespace}local``, everywhere in the server.

Not here: which properties a resource has (``dav_properties``), where they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from mirrorkeep.errors import MalformedRequest

DAV: Final = "DAV:"
OWN: Final = "urn:mirrorkeep"
LANG: Final = "{http://www.w3.org/XML/1998/namespace}lang"
CONTENT_TYPE: Final = b"application/xml; charset=utf-8"
MAX_DEPTH: Final = 100
_ILLEGAL: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REASONS: Final = {
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    423: "Locked",
    424: "Failed Dependency",
    507: "Insufficient Storage",
}
HEAD: Final = '<?xml version="1.0" encoding="utf-8"?>\n'
OPEN: Final = f'{HEAD}<D:multistatus xmlns:D="DAV:" xmlns:M="{OWN}">\n'.encode()
CLOSE: Final = b"</D:multistatus>\n"


@dataclass(frozen=True, slots=True)
class Find:
    """A PROPFIND: ``kind`` is "allprop", "propname" or "prop"; ``names`` those asked for or included."""

    kind: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PropertyChange:
    """One instruction of a PROPPATCH: the property's text form, or None to remove it."""

    name: str
    text: str | None


@dataclass(frozen=True, slots=True)
class LockAsk:
    """A LOCK body: exclusive or shared, and the owner element's content as the client gave it."""

    exclusive: bool
    owner: str


# --- in ---------------------------------------------------------------------------------------


def parse_propfind(body: bytes) -> Find:
    """Read a PROPFIND body; an empty one asks for everything.  Raises MalformedRequest."""
    if not body.strip():
        return Find("allprop")
    root = _parse(body, "propfind")
    kinds = [child for child in root if child.tag in _FIND_KINDS]
    if len(kinds) != 1:
        raise MalformedRequest(detail="a propfind has one of allprop, propname, prop")
    kind = _FIND_KINDS[kinds[0].tag]
    include = next((child for child in root if child.tag == "{DAV:}include"), None)
    named = kinds[0] if kind == "prop" else include if include is not None and kind == "allprop" else ()
    return Find(kind, tuple(dict.fromkeys(child.tag for child in named)))


_FIND_KINDS: Final = {"{DAV:}allprop": "allprop", "{DAV:}propname": "propname", "{DAV:}prop": "prop"}


def parse_proppatch(body: bytes) -> list[PropertyChange]:
    """Read a PROPPATCH body into instructions, in document order.  Raises MalformedRequest."""
    root = _parse(body, "propertyupdate")
    changes: list[PropertyChange] = []
    for action in root:
        if action.tag not in ("{DAV:}set", "{DAV:}remove"):
            continue
        for prop in action:
            if prop.tag != "{DAV:}prop":
                continue
            language = prop.get(LANG) or action.get(LANG) or root.get(LANG)
            for element in prop:
                if language and not element.get(LANG):
                    element.set(LANG, language)
                text = write_element(element) if action.tag == "{DAV:}set" else None
                changes.append(PropertyChange(element.tag, text))
    if not changes:
        raise MalformedRequest(detail="a propertyupdate sets or removes at least one property")
    return changes


def parse_lock(body: bytes) -> LockAsk | None:
    """Read a LOCK body; None for an empty one, which refreshes a lock.  Raises MalformedRequest."""
    if not body.strip():
        return None
    root = _parse(body, "lockinfo")
    scope, kind = root.find("{DAV:}lockscope"), root.find("{DAV:}locktype")
    if scope is None or kind is None or kind.find("{DAV:}write") is None:
        raise MalformedRequest(detail="a lockinfo has a lockscope and the locktype write")
    exclusive = scope.find("{DAV:}exclusive") is not None
    if exclusive == (scope.find("{DAV:}shared") is not None):
        raise MalformedRequest(detail="a lockscope is exclusive or shared")
    owner = root.find("{DAV:}owner")
    return LockAsk(exclusive, _write_content(owner, 0) if owner is not None else "")


def _parse(body: bytes, name: str) -> Element:
    try:
        root: Element = defusedxml.ElementTree.fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise MalformedRequest(detail=f"the XML cannot be read ({error})") from None
    if root.tag != f"{{DAV:}}{name}":
        raise MalformedRequest(detail=f"the body is not a {name}")
    return root


# --- elements as text ---------------------------------------------------------------------------


def write_element(element: Element, depth: int = 0) -> str:
    """Return an element as text that means the same wherever it is put: every prefix is its own."""
    if depth > MAX_DEPTH:
        raise MalformedRequest(detail="the XML is nested too deeply")
    start, end = _tags(element.tag)
    attributes = "".join(
        _attribute(number, name, value) for number, (name, value) in enumerate(element.items())
    )
    content = _write_content(element, depth)
    return f"<{start}{attributes}>{content}</{end}>" if content else f"<{start}{attributes}/>"


def _write_content(element: Element, depth: int) -> str:
    parts = [escape(element.text or "")]
    for child in element:
        parts += (write_element(child, depth + 1), escape(child.tail or ""))
    return "".join(parts)


def _attribute(number: int, name: str, value: str) -> str:
    if name == LANG:
        return f' xml:lang="{escape(value)}"'
    if name.startswith("{"):
        space, _, local = name[1:].partition("}")
        return f' xmlns:a{number}="{escape(space)}" a{number}:{local}="{escape(value)}"'
    return f' {name}="{escape(value)}"'


def _tags(name: str) -> tuple[str, str]:
    """Return start tag (with its namespace declaration) and end tag of a name in Clark form."""
    space, local = split_name(name)
    if space == DAV:
        return f"D:{local}", f"D:{local}"
    if space == OWN:
        return f"M:{local}", f"M:{local}"
    if not space:
        return local, local
    return f'n:{local} xmlns:n="{escape(space)}"', f"n:{local}"


def split_name(name: str) -> tuple[str, str]:
    """Split a Clark name into namespace and local name."""
    if name.startswith("{"):
        space, _, local = name[1:].partition("}")
        return space, local
    return "", name


def empty_element(name: str) -> str:
    """Return ``<name/>`` for a name in Clark form."""
    return f"<{_tags(name)[0]}/>"


def text_element(name: str, value: str) -> str:
    """Return ``<name>value</name>``, the value being markup already."""
    start, end = _tags(name)
    return f"<{start}>{value}</{end}>"


def escape(value: str) -> str:
    """Return ``value`` for XML text and attributes; what XML cannot hold becomes U+FFFD."""
    value = _ILLEGAL.sub("\ufffd", value)
    if "&" in value or "<" in value or ">" in value or '"' in value or "\r" in value:
        value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        value = value.replace('"', "&quot;").replace("\r", "&#13;")
    return value


# --- out --------------------------------------------------------------------------------------


def status_line(status: int) -> str:
    """Return the ``status`` element."""
    return f"<D:status>HTTP/1.1 {status} {_REASONS.get(status, 'Error')}</D:status>"


def propstat(status: int, elements: Iterable[str]) -> str:
    """Return a ``propstat`` with these property elements, "" when there are none."""
    content = "".join(elements)
    if not content:
        return ""
    return f"<D:propstat><D:prop>{content}</D:prop>{status_line(status)}</D:propstat>"


def property_response(href: bytes, stats: Sequence[str]) -> bytes:
    """Return one ``response`` of properties; ``href`` is percent-encoded already."""
    content = "".join(stats) or "<D:propstat><D:prop/>" + status_line(200) + "</D:propstat>"
    return f"<D:response><D:href>{escape(href.decode('ascii'))}</D:href>{content}</D:response>\n".encode()


def multistatus(responses: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a whole multi-status answer around its responses."""
    yield OPEN
    yield from responses
    yield CLOSE


def error_body(condition: str, href: bytes | None = None) -> bytes:
    """Return an ``error`` body that names a precondition of DAV:, with the resource it concerns."""
    inner = f"<D:href>{escape(href.decode('ascii'))}</D:href>" if href is not None else ""
    return f'{HEAD}<D:error xmlns:D="DAV:"><D:{condition}>{inner}</D:{condition}></D:error>\n'.encode()
