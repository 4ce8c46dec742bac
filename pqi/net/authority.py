"""The demo's certificate authority: one CA, one certificate per role (ECDSA P-256, X.509 v3).

A role is a URI in its certificate (``pqi:role:server_a``). Whoever holds the CA key decides who may play which role;
it stays with the model owner and is copied to no server. A deployment with an authority of its own needs only
certificates that carry the same URIs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROLE_URI = "pqi:role:"
CA_DAYS, ROLE_DAYS = 1095, 365
_CLOCK_SKEW = timedelta(minutes=10)

# Who opens connections and who accepts them: a certificate is good for exactly that.
_DIALS = {"server_a", "dealer", "client"}
_ACCEPTS = {"server_a", "server_b"}


@dataclass(frozen=True, repr=False)
class Authority:
    """A certificate authority in memory. Holds its signing key; refuses to show it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()}, key hidden)"


def make_authority(name: str = "pqi demo authority") -> Authority:
    """A fresh authority: self-signed, may sign certificates of roles and nothing below them (path length 0)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(authority: Authority, role: str) -> tuple[bytes, bytes]:
    """A certificate and its private key for one role, both PEM. The key is secret."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"pqi {role}")])
    usages = []
    if role in _ACCEPTS:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    if role in _DIALS:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    if not usages:
        raise ValueError(f"unknown role {role!r}; roles are {sorted(_DIALS | _ACCEPTS)}")
    issuer = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), ROLE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ROLE_URI + role)]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read (0600 from its first moment). Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def make_private_directory(path: Path) -> None:
    """Make a directory that only its owner may enter (0700); keep one that is there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_keys(directory: Path, roles: Iterable[str]) -> None:
    """Make an authority in ``directory``/authority and ``directory``/ROLE/tls/{ca,cert,key}.pem for every role.

    Raises FileExistsError rather than replace a key.
    """
    authority = make_authority()
    home = directory / "authority"
    if (home / "ca_key.pem").exists():
        raise FileExistsError(f"{home / 'ca_key.pem'} exists; keys are made once. Remove {home} to begin anew.")
    make_private_directory(home)
    ca_pem = authority.certificate.public_bytes(serialization.Encoding.PEM)
    write_private(home / "ca_key.pem", _key_pem(authority.key))
    write_private(home / "ca.pem", ca_pem)
    for role in roles:
        certificate, key = issue(authority, role)
        tls = directory / role / "tls"
        make_private_directory(tls)
        write_private(tls / "key.pem", key)
        write_private(tls / "cert.pem", certificate)
        write_private(tls / "ca.pem", ca_pem)
