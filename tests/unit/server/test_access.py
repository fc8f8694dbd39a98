"""Who gets in, what they see, and that every request leaves a line in the access log."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest

from mirrorkeep.server import api, openapi
from mirrorkeep.server.audit import AccessLog

from .conftest import Edge


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def rows(edge: Edge) -> list[dict[str, object]]:
    path = Path(edge.app.access_log.path)
    edge.app.access_log.close()
    lines = path.read_text().splitlines()
    edge.app.access_log = AccessLog(str(path.parent))
    return [json.loads(line) for line in lines]


def test_credentials(edge: Edge, base: str) -> None:
    missing = edge("GET", base, anonymous=True)
    assert missing.status == 401
    challenges = [value for name, value in missing.all_headers if name == b"www-authenticate"]
    assert [one.split()[0] for one in challenges] == [b"Basic", b"Bearer"]
    for header in (
        "Bearer wrong",
        basic("token", "wrong"),
        basic("nobody", "x"),
        "Basic !!!",
        "Basic",
        "Digest x",
        "Bearer " + "x" * 9000,
        basic("", ""),
    ):
        refused = edge("GET", base, anonymous=True, Authorization=header)
        assert (refused.status, refused.code) == (401, "not_authenticated"), header
    for header in (f"bearer {edge.token}", basic("token", edge.token)):
        assert edge("PROPFIND", base, anonymous=True, Authorization=header, Depth="0").status == 207


def test_a_users_rights(edge: Edge, base: str) -> None:
    volume = base.rpartition("/")[2]
    edge.store.registry.create_user(f"reader-{volume}", "pass:word", {volume: "read"})
    reader = basic(f"reader-{volume}", "pass:word")
    edge("PUT", f"{base}/f", b"1")
    assert edge("GET", f"{base}/f", anonymous=True, Authorization=reader).body == b"1"
    refused = edge("PUT", f"{base}/f", b"2", anonymous=True, Authorization=reader)
    assert (refused.status, refused.code) == (403, "not_authorised")


def test_other_volumes_do_not_exist(edge: Edge, base: str) -> None:
    edge.store.create_volume(f"other-{base[-1]}")
    for url in (f"/volumes/other-{base[-1]}/", "/volumes/never-was/", f"/snapshots/s/other-{base[-1]}/"):
        assert edge("PROPFIND", url, Depth="0").status == 404
        assert edge("PUT", url + "x", b"").status == 404
    assert f"other-{base[-1]}".encode() not in edge("PROPFIND", "/volumes/", Depth="1").body
    assert edge("GET", f"/api/v1/volumes/other-{base[-1]}/snapshots").status == 404
    assert edge("POST", f"/api/v1/volumes/other-{base[-1]}/validations", b"{}").status == 404


def test_public_resources_give_nothing_away(edge: Edge) -> None:
    assert edge("GET", "/api/v1/health", anonymous=True).json()["status"] == "ok"
    assert b"PUBLIC KEY" in edge("GET", "/api/v1/key", anonymous=True).body
    assert edge("GET", "/api/v1/openapi.json", anonymous=True).json()["openapi"].startswith("3.1")
    assert edge("OPTIONS", "*", anonymous=True).status == 200
    for url in ("/api/v1/runs", "/api/v1/none", "/other", "/volumes/"):
        assert edge("GET", url, anonymous=True).status in (401, 404, 405)


def test_every_request_leaves_a_line_without_secrets(edge: Edge, base: str) -> None:
    edge("PUT", f"{base}/%ff?token=tell", b"body", Mirrorkeep_Run="")
    edge("GET", f"{base}/nothing")
    edge("GET", base, anonymous=True, Authorization=basic("token", "guess"))
    edge("PUT", f"{base}/cut", b"half", cut_off=True)
    edge("GET", f"{base}/../x")
    found = rows(edge)[-5:]
    assert [(row["method"], row["status"]) for row in found] == [
        ("PUT", 201),
        ("GET", 404),
        ("GET", 401),
        ("PUT", 499),
        ("GET", 403),
    ]
    assert found[0]["path"] == f"{base}/%ff"
    assert found[0]["received_bytes"] == 4
    assert str(found[0]["principal"]).startswith("token:") or found[0]["principal"]
    assert [row["principal"] for row in found[2:3]] == [""]
    text = json.dumps(found)
    assert edge.token not in text and "guess" not in text and "tell" not in text


def test_logs_of_two_workers_do_not_share_a_file(tmp_path: Path) -> None:
    first, second = AccessLog(str(tmp_path)), AccessLog(str(tmp_path))
    assert first.path != second.path
    first.add({"n": 1})
    first.close()
    third = AccessLog(str(tmp_path))
    assert third.path == first.path
    third.add({"n": 2})
    third.close()
    second.close()
    assert [json.loads(line)["n"] for line in Path(first.path).read_text().splitlines()] == [1, 2]


def test_a_full_log_file_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorkeep.server.audit.MAX_FILE_BYTES", 10)
    one = AccessLog(str(tmp_path))
    one.add({"number": 12345})
    one.close()
    assert sum(b"12345" in path.read_bytes() for path in tmp_path.iterdir()) == 1
    assert Path(one.path).read_bytes() == b""


def test_unforeseen_errors_are_500_without_details(
    edge: Edge, base: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(edge.store, "volume", explode)
    with caplog.at_level(logging.ERROR):
        reply = edge("GET", f"{base}/f")
    assert (reply.status, reply.code) == (500, "internal_error")
    assert b"secret" not in reply.body
    assert "inner secret" in caplog.text


def test_a_damaged_record_of_the_store_is_named(edge: Edge, base: str, store_data: Path) -> None:
    """Whoever has to put it back finds it by the error; the volume is as it was once that is done."""
    assert edge("PUT", f"{base}/f", b"x").status == 201
    record = store_data / "registry" / "volumes" / f"{base.rpartition('/')[2]}.json"
    content = record.read_bytes()
    record.write_bytes(content[:10])
    try:
        reply = edge("GET", f"{base}/f")
        assert (reply.status, reply.code) == (500, "damaged_record")
        assert record.name in reply.body.decode()
    finally:
        record.write_bytes(content)
    assert edge("GET", f"{base}/f").body == b"x"


def test_a_full_disk_is_507(edge: Edge, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirrorkeep.tree.stored_plain.write_all", full)
    reply = edge("PUT", f"{base}/f", b"x")
    assert (reply.status, reply.code) == (507, "no_space")
    monkeypatch.undo()
    assert edge("GET", f"{base}/f").status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "runs", b"nonsense", 400),
        ("POST", "runs", b"[]", 400),
        ("POST", "runs", b'{"volume": 3}', 400),
        ("POST", "runs", b"[" * 100_000, 400),
        ("POST", "runs/unknown/commit", b"{}", 404),
        ("POST", "runs/unknown/close", b"", 404),
        ("DELETE", "runs/unknown", b"", 404),
        ("GET", "runs", b"", 405),
        ("GET", "none", b"", 404),
        ("POST", "runs", b"x" * 2_000_000, 413),
    ],
)
def test_bad_api_requests(edge: Edge, method: str, path: str, body: bytes, status: int) -> None:
    assert edge(method, f"/api/v1/{path}", body).status == status


def test_openapi_names_exactly_what_there_is() -> None:
    described = {(path, method.upper()) for path, item in openapi.SCHEMA["paths"].items() for method in item}
    real = set()
    for resource in api.RESOURCES:
        pattern = resource.pattern.pattern.decode().removeprefix("api/v1")
        for method in (*resource.handlers, *resource.uploads):
            real.add((pattern.replace("([^/]+)", "*"), method))
    import re

    assert {(re.sub(r"\{\w+\}", "*", path), method) for path, method in described} == real
