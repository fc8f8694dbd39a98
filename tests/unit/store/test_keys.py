"""Keys and certificates: their modes, that they verify, that they are renewed when they must be."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.store import keys, verdict


@pytest.fixture
def folder(tmp_path: Path) -> str:
    path = str(tmp_path / "keys")
    keys.create_keys(path, ["store.example"])
    return path


def read(folder: str, name: str) -> bytes:
    return Path(folder, name).read_bytes()


def test_secrets_are_for_the_owner_alone(folder: str) -> None:
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in ("ca.key", "server.key", "verdict.key"):
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_making_keys_again_changes_nothing(folder: str) -> None:
    before = {name: read(folder, name) for name in os.listdir(folder)}
    keys.create_keys(folder, ["store.example"])
    assert {name: read(folder, name) for name in os.listdir(folder)} == before


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "store.example"])
def test_a_client_that_knows_the_authority_trusts_the_server(folder: str, host: str) -> None:
    certificate, key = keys.server_certificate(folder)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with server.wrap_socket(theirs, server_side=True) as stream:
            stream.sendall(b"hello")

    thread = threading.Thread(target=answer)
    thread.start()
    with client.wrap_socket(ours, server_hostname=host) as stream:
        assert stream.recv(5) == b"hello"
    thread.join()


def test_a_certificate_that_ends_soon_is_renewed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(folder, "server.pem")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=370)
    monkeypatch.setattr(keys, "_now", lambda: later)
    assert keys.renew_certificate(folder)
    assert read(folder, "server.pem") != before
    assert not keys.renew_certificate(folder)


def test_a_new_host_is_added_to_the_old_ones(folder: str) -> None:
    assert keys.renew_certificate(folder, ["10.1.2.3"])
    assert not keys.renew_certificate(folder, ["store.example"])


def test_a_key_torn_from_its_certificate_is_replaced(folder: str, tmp_path: Path) -> None:
    keys.create_keys(str(tmp_path / "other"))
    os.replace(tmp_path / "other" / "server.key", os.path.join(folder, "server.key"))
    assert keys.renew_certificate(folder)
    certificate, key = keys.server_certificate(folder)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_signatures_hold_for_what_was_signed_only(folder: str, tmp_path: Path) -> None:
    signature = keys.signing_key(folder).sign(b"verdict")
    public = keys.public_key(folder)
    assert keys.verify(public, signature, b"verdict")
    assert not keys.verify(public, signature, b"Verdict")
    assert not keys.verify(public, signature[:-1] + bytes([signature[-1] ^ 1]), b"verdict")
    keys.create_keys(str(tmp_path / "other"))
    assert not keys.verify(keys.public_key(str(tmp_path / "other")), signature, b"verdict")


# --- rotation of the verdict key ----------------------------------------------------------------


def secret_and_public(folder: str) -> tuple[bytes, bytes]:
    return read(folder, "verdict.key"), read(folder, "verdict.pub")


def test_a_rotated_key_signs_and_the_old_one_leads_to_it(folder: str) -> None:
    first = keys.public_key(folder)
    stated = [keys.rotate_verdict_key(folder, time) for time in ("2012", "2013")]
    now = keys.signing_key(folder)
    assert keys.public_key(folder) == now.public_key != first
    assert list(now.rotations) == keys.rotations(folder) == stated
    assert keys.verify(now.public_key, now.sign(b"verdict"), b"verdict")
    trusted = verdict.follow_rotations(first, stated)
    assert verdict.fingerprint(trusted[-1]) == verdict.fingerprint(now.public_key)
    assert stat.S_IMODE(os.stat(os.path.join(folder, "verdict.key")).st_mode) == 0o600
    assert "verdict.next.key" not in os.listdir(folder)


class Cut(Exception):
    """The process ends here."""


@pytest.mark.parametrize("steps", range(6))
def test_a_rotation_that_is_cut_off_is_finished_or_never_was(
    folder: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, left = keys.public_key(folder), steps
    write, rename = keys._write, os.rename

    def step(work: Callable[..., None]) -> Callable[..., None]:
        def limited(*arguments: Any) -> None:
            nonlocal left
            if not left:
                raise Cut
            left -= 1
            work(*arguments)

        return limited

    with monkeypatch.context() as patched:
        patched.setattr(keys, "_write", step(write))
        patched.setattr(keys.os, "rename", step(rename))
        with contextlib.suppress(Cut):
            keys.rotate_verdict_key(folder, "2012")
    during = keys.signing_key(folder)  # a validation may end at this very instant
    assert keys.verify(during.public_key, during.sign(b"x"), b"x")
    keys.renew_certificate(folder)
    now = keys.signing_key(folder)
    assert keys.public_key(folder) == now.public_key
    assert "verdict.next.key" not in os.listdir(folder)
    trusted = verdict.follow_rotations(first, keys.rotations(folder))
    assert verdict.fingerprint(trusted[-1]) == verdict.fingerprint(now.public_key)
    assert (now.public_key == first) == (keys.rotations(folder) == [])
