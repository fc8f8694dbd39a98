"""A source tree of every kind of file, and changes to it, both from one seed.

Answers for: small and large files, folders, links, hard links, odd names; edits in place, insertions,
appends, truncations, renames of files and folders, swaps, deletions, changes of type, mode and time.  The
same seed and the same calls make the same tree, byte for byte (times excepted), so that a failure can be
repeated.

Not here: comparing (``compare``), whoever mirrors the tree.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

ODD_NAME = os.fsdecode(b"new\nline \xff")
LARGE_BYTES = 11_500_000
"""More than one segment."""


class Churn:
    """A tree at ``root`` that is made once and then changed step by step."""

    def __init__(self, root: Path, rng: random.Random, *, files: int = 300, large: int = 2) -> None:
        self.root = root
        self.rng = rng
        self.files = files
        self._serial = 0
        root.mkdir(parents=True)
        for number in range(max(2, files // 40)):
            (root / f"folder{number}" / "inner").mkdir(parents=True)
        for _ in range(files):
            self._new_file()
        for number in range(large):
            (root / f"large{number}").write_bytes(rng.randbytes(LARGE_BYTES + number * 100_003))
        (root / ODD_NAME).write_bytes(b"odd")
        (root / "link").symlink_to("folder0")
        os.link(root / ODD_NAME, root / "folder1" / "hard link")

    def step(self, changes: int = 20) -> None:
        """Make ``changes`` changes of all kinds."""
        kinds: list[Callable[[], None]] = [
            self._new_file,
            self._new_file,
            self._rewrite,
            self._rewrite,
            self._edit,
            self._rename,
            self._remove,
            self._retouch,
            self._swap,
            self._rename_folder,
            self._retype,
            self._hard_link,
        ]
        self._edit_large()
        for _ in range(changes):
            self.rng.choice(kinds)()

    def take_out(self) -> Callable[[], object] | None:
        """Move a folder of files with one name each out of the tree; returns what moves it back, unchanged,
        or None when there is no such folder."""

        def is_alone(folder: Path) -> bool:
            return folder.is_dir() and all(
                one.is_dir() or one.lstat().st_nlink < 2 for one in folder.rglob("*")
            )

        folders = self._paths(is_alone)
        if not folders:
            return None
        folder = self.rng.choice(folders)
        aside = self.root.with_name(f"{self.root.name}.aside")
        folder.rename(aside)
        return lambda: aside.rename(folder)

    # --- choosing --------------------------------------------------------------------------------

    def _paths(self, want: Callable[[Path], bool]) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if not path.is_symlink() and want(path))

    def _file(self) -> Path:
        return self.rng.choice(self._paths(Path.is_file))

    def _folder(self) -> Path:
        return self.rng.choice([self.root, *self._paths(Path.is_dir)])

    def _fresh(self, stem: str) -> Path:
        self._serial += 1
        return self._folder() / f"{stem}{self._serial}"

    # --- changes ---------------------------------------------------------------------------------

    def _new_file(self) -> None:
        size_bytes = self.rng.choice((0, 10, 1_000, 4_096, 20_000, 70_000))
        self._fresh("file").write_bytes(self.rng.randbytes(size_bytes))

    def _rewrite(self) -> None:
        self._file().write_bytes(self.rng.randbytes(self.rng.choice((5, 5_000, 40_000))))

    def _edit(self) -> None:
        _overwrite(self._file(), self.rng)

    def _edit_large(self) -> None:
        large = self._paths(lambda path: path.is_file() and path.stat().st_size > 8_000_000)
        if not large:
            (self.root / "large").write_bytes(self.rng.randbytes(LARGE_BYTES))
            return
        path = self.rng.choice(large)
        for _ in range(3):
            _overwrite(path, self.rng)
        if self.rng.random() < 0.3:
            data = path.read_bytes()
            at = self.rng.randrange(len(data))
            path.write_bytes(data[:at] + self.rng.randbytes(1_001) + data[at:])

    def _rename(self) -> None:
        self._file().rename(self._fresh("moved"))

    def _rename_folder(self) -> None:
        folders = [path for path in self._paths(Path.is_dir) if path.name.startswith(("inner", "turned"))]
        if folders:
            folder = self.rng.choice(folders)
            target = self._fresh("turned")
            if folder not in target.parents:
                folder.rename(target)

    def _swap(self) -> None:
        one, other = self._file(), self._file()
        if one != other and one.parent != other:
            aside = self.root / "aside"
            one.rename(aside)
            other.rename(one)
            aside.rename(other)

    def _remove(self) -> None:
        path = self._file()
        if path.stat().st_size < 8_000_000:
            path.unlink()

    def _retouch(self) -> None:
        path = self._file()
        path.chmod(self.rng.choice((0o600, 0o644, 0o4755)))
        os.utime(path, ns=(10**18, 10**18 + self.rng.randrange(10**9)))

    def _retype(self) -> None:
        path = self._file()
        if path.stat().st_size > 8_000_000:
            return
        path.unlink()
        if self.rng.random() < 0.5:
            path.symlink_to("somewhere else")
        else:
            path.mkdir()
            (path / "inside").write_bytes(self.rng.randbytes(100))

    def _hard_link(self) -> None:
        os.link(self._file(), self._fresh("linked"))


def _overwrite(path: Path, rng: random.Random) -> None:
    """Write over some bytes in place; the file keeps its inode and length."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(rng.randrange(size_bytes) if size_bytes else 0)
        stream.write(rng.randbytes(min(700, max(1, size_bytes - stream.tell()))))


def copy_of(tree: Path, place: Path) -> Path:
    """Copy a tree with its times, links kept as links; returns ``place``."""
    return Path(shutil.copytree(tree, place, symlinks=True))
