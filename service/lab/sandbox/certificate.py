"""The sandbox's own authority and certificate, created at first start and renewed near expiry."""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Browsers and strict verifiers refuse a server's certificate above 398 days.
VALID_FOR = timedelta(days=397)
REMAKE_BEFORE_END = timedelta(days=30)
# A clock slightly behind ours must still find the certificate valid.
CLOCK_SKEW = timedelta(hours=1)


def server_context(folder: Path, *, now: datetime) -> ssl.SSLContext:
    """A TLS context for a server on this machine; clients verify with `folder/ca.pem`."""
    if not _is_usable(folder, now):
        _make(folder, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


def _is_usable(folder: Path, now: datetime) -> bool:
    names = ("ca.pem", "server.pem", "server.key")
    if not all((folder / name).is_file() for name in names):
        return False
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    return certificate.not_valid_after_utc - now > REMAKE_BEFORE_END


def _make(folder: Path, now: datetime) -> None:
    """Write all files beside the old ones, then rename: a killed start leaves no partial result."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, now)
    server = _server(server_key.public_key(), authority, authority_key, now)
    # The authority's key is discarded: no second certificate can ever be signed with it.
    _write(fresh / "ca.pem", authority.public_bytes(Encoding.PEM), mode=0o644)
    _write(fresh / "server.pem", server.public_bytes(Encoding.PEM), mode=0o644)
    key_pem = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(fresh / "server.key", key_pem, mode=0o600)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast sandbox authority")])
    public = key.public_key()
    return (
        _dated(x509.CertificateBuilder(), now)
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server(
    public: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    own_names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _dated(x509.CertificateBuilder(), now)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(authority.subject)
        .public_key(public)
        .add_extension(own_names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _dated(builder: x509.CertificateBuilder, now: datetime) -> x509.CertificateBuilder:
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID_FOR)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
