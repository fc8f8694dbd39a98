"""The store's keys: its own certificate authority, the server's certificate, the key that signs verdicts.

Answers for: files under ``DATA/keys`` (folder 0700, secrets 0600, never inside the pool): ``ca.pem``,
``ca.key``, ``server.pem``, ``server.key`` (EC P-256), ``verdict.key``, ``verdict.pub`` (Ed25519).  A real
certificate takes the place of ``server.pem`` by configuration (``pool.Store.certificate``).

Not here: what is signed (``verdict``), TLS itself (``server``).  Secrets are written before what is public
about them, each atomically: a crash leaves nothing that :func:`create_keys` would not complete.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirrorkeep.store.records import flush_directory

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

    Returns whether it did.  Clients trust the authority, so that they do not notice.
    """
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


def sign(folder: str, payload: bytes) -> bytes:
    """Return the Ed25519 signature (64 bytes) of ``payload`` under the store's verdict key."""
    return _verdict_key(os.path.join(folder, "verdict.key")).sign(payload)


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


# --- making -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _verdict_key(path: str) -> ed25519.Ed25519PrivateKey:
    key = _load_secret(path)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key


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
    public = _verdict_key(path).public_key()
    pem = public.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(folder, "verdict.pub", pem, 0o644)


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
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    flush_directory(folder)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
