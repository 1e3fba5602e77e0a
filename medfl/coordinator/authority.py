"""The study lead's certificate authority: it signs the coordinator's certificate and those of the peers.

X.509 (RFC 5280) with P-256 and SHA-256 throughout, which BoringSSL accepts; Ed25519 keys sign messages, never
certificates. A peer's request proves its key and says nothing else: name, role and identity are set here.
"""

import ipaddress
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfl.errors import InputError, RunError
from medfl.keys import Ask, load_tls_key, new_tls_key
from medfl.transport.certificates import NAME_LENGTH, Subject, identity_uri, read_certificate

Clock = Callable[[], datetime]

AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
PEER_LIFE = timedelta(days=90)

_SKEW = timedelta(minutes=5)  # a peer's clock may be this much behind


def utc_now() -> datetime:
    return datetime.now(UTC)


class Authority:
    """Make one with `create`, or `open` the one in two files."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock = utc_now) -> None:
        self.key = key
        self.certificate = certificate
        self._clock = clock

    @classmethod
    def create(cls, name: str, clock: Clock = utc_now) -> "Authority":
        """A fresh key and the certificate it signed itself, good for ten years."""
        key, subject, now = new_tls_key(), _common_name(f"{name[: NAME_LENGTH - 3]} CA"), clock()
        public = key.public_key()
        certificate = (
            _builder(subject, subject, public, now, now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate, clock)

    @classmethod
    def open(cls, key: Path, certificate: Path, ask: Ask | None = None, clock: Clock = utc_now) -> "Authority":
        """The authority of these files; InputError when they do not belong together."""
        private, read = load_tls_key(key, ask), read_certificate(certificate)
        if read.public_key() != private.public_key():
            raise InputError.at(certificate, f"does not belong to the key {key}", "restore both from one backup")
        return cls(private, read, clock)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue_server(self, key: EllipticCurvePublicKey, hosts: Sequence[str]) -> x509.Certificate:
        """The coordinator's certificate for these DNS names and IP addresses."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._issue(_common_name("coordinator"), key, SERVER_LIFE, names, ExtendedKeyUsageOID.SERVER_AUTH)

    def issue(self, key: EllipticCurvePublicKey, subject: Subject, life: timedelta = PEER_LIFE) -> x509.Certificate:
        """A peer's certificate: CN its name, OU its role, and its identity as the URI `medfl:identity:<hex>`."""
        named = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, subject.role),
                x509.NameAttribute(NameOID.COMMON_NAME, subject.name),
            ]
        )
        identity = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity_uri(subject.identity))])
        return self._issue(named, key, life, identity, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        subject: x509.Name,
        key: EllipticCurvePublicKey,
        life: timedelta,
        names: x509.SubjectAlternativeName,
        purpose: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        now, end = self._clock(), self.certificate.not_valid_after_utc
        if now >= end:
            raise RunError.at(
                "certificate authority", f"its certificate ended {end:%Y-%m-%d}", "set up a new coordinator, enrol anew"
            )
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(subject, self.certificate.subject, key, now, min(now + life, end))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(own, critical=False)
            .sign(self.key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    serial = x509.random_serial_number()
    return builder.serial_number(serial).not_valid_before(now - _SKEW).not_valid_after(end)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
