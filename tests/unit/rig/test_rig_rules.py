"""The rule of tests/conftest.py: in continuous integration a test that must run may not skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = {
    "test_tool.py": """
        import pytest
        @pytest.mark.engine("no-such-program")
        def test_needs_a_tool(): pass
    """,
    "test_skips_itself.py": """
        import pytest
        @pytest.mark.root
        def test_gives_up(): pytest.skip("no wish to")
    """,
    "test_unmarked.py": """
        import pytest
        def test_optional(): pytest.skip("nice to have")
    """,
    "test_whole_module.py": """
        import pytest
        pytest.importorskip("no_such_module_anywhere")
    """,
}


def outcome(folder: Path, *, ci: bool) -> str:
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    for name, text in SUITE.items():
        (folder / name).write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n engine: x\n root: x\n")
    top = str(Path(__file__).parents[3])
    environment = {**os.environ, "CI": "true" if ci else "", "PYTHONPATH": top}
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-rA",
        "--continue-on-collection-errors",
        str(folder),
    ]
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


def test_missing_tools_skip_on_a_developers_machine(tmp_path: Path) -> None:
    said = outcome(tmp_path, ci=False)
    assert "4 skipped" in said and "failed" not in said, said


@pytest.mark.root
def test_missing_tools_fail_in_continuous_integration(tmp_path: Path) -> None:
    said = outcome(tmp_path, ci=True)
    assert "no-such-program is not installed" in said
    assert "1 failed, 1 skipped, 2 errors" in said, said
