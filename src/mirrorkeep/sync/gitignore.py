"""Exclusion patterns as git reads them in a ``.gitignore``: the last one that matches an entry decides.

A pattern says something about the entry that it matches, not about what is below: nothing below an
excluded directory is ever asked for, so nothing there can be taken in again.  ``a/**`` matches all that is in
``a``, not ``a``.  Names are bytes, as they are for git: ``?`` and a class are one byte.

Each pattern becomes a regular expression, and neighbours that say the same become one: an entry is compared
with few expressions, however many patterns there are.

Not here: where patterns come from (``rules``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final, NamedTuple

_SPECIAL: Final = frozenset(b"*?[\\")
_CLASSES: Final = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"!-~",
    b"lower": rb"a-z",
    b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb"\t-\r ",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}
_TRAILING_BLANKS: Final = re.compile(rb"((?:[^\\]|\\.)*?) *(\\?)", re.DOTALL)
_NAMED_CLASS: Final = re.compile(rb"\[:([^\]]*):\]")
_NOTHING: Final = re.compile(rb"(?!)")

_Match = Callable[[bytes], object]
Excluded = Callable[[bytes, bool], bool]
"""``excluded(path, is_directory)``: whether an entry, below no excluded directory, is excluded."""


class _Pattern(NamedTuple):
    excludes: bool
    directories_only: bool
    by_name: bool
    expression: bytes


class _Group(NamedTuple):
    """Patterns in a row that all exclude, or all take in again."""

    excludes: bool
    file_name: _Match
    file_path: _Match
    directory_name: _Match
    directory_path: _Match


def compile_patterns(lines: Iterable[bytes]) -> Excluded:
    """Return what the patterns of ``lines`` say together.

    Raises ValueError for a pattern that cannot match anything because it is cut short or misspelt.
    """
    patterns = [pattern for line in lines if (pattern := _parse(line)) is not None]
    groups = [_join(excludes, list(row)) for excludes, row in groupby(patterns, lambda one: one.excludes)]
    groups.reverse()

    def excluded(path: bytes, is_directory: bool) -> bool:
        name = path.rpartition(b"/")[2]
        for group in groups:
            if is_directory:
                if group.directory_name(name) or group.directory_path(path):
                    return group.excludes
            elif group.file_name(name) or group.file_path(path):
                return group.excludes
        return False

    return excluded


def _join(excludes: bool, patterns: list[_Pattern]) -> _Group:
    def match(*, by_name: bool, directory: bool) -> _Match:
        fitting = [
            b"(?:%s)" % one.expression
            for one in patterns
            if one.by_name is by_name and (directory or not one.directories_only)
        ]
        return (re.compile(b"|".join(fitting), re.DOTALL) if fitting else _NOTHING).fullmatch

    return _Group(
        excludes,
        match(by_name=True, directory=False),
        match(by_name=False, directory=False),
        match(by_name=True, directory=True),
        match(by_name=False, directory=True),
    )


def _parse(line: bytes) -> _Pattern | None:
    """Return the pattern of a line, None for a comment and for what matches nothing by its nature."""
    line = line.removesuffix(b"\r")
    if line.startswith(b"#"):
        return None
    found = _TRAILING_BLANKS.fullmatch(line)
    assert found is not None
    line = found[1] + found[2]
    excludes = not line.startswith(b"!")
    pattern = line if excludes else line[1:]
    if not pattern:
        if not excludes:
            raise ValueError("there is nothing behind the !")
        return None
    directories_only = pattern.endswith(b"/")
    pattern = pattern.removesuffix(b"/")
    by_name = b"/" not in pattern
    pattern = pattern.removeprefix(b"/")
    if not pattern or pattern.endswith(b"/"):
        return None
    return _Pattern(excludes, directories_only, by_name, _translate(pattern))


def _translate(pattern: bytes) -> bytes:
    """Return the regular expression of a pattern without the slashes that only say what it is about."""
    # git compares what comes before the first special character apart, and the rest by itself
    rest = next((at for at, byte in enumerate(pattern) if byte in _SPECIAL), len(pattern))
    made = [re.escape(pattern[:rest])]
    at = rest
    while at < len(pattern):
        match pattern[at : at + 1]:
            case b"*":
                at, part = _stars(pattern, at, at in (0, rest) or pattern[at - 1 : at] == b"/")
            case b"?":
                at, part = at + 1, b"[^/]"
            case b"[":
                at, part = _class(pattern, at)
            case b"\\":
                if at + 1 == len(pattern):
                    raise ValueError("there is nothing behind the last \\")
                at, part = at + 2, re.escape(pattern[at + 1 : at + 2])
            case other:
                at, part = at + 1, re.escape(other)
        made.append(part)
    return b"".join(made)


def _stars(pattern: bytes, at: int, at_start: bool) -> tuple[int, bytes]:
    """Translate the stars at ``at``: two of them reach across slashes where they are all of a component."""
    end = at
    while pattern[end : end + 1] == b"*":
        end += 1
    if end - at > 1 and at_start:
        if end == len(pattern) or pattern.startswith(b"\\/", end):
            return end, b".*"
        if pattern.startswith(b"/", end):
            return end + 1, b"(?:.*/)?"
    return end, b"[^/]*"


def _class(pattern: bytes, at: int) -> tuple[int, bytes]:
    """Translate the class that begins at ``at``; raises ValueError when it does not end."""
    at += 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    parts: list[bytes] = []
    lower: int | None = None  # what a range may begin with
    first = True
    while first or pattern[at : at + 1] != b"]":
        first = False
        if named := _NAMED_CLASS.match(pattern, at):
            if named[1] not in _CLASSES:
                raise ValueError(f"there is no class [:{named[1].decode(errors='replace')}:]")
            parts.append(_CLASSES[named[1]])
            at, lower = named.end(), None
            continue
        if lower is not None and pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at, upper = _member(pattern, at + 1)
            parts.append(b"\\x%02x-\\x%02x" % (lower, upper) if lower <= upper else b"")
            lower = None
            continue
        at, lower = _member(pattern, at)
        parts.append(b"\\x%02x" % lower)
    members = b"".join(parts)
    if not members:  # of ranges that end before they begin
        return at + 1, b"[^/]" if negated else b"(?!)"
    return at + 1, b"(?!/)[%s%s]" % (b"^" if negated else b"", members)


def _member(pattern: bytes, at: int) -> tuple[int, int]:
    at += pattern[at : at + 1] == b"\\"
    if at >= len(pattern):
        raise ValueError("a [ has no ]")
    return at + 1, pattern[at]
