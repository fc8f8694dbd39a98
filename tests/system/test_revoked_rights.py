"""Rights that the source took away are gone from the mirror's files too, for a mirror may be mounted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rig.mirrored import Mirrored
from rig.served import Served


@pytest.mark.engine("setfacl")
def test_an_access_list_and_an_attribute_that_were_removed_leave_the_mirror(
    served_store: Served, tmp_path: Path
) -> None:
    mirrored = Mirrored(served_store, tmp_path)
    folder, file = mirrored.source / "folder", mirrored.source / "folder" / "file"
    folder.mkdir(parents=True)
    file.write_bytes(b"content")
    os.link(file, folder / "same file")
    try:
        os.setxattr(file, "user.note", b"1")
        subprocess.run(["setfacl", "-m", "u:1234:rwx,d:u:1234:rwx", folder], check=True)
        subprocess.run(["setfacl", "-m", "u:1234:rwx", file], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no access lists here: {error}")
    mirrored.sync()
    mirrored.check_verdict()
    os.removexattr(file, "user.note")
    subprocess.run(["setfacl", "-b", folder, file], check=True)
    mirrored.sync()
    for name in ("folder", "folder/file", "folder/same file"):
        assert os.listxattr(mirrored.tip() / name) == []
    assert mirrored.differences() == []
    mirrored.check_verdict()
    mirrored.check_snapshots()
