"""How a peer gets its certificates: enrolment with an invitation, renewal, and the credentials that come of them.

    HOME/pki/site.key, site.pem     the TLS key, which never leaves, and its certificate
    HOME/pki/identity.key           the Ed25519 key that the peer signs with; outlives certificates
    HOME/pki/ca.pem                 what the coordinator's certificate is checked against
    HOME/connection.json            where the coordinator is; written last

Everything can be done again after it broke off at any point.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from medfl.audit.file import flush_folder, rewrite
from medfl.audit.log import AuditLog
from medfl.errors import InputError, RunError
from medfl.folders import PEER, SITE, refuse_other
from medfl.keys import (
    Ask,
    is_protected,
    load_signing_key,
    load_tls_key,
    make_private_folder,
    new_tls_key,
    read_private,
    to_pem,
)
from medfl.privacy.identity import Ed25519Identity
from medfl.site.home import FOLDERS, SiteHome
from medfl.study.load import load_site_file
from medfl.transport.certificates import (
    Subject,
    fingerprint,
    parse_certificate,
    read_certificate,
    signed_by,
    signing_request,
    subject_of,
)
from medfl.transport.invitation import Connection, Invitation, read_json
from medfl.transport.peers import AdmissionError, NotCertified, Role

_NEXT = ".next"


class EnrolmentClient(Protocol):
    """The coordinator, as a peer asks it for certificates."""

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes: ...

    def renew(self, request: bytes) -> bytes: ...


Enter = Callable[[str, bytes], EnrolmentClient]
"""Connects to (address, authority's certificate) without a certificate of one's own."""
Return = Callable[[str, bytes, bytes, bytes], EnrolmentClient]
"""Connects to (address, authority's certificate, own key, own certificate)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer needs to connect. key: PEM without a passphrase, for the memory of this process only."""

    name: str
    role: Role
    connection: Connection
    identity: Ed25519Identity
    ca: bytes
    certificate: bytes
    begins: datetime
    expires: datetime
    key: bytes = field(repr=False)

    def renewal_due(self, now: datetime) -> bool:
        """Whether two thirds of the certificate's life are over."""
        return now >= self.expires - (self.expires - self.begins) / 3


class _Files:
    def __init__(self, home: Path) -> None:
        self.connection = home / "connection.json"
        self.pki = home / "pki"
        self.key, self.certificate = self.pki / "site.key", self.pki / "site.pem"
        self.identity, self.ca = self.pki / "identity.key", self.pki / "ca.pem"
        self.next_key, self.next_certificate = (
            path.with_name(path.name + _NEXT) for path in (self.key, self.certificate)
        )

    def of_an_enrolment(self) -> list[Path]:
        """What an enrolment makes, up to the answer; what lies in a folder stands before it."""
        home = self.pki.parent
        folders = [home / name for name in FOLDERS]
        return [self.key, self.identity, home / "site.yaml", home / "salt", *folders, home]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the keys to oneself: an agent and a command may both renew."""
        descriptor = os.open(self.pki, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # a renewal that broke off after its answer had come
            if self.next_certificate.exists():
                self.swap()
            yield
        finally:
            os.close(descriptor)

    def swap(self) -> None:
        with suppress(FileNotFoundError):  # moved before the break
            self.next_key.replace(self.key)
        self.next_certificate.replace(self.certificate)
        flush_folder(self.pki)


def enrol(
    invitation: Invitation,
    home: Path,
    site_file: Path | None,
    connect: Enter,
    ask: Ask | None = None,
    protect: bool = False,
    now: datetime | None = None,
) -> Credentials:
    """Make a home with fresh keys, and have the coordinator certify them; where there are keys they are kept.

    site_file: the hospital's file, copied into a home that has none. ask: for the passphrase of the keys; protect: also
    of new ones. InputError when the invitation expired or is for another site or another federation than the home is,
    or the home has another site file; RunError when the coordinator refuses, cannot be reached, or answers with a
    certificate of something else. What was made is removed again, unless the coordinator may have certified it.
    """
    if invitation.expired(now or datetime.now(UTC)):
        what = f"expired {invitation.expires:%Y-%m-%d %H:%M} UTC"
        raise InputError.at(f"invitation of {invitation.name}", what, "ask the study lead for a new one")
    authority = parse_certificate(invitation.ca.encode(), f"invitation of {invitation.name}: ca")
    files = _Files(home)
    _check_home(files, invitation, authority)
    source = _site_file(home, invitation, site_file)
    with _leaving_nothing(files):
        _make_home(home, files, source)
        answer, wanted, key = _asked(files, invitation, connect, ask, protect)
    with files.turn():
        rewrite(files.certificate, _checked(answer, key, wanted, authority))
        rewrite(files.ca, authority.public_bytes(Encoding.PEM))
        shared = invitation.model_dump(include=set(Connection.model_fields))
        connection = Connection(**shared, ca_sha256=fingerprint(authority))
        rewrite(files.connection, connection.model_dump_json(indent=2).encode() + b"\n")
    return _noted("enrolled", home, load_credentials(home, ask))


def _asked(
    files: _Files, invitation: Invitation, connect: Enter, ask: Ask | None, protect: bool
) -> tuple[bytes, Subject, EllipticCurvePublicKey]:
    """What the coordinator answered to an invitation, and what its certificate should be of."""
    with files.turn():
        passphrase = _passphrase(files.key, ask, protect)
        if not files.key.exists():
            rewrite(files.key, to_pem(new_tls_key(), passphrase))
        if not files.identity.exists():
            rewrite(files.identity, to_pem(Ed25519PrivateKey.generate(), passphrase))
        key, identity = load_tls_key(files.key, ask), _identity(files, invitation.name, ask)
        request = signing_request(key, invitation.name)
        client = connect(invitation.enrol_address, invitation.ca.encode())
        answer = client.enrol(invitation.token, request, identity.public.hex(), identity.sign(request))
    return answer, Subject(invitation.name, invitation.role, identity.public.hex()), key.public_key()


@contextmanager
def _leaving_nothing(files: _Files) -> Iterator[None]:
    """Remove what was made meanwhile when it turns out that no certificate came of it."""
    made = [path for path in files.of_an_enrolment() if not path.exists()]
    try:
        yield
    except (NotCertified, InputError, OSError):
        with files.turn() if files.pki.is_dir() else nullcontext():
            # another process may have come through with the same keys
            if not files.connection.exists():
                for path in made:
                    _remove(path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        # a folder that somebody else has put something in stays
        with suppress(OSError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)


def renew(home: Path, connect: Return, ask: Ask | None = None) -> Credentials:
    """Have a fresh TLS key certified; the identity stays, and the old certificate is good for a while. Errors as those
    of `enrol`."""
    old = load_credentials(home, ask)
    files = _Files(home)
    with files.turn():
        key = new_tls_key()
        rewrite(files.next_key, to_pem(key, _passphrase(files.key, ask, False)))
        client = connect(old.connection.address, old.ca, old.key, old.certificate)
        answer = client.renew(signing_request(key, old.name))
        wanted = Subject(old.name, old.role, old.identity.public.hex())
        authority = parse_certificate(old.ca, files.ca)
        rewrite(files.next_certificate, _checked(answer, key.public_key(), wanted, authority))
        files.swap()
    return _noted("renewed", home, load_credentials(home, ask))


def load_credentials(home: Path, ask: Ask | None = None) -> Credentials:
    """What a home connects with; InputError when it is not enrolled or its files do not belong together."""
    files = _Files(home)
    connection = read_connection(home)
    with files.turn():
        key, certificate, ca = (
            load_tls_key(files.key, ask),
            read_certificate(files.certificate),
            read_certificate(files.ca),
        )
        identity = _identity(files, connection.name, ask)
    wanted = Subject(connection.name, connection.role, identity.public.hex())
    try:
        pem = _checked(certificate.public_bytes(Encoding.PEM), key.public_key(), wanted, ca)
    except RunError as error:
        raise InputError.at(files.certificate, error.faults[0].what, "restore pki/ from one backup") from error
    if fingerprint(ca) != connection.ca_sha256:
        raise InputError.at(files.ca, "is not the authority that this home enrolled with", "restore it from the backup")
    return Credentials(
        name=connection.name,
        role=connection.role,
        connection=connection,
        identity=identity,
        ca=ca.public_bytes(Encoding.PEM),
        certificate=pem,
        begins=certificate.not_valid_before_utc,
        expires=certificate.not_valid_after_utc,
        key=to_pem(key),
    )


def read_connection(home: Path) -> Connection:
    """Where a home's coordinator is; InputError when it is not enrolled."""
    path = _Files(home).connection
    refuse_other(home, SITE, PEER)
    if not path.exists():
        raise InputError.at(home, "is not enrolled", f"medfl site enrol INVITATION --home {home}")
    return read_json(Connection, path, read_private(path))


def _check_home(files: _Files, invitation: Invitation, authority: x509.Certificate) -> None:
    """InputError when the home belongs to another federation, to another peer of it, or is no place for one."""
    home = files.pki.parent
    refuse_other(home, SITE, PEER)
    if home.exists():
        make_private_folder(home)
    if not files.connection.exists():
        return
    found = read_json(Connection, files.connection, read_private(files.connection))
    if found.ca_sha256 != fingerprint(authority):
        what = f"belongs to the federation of {found.coordinator}, whose authority is another than the invitation's"
        raise InputError.at(files.connection, what, "make a home of its own for this federation: --home")
    if (found.name, found.role) != (invitation.name, invitation.role):
        what = (
            f"is that of the {found.role} {found.name}, the invitation is for the {invitation.role} {invitation.name}"
        )
        raise InputError.at(files.connection, what, "make a home of its own: --home")


def _site_file(home: Path, invitation: Invitation, given: Path | None) -> Path | None:
    """The hospital's file that counts: the home's own, or the one to copy. None for peers that have no images."""
    own = home / "site.yaml"
    if invitation.role != "site":
        if given is not None:
            raise InputError.at("--site", f"is for a hospital, the invitation for a {invitation.role}", "leave it out")
        return None
    source = own if own.exists() else given
    if source is None:
        raise InputError.at("--site", "is missing", "give the hospital's YAML file, such as sites/hospital-a.yaml")
    if given is not None and load_site_file(given) != load_site_file(source):
        what = f"says something else than {own}, which counts"
        raise InputError.at(given, what, f"leave --site out, and edit {own}")
    name = load_site_file(source).name
    if name != invitation.name:
        what = f"is of {name}, the invitation is for {invitation.name}"
        raise InputError.at(source, what, "set `name` in the file, or ask the study lead for another invitation")
    return source


def _make_home(home: Path, files: _Files, source: Path | None) -> None:
    if source is not None:
        SiteHome.open(home) if source == home / "site.yaml" else SiteHome.create(home, source)
    make_private_folder(home)
    make_private_folder(files.pki)


def _noted(kind: str, home: Path, found: Credentials) -> Credentials:
    detail = {"coordinator": found.connection.coordinator, "address": found.connection.address}
    detail |= {"ca_sha256": found.connection.ca_sha256, "identity": found.identity.public.hex()}
    log = AuditLog.open(home / "audit.log", f"{found.role} {found.name}")
    log.append(kind, {**detail, "expires": found.expires.isoformat()})
    return found


def _passphrase(key: Path, ask: Ask | None, protect: bool) -> bytes | None:
    """The passphrase for new keys: that of the key which is there."""
    protected = is_protected(key) if key.exists() else protect
    if not protected:
        return None
    if ask is None:
        raise InputError.at(key, "needs a passphrase, and none was given", "give --passphrase-file")
    return ask(key)


def _identity(files: _Files, name: str, ask: Ask | None) -> Ed25519Identity:
    return Ed25519Identity(name, load_signing_key(files.identity, ask))


def _checked(answer: bytes, key: EllipticCurvePublicKey, wanted: Subject, authority: x509.Certificate) -> bytes:
    """A certificate (PEM) that is what was asked for; RunError says how it is not."""
    where = f"certificate of {wanted.name}"
    try:
        found = parse_certificate(answer, where)
        subject = subject_of(found)
    except (InputError, AdmissionError) as error:
        raise RunError.at(where, error.faults[0].what, "ask the study lead") from error
    if found.public_key() != key:
        raise RunError.at(where, "is for another key than this home's", "ask the study lead")
    if subject != wanted:
        raise RunError.at(
            where, f"is for the {subject.role} {subject.name}, not the {wanted.role}", "ask the study lead"
        )
    if not signed_by(found, authority):
        raise RunError.at(where, "was not signed by the federation's authority", "ask the study lead")
    return found.public_bytes(Encoding.PEM)
