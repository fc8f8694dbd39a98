"""Removing a directory with all that is in it, however deep it is and whatever its modes say.

Answers for: nothing outside is touched, whatever links stand in it; what somebody else removes meanwhile
counts as removed; what cannot be removed holds nothing else up.

Not here: when something goes.  A crash leaves a part, which the same call removes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from mirrorkeep.tree.descent import Descent
from mirrorkeep.tree.layout import OPEN_DIRECTORY

Whole = Callable[[int, str], bool]
"""``whole(dir_fd, name)``: remove this folder at once and say so, where that can be; raises OSError."""


def remove_tree(name: str | bytes, *, dir_fd: int | None = None, whole: Whole | None = None) -> None:
    """Remove the directory ``name``; folders that shut out their owner, as mirrored ones may, are opened up.

    Each folder in it is first given to ``whole``.  Raises FileNotFoundError when nothing is there, OSError
    when something stayed: the first trouble.
    """
    try:
        _Removal(whole).run(name, dir_fd)
    except PermissionError:
        if whole is not None:
            raise
        _open_up(name, dir_fd)
        _Removal(None).run(name, dir_fd)


class _Removal:
    """One removal under way."""

    def __init__(self, whole: Whole | None) -> None:
        self._whole = whole
        self._trouble: OSError | None = None

    def run(self, name: str | bytes, dir_fd: int | None) -> None:
        with Descent(os.open(name, OPEN_DIRECTORY, dir_fd=dir_fd)) as descent:
            pending = [self._empty(descent.fd)]
            while True:
                if pending[-1]:
                    folder = pending[-1].pop()
                    try:
                        if self._whole is not None and self._whole(descent.fd, folder):
                            continue
                        fd = descent.enter(folder)
                    except OSError as error:
                        self._note(error)
                    else:
                        pending.append(self._empty(fd))
                elif len(pending) > 1:
                    pending.pop()
                    emptied = descent.name
                    self._rmdir(emptied, descent.leave())
                else:
                    break
        self._rmdir(name, dir_fd)
        if self._trouble is not None:
            raise self._trouble

    def _empty(self, fd: int) -> list[str]:
        """Remove what is no folder from the open directory; returns the names of the folders."""
        folders: list[str] = []
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            self._note(error)
            return folders
        for name, is_folder in found:
            if is_folder:
                folders.append(name)
                continue
            try:
                os.unlink(name, dir_fd=fd)
            except OSError as error:
                self._note(error)
        return folders

    def _rmdir(self, name: str | bytes, dir_fd: int | None) -> None:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if self._trouble is None and not isinstance(error, FileNotFoundError):
            self._trouble = error


def _open_up(name: str | bytes, dir_fd: int | None) -> None:
    """Let the owner into the directory and every one below it."""
    os.chmod(name, 0o700, dir_fd=dir_fd)
    with Descent(os.open(name, OPEN_DIRECTORY, dir_fd=dir_fd)) as descent:
        pending = [folders_in(descent.fd)]
        while True:
            if pending[-1]:
                folder = pending[-1].pop()
                try:
                    os.chmod(folder, 0o700, dir_fd=descent.fd)
                    fd = descent.enter(folder)
                except FileNotFoundError:
                    continue
                pending.append(folders_in(fd))
            elif len(pending) > 1:
                pending.pop()
                descent.leave()
            else:
                return


def folders_in(fd: int) -> list[str]:
    """Return the names of the folders in the open directory; raises OSError."""
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
