"""Names and paths of a stored tree: nothing leads out of it, nothing reaches a hidden folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import NoSpace, PathRefused, StorageFailure
from mirrorkeep.tree.layout import (
    HIDDEN,
    Directories,
    is_own_name,
    is_replaced_name,
    split_path,
    storage_error,
    stored_name,
)


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[Directories]:
    fd = os.open(tmp_path, os.O_RDONLY)
    cache = Directories(fd, capacity=4)
    yield cache
    cache.close()
    os.close(fd)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a\0b"])
def test_names_that_are_none_are_refused(name: bytes) -> None:
    with pytest.raises(PathRefused):
        stored_name(name)


@pytest.mark.parametrize("name", [HIDDEN, b".mirrorkeep.root", b".mirrorkeep~abc", b"n" * 256])
def test_reserved_and_long_names_are_stored_under_an_id(name: bytes) -> None:
    stored = stored_name(name)
    assert is_replaced_name(stored)
    assert not is_own_name(stored)
    assert len(stored) == len(b".mirrorkeep~") + 32
    assert stored_name(name) == stored


@pytest.mark.parametrize("name", [b"a", b"...", b"\xff\xfe", b"new\nline", b"n" * 255, b".mirror"])
def test_other_names_are_stored_as_they_are(name: bytes) -> None:
    assert split_path(b"dir/" + name) == (b"dir", name)


@pytest.mark.parametrize("path", [b"../x/y", b"a/../b/y", b"/etc/y", b"a//b/y"])
def test_no_path_climbs_out(directories: Directories, path: bytes) -> None:
    with pytest.raises(PathRefused):
        directories.get(path.rpartition(b"/")[0], make=True)


def test_a_planted_link_leads_nowhere(tmp_path: Path, directories: Directories) -> None:
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (tmp_path / "in").symlink_to(outside)
    with pytest.raises(OSError) as caught:
        directories.get(b"in/deeper", make=True)
    assert isinstance(storage_error(caught.value, b"in"), PathRefused)
    assert os.listdir(outside) == []


def test_a_planted_hidden_link_leads_nowhere(tmp_path: Path, directories: Directories) -> None:
    outside = tmp_path.parent / "outside2"
    outside.mkdir()
    (tmp_path / ".mirrorkeep").symlink_to(outside)
    with pytest.raises(OSError) as caught:
        directories.get(b"").open_hidden(make=True)
    assert isinstance(storage_error(caught.value, b""), PathRefused)
    assert os.listdir(outside) == []


def test_deep_paths_need_few_descriptors(tmp_path: Path, directories: Directories) -> None:
    before = len(os.listdir("/proc/self/fd"))
    deep = b"/".join([b"d"] * 300)
    assert directories.get(deep, make=True).fd >= 0
    assert len(os.listdir("/proc/self/fd")) - before <= 6
    directories.trim()
    assert (tmp_path / os.fsdecode(deep)).is_dir()


def test_trim_closes_what_is_beyond_the_capacity(directories: Directories) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        directories.get(b"d%d" % number, make=True)
        directories.trim()
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_forgotten_directories_are_opened_anew(tmp_path: Path, directories: Directories) -> None:
    directories.get(b"a/b", make=True)
    (tmp_path / "a").rename(tmp_path / "old")
    directories.forget(b"a")
    directories.get(b"a/b", make=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_errors_of_the_storage_have_their_classes() -> None:
    assert isinstance(storage_error(OSError(errno.ENOSPC, "full"), b"x"), NoSpace)
    assert isinstance(storage_error(OSError(errno.EDQUOT, "quota"), b"x"), NoSpace)
    assert isinstance(storage_error(OSError(errno.EIO, "broken"), b"x"), StorageFailure)
