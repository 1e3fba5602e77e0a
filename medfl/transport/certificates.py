"""Certificates and signing requests as both sides read them. What a peer's certificate says is decided in
`medfl.coordinator.authority`."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from medfl.errors import InputError, MedflError
from medfl.transport.peers import AdmissionError, Role

NAME_LENGTH = 64
"""Largest common name of a certificate (RFC 5280, ub-common-name)."""

_IDENTITY = "medfl:identity:"
_LARGEST_REQUEST = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a peer's certificate is for. identity: the public Ed25519 key as hex."""

    name: str
    role: Role
    identity: str


def identity_uri(identity: str) -> str:
    """How a certificate names an identity (the public Ed25519 key as hex)."""
    return _IDENTITY + identity


def signing_request(key: EllipticCurvePrivateKey, name: str) -> bytes:
    """A request (PEM) for a certificate of this key. The name is for its reader: the authority sets its own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject_name=subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def requested_key(request: bytes) -> EllipticCurvePublicKey:
    """The public key of a signing request (PEM) that its holder signed; AdmissionError says what is wrong with it.
    Nothing else that the request says counts."""
    if len(request) > _LARGEST_REQUEST:
        raise _refused(f"is larger than {_LARGEST_REQUEST} bytes")
    try:
        read = x509.load_pem_x509_csr(request)
        key, proven = read.public_key(), read.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _refused(f"cannot be read: {error}") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _refused("asks for a key that is not on P-256")
    if not proven:
        raise _refused("was not signed by the key that it asks for")
    return key


def subject_of(certificate: x509.Certificate) -> Subject:
    """Whom a peer's certificate is for; AdmissionError when it does not say so as `Authority.issue` writes it."""
    try:
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        (role,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = found.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise AdmissionError.at("certificate", f"is not a peer's: {error}") from error
    if not uri.startswith(_IDENTITY) or role.value not in get_args(Role):
        raise AdmissionError.at("certificate", "is not a peer's: it names no role and identity of medfl")
    return Subject(str(name.value), cast(Role, role.value), uri.removeprefix(_IDENTITY))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate (DER), as hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def parse_certificate(pem: bytes, where: object) -> x509.Certificate:
    """A certificate's text; InputError when it is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise InputError.at(where, f"is not a certificate in PEM: {error}", "restore it, or enrol again") from error


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file; InputError when there is none."""
    try:
        return parse_certificate(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise InputError.at(path, "does not exist", "check the path, or restore it from the backup") from error


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _refused(what: str) -> MedflError:
    return AdmissionError.at("signing request", what)
