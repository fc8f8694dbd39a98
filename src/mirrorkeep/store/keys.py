"""The store's keys: its own certificate authority, the server's certificate, the key that signs verdicts.

Answers for: files under ``DATA/keys`` (folder 0700, secrets 0600, never inside the pool): ``ca.pem``,
``ca.key``, ``server.pem``, ``server.key`` (EC P-256), ``verdict.key``, ``verdict.pub`` (Ed25519), and
``verdict.rotations``, how each verdict key was handed over to the next, a statement a line.  A real
certificate takes the place of ``server.pem`` by configuration (``pool.Store.certificate``).

Not here: what is signed (``verdict``), TLS itself (``server``).  Secrets are written before what is public
about them, each atomically: a crash leaves nothing that :func:`create_keys` would not complete.  A rotation
is decided by its statement: before that a crash leaves ``verdict.next.key``, which is thrown away, after that
one which :func:`finish_rotation` puts in its place.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirrorkeep.store.verdict import make_rotation
from mirrorkeep.tree.durability import flush_directory
from mirrorkeep.tree.staging import write_all

_CA_DAYS: Final = 3650
_SERVER_DAYS: Final = 397
"""The longest that browsers accept."""
_RENEW_DAYS: Final = 30
_PKCS8: Final = serialization.PrivateFormat.PKCS8
_PEM: Final = serialization.Encoding.PEM
_PLAIN: Final = serialization.NoEncryption()


def create_keys(folder: str, hosts: Iterable[str] = ()) -> None:
    """Make what is missing of the keys in ``folder``; what is there stays.  Repeatable."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    if not os.path.exists(os.path.join(folder, "ca.pem")):
        _create_authority(folder)
    if not os.path.exists(os.path.join(folder, "verdict.pub")):
        _create_verdict_key(folder)
    renew_certificate(folder, hosts)


def renew_certificate(folder: str, hosts: Iterable[str] = ()) -> bool:
    """Issue the server's certificate anew when it is missing, ends within 30 days, or lacks a host.

    Returns whether it did.  Clients trust the authority, so that they do not notice.  A rotation of the
    verdict key that was cut off is finished, too.
    """
    with _locked(folder):
        finish_rotation(folder)
    names = _names({"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts})
    path = os.path.join(folder, "server.pem")
    if os.path.exists(path):
        with open(path, "rb") as stream:
            present = x509.load_pem_x509_certificate(stream.read())
        known = set(present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        left = present.not_valid_after_utc - _now()
        if known >= set(names) and left > datetime.timedelta(_RENEW_DAYS) and _belongs(folder, present):
            return False
        names = sorted(known | set(names), key=repr)
    _issue(folder, names)
    return True


def server_certificate(folder: str) -> tuple[str, str]:
    """Return the paths of the server's certificate chain and its key."""
    return os.path.join(folder, "server.pem"), os.path.join(folder, "server.key")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The verdict key of one instant: what signs (64 bytes), its public key (PEM), all rotations so far."""

    sign: Callable[[bytes], bytes]
    public_key: bytes
    rotations: tuple[dict[str, Any], ...]


def signing_key(folder: str) -> SigningKey:
    """Return the store's verdict key as it is now; keep it for one signature only."""
    key = _verdict_key(os.path.join(folder, "verdict.key"))
    return SigningKey(key.sign, _public_pem(key), tuple(rotations(folder)))


def public_key(folder: str) -> bytes:
    """Return the public verdict key, PEM."""
    with open(os.path.join(folder, "verdict.pub"), "rb") as stream:
        return stream.read()


def verify(public_pem: bytes, signature: bytes, payload: bytes) -> bool:
    """Whether ``signature`` is that of ``payload`` under the key.  Raises ValueError for no such key."""
    key = serialization.load_pem_public_key(public_pem)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")  # noqa: TRY004
    try:
        key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True


# --- rotation -----------------------------------------------------------------------------------


def rotate_verdict_key(folder: str, time: str) -> dict[str, Any]:
    """Put a new verdict key in place of the old one, whose secret is gone then; return the statement.

    Old verdicts stay checkable: the statement, signed by both keys, leads from the old one to the new.  May
    be done while the store serves.  Durable when this returns; OSError: the old key stays, or the next start
    or rotation finishes what was decided.
    """
    with _locked(folder):
        finish_rotation(folder)
        old = _verdict_key(os.path.join(folder, "verdict.key"))
        new = ed25519.Ed25519PrivateKey.generate()
        _write(folder, "verdict.next.key", new.private_bytes(_PEM, _PKCS8, _PLAIN), 0o600)
        statement = make_rotation(old.sign, _public_pem(old), new.sign, _public_pem(new), time)
        lines = [json.dumps(one, sort_keys=True) + "\n" for one in (*rotations(folder), statement)]
        _write(folder, "verdict.rotations", "".join(lines).encode("ascii"), 0o644)
        finish_rotation(folder)
    return statement


def rotations(folder: str) -> list[dict[str, Any]]:
    """Return the statements by which verdict keys were handed over, oldest first."""
    try:
        with open(os.path.join(folder, "verdict.rotations"), "rb") as stream:
            return [json.loads(line) for line in stream]
    except FileNotFoundError:
        return []


def finish_rotation(folder: str) -> None:
    """Finish a rotation that was decided, forget one that was not.  Repeatable."""
    path = os.path.join(folder, "verdict.key")
    following = os.path.join(folder, "verdict.next.key")
    if os.path.exists(following):
        stated = rotations(folder)
        raw = _verdict_key(following).public_key().public_bytes_raw()
        if stated and base64.b64decode(stated[-1]["new_key"]) == raw:
            os.rename(following, path)
        else:
            os.unlink(following)
        flush_directory(folder)
    if os.path.exists(path):
        public = _public_pem(_verdict_key(path))
        with contextlib.suppress(FileNotFoundError):
            if public_key(folder) == public:
                return
        _write(folder, "verdict.pub", public, 0o644)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- making -------------------------------------------------------------------------------------


def _verdict_key(path: str) -> ed25519.Ed25519PrivateKey:
    key = _load_secret(path)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key


def _public_pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _create_authority(folder: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Mirrorkeep"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Mirrorkeep store {socket.gethostname()}"[:64]),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder, "ca.key", key.private_bytes(_PEM, _PKCS8, _PLAIN), 0o600)
    _write(folder, "ca.pem", certificate.public_bytes(_PEM), 0o644)


def _issue(folder: str, names: list[x509.GeneralName]) -> None:
    authority_key = _load_secret(os.path.join(folder, "ca.key"))
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    with open(os.path.join(folder, "ca.pem"), "rb") as stream:
        authority = x509.load_pem_x509_certificate(stream.read())
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder, "server.key", key.private_bytes(_PEM, _PKCS8, _PLAIN), 0o600)
    _write(folder, "server.pem", certificate.public_bytes(_PEM), 0o644)


def _create_verdict_key(folder: str) -> None:
    path = os.path.join(folder, "verdict.key")
    if not os.path.exists(path):
        key = ed25519.Ed25519PrivateKey.generate()
        _write(folder, "verdict.key", key.private_bytes(_PEM, _PKCS8, _PLAIN), 0o600)
    _write(folder, "verdict.pub", _public_pem(_verdict_key(path)), 0o644)


def _belongs(folder: str, certificate: x509.Certificate) -> bool:
    """Whether the key on disk is the certificate's: a crash between writing the two tears the pair."""
    try:
        key = _load_secret(os.path.join(folder, "server.key"))
    except (FileNotFoundError, ValueError):
        return False
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key() == certificate.public_key()


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clients' clocks may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in sorted(filter(None, hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host.strip("[]"))))
        except ValueError:
            names.append(x509.DNSName(host.encode("idna").decode()))
    return names


def _load_secret(path: str) -> object:
    with open(path, "rb") as stream:
        return serialization.load_pem_private_key(stream.read(), password=None)


def _write(folder: str, name: str, data: bytes, mode: int) -> None:
    path = os.path.join(folder, name)
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    flush_directory(folder)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
