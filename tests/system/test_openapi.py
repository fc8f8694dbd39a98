"""The service keeps what its OpenAPI description promises: schemathesis asks, with and without rights."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .dav_store import DavStore, dav_store

__all__ = ["dav_store"]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture
def description(dav_store: DavStore, tmp_path: Path) -> Path:
    """The description as served, with examples that exist, so that deep answers are reached."""
    context = ssl.create_default_context(cafile=dav_store.mirrored.ca)
    with urllib.request.urlopen(f"{dav_store.served.url}/api/v1/openapi.json", context=context) as answer:
        schema = json.load(answer)
    examples = {"volume": dav_store.mirrored.name, "snapshot": dav_store.snapshot}
    for item in schema["paths"].values():
        for operation in item.values():
            for parameter in operation["parameters"]:
                name = parameter["name"]
                if name in examples and parameter["in"] == "path":
                    parameter["schema"] = {"enum": [examples[name], "other"]}
                elif name in ("part", "validation", "wait"):
                    parameter["schema"] = {"enum": {"part": ["", "a/b"], "wait": [0, 0.1]}.get(name, ["x"])}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(schema))
    return path


def explore(dav_store: DavStore, description: Path, *argv: str) -> None:
    done = subprocess.run(
        [
            os.path.join(os.path.dirname(sys.executable), "schemathesis"),
            "run",
            str(description),
            f"--url={dav_store.served.url}/api/v1",
            f"--tls-verify={dav_store.mirrored.ca}",
            "--checks",
            CHECKS,
            "--max-examples=12",
            "--seed=1",
            "--phases=examples,coverage,fuzzing",
            "--generation-database=none",
            "--suppress-health-check=all",
            "--no-color",
            *argv,
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=description.parent,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.engine
@pytest.mark.parametrize("dav_store", ["dir"], indirect=True)
def test_answers_are_as_described(dav_store: DavStore, description: Path) -> None:
    explore(dav_store, description, "-H", f"Authorization: Bearer {dav_store.mirrored.token}")
    explore(dav_store, description, "-H", "Authorization: Bearer nobody", "--max-examples=3")
