"""The register of peers (registry.db): who was invited, who holds which certificate, and whose no longer counts.

One token lets one peer in once. A name stays with the identity that first enrolled under it until the study lead
revokes it; certificates come and go. Every change is handed to `note` before it is committed, so that nothing counts
that the audit log does not know of.
"""

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, Engine, PoolProxiedConnection, Row, insert, select, update
from sqlalchemy.exc import DatabaseError

from medfl.coordinator.authority import Authority, Clock, utc_now
from medfl.coordinator.register_tables import SCHEMA, WRITING, certificates, connect, facts, invitations, metadata
from medfl.errors import InputError, MedflError, RunError
from medfl.study.reserved import RESERVED
from medfl.transport.certificates import NAME_LENGTH, Subject, fingerprint, requested_key, subject_of
from medfl.transport.invitation import NAME
from medfl.transport.peers import AdmissionError, Doorkeeper, Peer, Role

Note = Callable[[str, Mapping[str, Any]], object]
"""Told of everything that happens, as (kind, detail)."""

INVITATION_LIFE = timedelta(hours=72)
OVERLAP = timedelta(days=7)
"""How long a certificate stays good after it was replaced."""

_IDENTITY = re.compile(r"[0-9a-f]{64}")
_NOTED = 1000  # refusals at the door that are remembered, so that each is noted once


@dataclass(frozen=True, slots=True)
class PeerState:
    """A line of the register. state: "invited" (for the first time, or again after its certificate ended), "lapsed"
    (its invitation ended unused), "enrolled", "expired" or "revoked". expires: when the certificate, else the
    invitation ends."""

    name: str
    role: Role
    state: str
    expires: datetime
    identity: str = ""


class Register(Doorkeeper):
    """Make one with `create`, else `open`. Without an authority it admits, invites and revokes, but issues nothing."""

    def __init__(self, engine: Engine, path: Path, authority: Authority | None, note: Note, clock: Clock) -> None:
        self.path = path
        self._engine = engine
        self._authority = authority
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        # one connection of its own: SQLite's data_version tells it of every commit by any other
        self._watch: PoolProxiedConnection | None = None
        self._version = -1
        self._known: dict[str, Row[Any]] = {}
        self._noted: set[tuple[str, str]] = set()

    @classmethod
    def create(
        cls, path: Path, authority: Authority | None = None, note: Note = lambda *_: None, clock: Clock = utc_now
    ) -> "Register":
        """An empty register; InputError when there is one already."""
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError as error:
            raise InputError.at(path, "exists already", "open it, or choose another folder") from error
        register = cls(connect(path), path, authority, note, clock)
        with register._transaction(writing=True) as database:
            metadata.create_all(database)
            database.execute(insert(facts).values(key="schema", value=str(SCHEMA)))
        return register

    @classmethod
    def open(
        cls, path: Path, authority: Authority | None = None, note: Note = lambda *_: None, clock: Clock = utc_now
    ) -> "Register":
        """The register in a file; InputError when there is none that this version can read."""
        if not path.is_file():
            raise InputError.at(path, "does not exist", "make it with `medfl coordinator init`")
        try:
            register = cls(connect(path), path, authority, note, clock)
            with register._transaction() as database:
                schema = database.execute(select(facts.c.value).where(facts.c.key == "schema")).scalar()
        except (DatabaseError, RunError) as error:
            raise InputError.at(path, "is not a register of medfl", "restore it from the backup") from error
        if schema != str(SCHEMA):
            raise InputError.at(
                path, f"has schema {schema}, this version reads {SCHEMA}", "use the version that wrote it"
            )
        return register

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._engine.dispose()

    # what the study lead does

    def invite(self, name: str, role: Role = "site", life: timedelta = INVITATION_LIFE) -> tuple[str, datetime]:
        """A token (256 bits) that lets this peer in once, and when it expires. Open invitations of the same name end.
        InputError for a name that cannot be, or that is there with another role."""
        _check_name(name)
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._transaction(writing=True) as database:
            for row in self._standing(database, name):
                if row.role != role:
                    remedy = f"revoke {name} first, or choose another name"
                    raise InputError.at(name, f"is enrolled as {row.role}, not as {role}", remedy)
            self._withdraw(database, name, now)
            about = {"name": name, "role": role, "created_at": now, "expires_at": now + life}
            database.execute(insert(invitations).values(token=_digest(token), **about))
            self._note("invited", {"name": name, "role": role, "expires": _text(now + life)})
        return token, now + life

    def revoke(self, name: str) -> int:
        """End every certificate and open invitation of a peer, at once; how many certificates. InputError when the
        register has nothing of that name that could still be used."""
        now = self._clock()
        with self._transaction(writing=True) as database:
            place = (certificates.c.name == name, certificates.c.revoked_at.is_(None))
            serials = database.execute(select(certificates.c.serial).where(*place)).scalars().all()
            database.execute(update(certificates).where(*place).values(revoked_at=now))
            ended = self._withdraw(database, name, now)
            if not serials and not ended:
                remedy = "see `medfl coordinator peers` for who is there"
                raise InputError.at(name, "has no certificate and no invitation that could be revoked", remedy)
            self._note("revoked", {"name": name, "serials": list(serials), "invitations": ended})
        return len(serials)

    def peers(self) -> list[PeerState]:
        """Everybody that was ever invited, by name."""
        now = self._clock()
        found: dict[str, PeerState] = {}
        with self._transaction() as database:
            for row in database.execute(select(invitations).order_by(invitations.c.id)):
                open_ = row.used_at is None and row.withdrawn_at is None and row.expires_at > now
                found[row.name] = PeerState(row.name, row.role, "invited" if open_ else "lapsed", row.expires_at)
            for row in database.execute(select(certificates).order_by(certificates.c.issued_at, certificates.c.serial)):
                state = "revoked" if row.revoked_at else "expired" if row.not_after <= now else "enrolled"
                if state == "enrolled" or found[row.name].state != "invited":
                    found[row.name] = PeerState(row.name, row.role, state, row.not_after, row.identity)
        return [found[name] for name in sorted(found)]

    # what the coordinator does

    def admit(self, certificate: bytes) -> Peer:
        """The peer of a certificate; see `Doorkeeper.admit`. A revocation by any process counts from its commit on."""
        try:
            read = x509.load_pem_x509_certificate(certificate)
        except (ValueError, x509.InvalidVersion) as error:
            raise AdmissionError.at("certificate", "is not a certificate in PEM") from error
        mark = fingerprint(read)
        row = self._certificates().get(mark)
        why = "is not in the register" if row is None else self._why_not(row, read)
        if row is None or why:
            self._note_once(mark, row, why)
            raise AdmissionError.at(f"certificate {mark[:16]}" + (f" of {row.name}" if row else ""), why)
        return Peer(row.name, row.role, row.fingerprint, row.identity)

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        """A peer's first certificate, or the next one under the same identity; see `Doorkeeper.enrol`.

        The same token gives the same certificate again to the same identity and key while the invitation lives, for a
        peer whose answer was lost. Why somebody was refused is told to `note` alone.
        """
        about: dict[str, Any] = {}
        try:
            return self._enrol(token, request, identity, proof, about)
        except AdmissionError as error:
            self._note("enrolment-refused", {**about, "why": error.faults[0].what})
            remedy = "ask the study lead, whose audit log says why"
            raise AdmissionError.at("enrolment", "was refused", remedy) from error

    def renew(self, peer: Peer, request: bytes) -> bytes:
        """A new certificate for the same name, role and identity. Those before it stay good for a week, or until they
        expire."""
        try:
            return self._renew(peer, request)
        except AdmissionError as error:
            self._note("renewal-refused", {"name": peer.name, "why": error.faults[0].what})
            raise

    def _renew(self, peer: Peer, request: bytes) -> bytes:
        key, now = requested_key(request), self._clock()
        with self._transaction(writing=True) as database:
            place = certificates.c.fingerprint == peer.fingerprint
            row = database.execute(select(certificates).where(place)).first()
            why = "is not in the register" if row is None else _ended(row, now)
            if row is None or why:
                raise AdmissionError.at(f"certificate of {peer.name}", why)
            issued = self._issue(database, key, Subject(row.name, row.role, row.identity), now)
            detail = {"serial": f"{issued.serial_number:x}", "expires": _text(issued.not_valid_after_utc)}
            self._note("renewed", {"name": row.name, **detail})
        return issued.public_bytes(Encoding.PEM)

    def _enrol(self, token: str, request: bytes, identity: str, proof: bytes, about: dict[str, Any]) -> bytes:
        with self._transaction() as database:
            invitation = _invitation(database, token)
        about["name"] = invitation.name
        if invitation.withdrawn_at is not None:
            raise _refused("the invitation was withdrawn")
        if self._clock() >= invitation.expires_at:
            raise _refused("the invitation expired")
        _check_proof(identity, request, proof)
        key = requested_key(request)
        with self._transaction(writing=True) as database:
            now = self._clock()
            place = (invitations.c.id == invitation.id, invitations.c.withdrawn_at.is_(None))
            unused = update(invitations).where(*place, invitations.c.used_at.is_(None)).values(used_at=now)
            if database.execute(unused).rowcount != 1:
                return self._again(database, invitation.id, key, identity)
            self._check_identity(database, invitation, identity)
            issued = self._issue(database, key, Subject(invitation.name, invitation.role, identity), now)
            serial = f"{issued.serial_number:x}"
            database.execute(update(invitations).where(invitations.c.id == invitation.id).values(serial=serial))
            detail = {"serial": serial, "identity": identity, "expires": _text(issued.not_valid_after_utc)}
            self._note("enrolled", {"name": invitation.name, "role": invitation.role, **detail})
        return issued.public_bytes(Encoding.PEM)

    def _again(self, database: Connection, invitation: int, key: EllipticCurvePublicKey, identity: str) -> bytes:
        """The certificate that an invitation was used for, for whoever used it."""
        joined = select(certificates).join(invitations, invitations.c.serial == certificates.c.serial)
        row = database.execute(joined.where(invitations.c.id == invitation)).first()
        if row is None or row.identity != identity or x509.load_pem_x509_certificate(row.pem).public_key() != key:
            raise _refused("the invitation was used by another key")
        if row.revoked_at is not None:
            raise _refused("the certificate that the invitation was used for is revoked")
        self._note("taken-again", {"name": row.name, "serial": row.serial})
        return bytes(row.pem)

    def _check_identity(self, database: Connection, invitation: Row[Any], identity: str) -> None:
        for row in self._standing(database, invitation.name):
            if row.identity != identity:
                raise _refused("the name is enrolled under another identity, which was not revoked")
            if row.role != invitation.role:
                raise _refused(f"the name is enrolled as {row.role}")
        place = (certificates.c.identity == identity, certificates.c.name != invitation.name)
        other = database.execute(select(certificates.c.name).where(*place)).scalar()
        if other is not None:
            raise _refused(f"the identity is that of {other}")

    def _issue(
        self, database: Connection, key: EllipticCurvePublicKey, subject: Subject, now: datetime
    ) -> x509.Certificate:
        if self._authority is None:
            raise RunError.at(self.path, "was opened without the authority's key, and cannot issue certificates")
        issued = self._authority.issue(key, subject)
        for row in self._standing(database, subject.name):
            if row.replaced_at is None:
                ends = {"replaced_at": now, "good_until": min(now + OVERLAP, row.not_after)}
                database.execute(update(certificates).where(certificates.c.serial == row.serial).values(ends))
        about = {"name": subject.name, "role": subject.role, "identity": subject.identity, "issued_at": now}
        about |= {"serial": f"{issued.serial_number:x}", "fingerprint": fingerprint(issued)}
        about |= {"not_after": issued.not_valid_after_utc, "pem": issued.public_bytes(Encoding.PEM)}
        database.execute(insert(certificates).values(about))
        return issued

    @staticmethod
    def _standing(database: Connection, name: str) -> list[Row[Any]]:
        """The certificates of a name that were not revoked, expired ones too: they hold the name."""
        place = (certificates.c.name == name, certificates.c.revoked_at.is_(None))
        return list(database.execute(select(certificates).where(*place)).all())

    @staticmethod
    def _withdraw(database: Connection, name: str, now: datetime) -> int:
        open_ = (invitations.c.name == name, invitations.c.withdrawn_at.is_(None), invitations.c.used_at.is_(None))
        ending = update(invitations).where(*open_, invitations.c.expires_at > now).values(withdrawn_at=now)
        return database.execute(ending).rowcount

    def _certificates(self) -> dict[str, Row[Any]]:
        """All certificates by fingerprint, as they are now."""
        with self._lock:
            try:
                if self._watch is None:
                    self._watch = self._engine.raw_connection()
                # read before the rows: a change in between is seen by the next request
                version = self._watch.cursor().execute("PRAGMA data_version").fetchone()[0]
            except self._engine.dialect.loaded_dbapi.Error as error:
                raise RunError.at(self.path, f"cannot be read: {error}", "nobody is let in until it can") from error
            if version != self._version:
                with self._transaction() as database:
                    rows = database.execute(select(certificates)).all()
                self._known, self._version = {row.fingerprint: row for row in rows}, version
            return self._known

    def _why_not(self, row: Row[Any], certificate: x509.Certificate) -> str:
        """Why a registered certificate does not let its holder in; empty when it does."""
        if subject_of(certificate) != Subject(row.name, row.role, row.identity):
            return "does not say what the register says of it"
        return _ended(row, self._clock())

    def _note_once(self, mark: str, row: Row[Any] | None, why: str) -> None:
        """Peers come back every few seconds: one line in the audit log for each certificate and reason is enough."""
        with self._lock:
            if (mark, why) in self._noted or len(self._noted) >= _NOTED:
                return
            self._noted.add((mark, why))
        self._note("refused", {"fingerprint": mark, "name": row.name if row else None, "why": why})

    @contextmanager
    def _transaction(self, writing: bool = False) -> Iterator[Connection]:
        """All or nothing; RunError when the file cannot be read or written."""
        try:
            with self._engine.connect().execution_options(**{WRITING: writing}) as database, database.begin():
                yield database
        except DatabaseError as error:
            raise RunError.at(self.path, f"cannot be used: {error.orig}", "see that there is room") from error


def _invitation(database: Connection, token: str) -> Row[Any]:
    """The invitation of a token; every one is compared, in constant time."""
    digest, found = _digest(token), None
    for row in database.execute(select(invitations)):
        if hmac.compare_digest(row.token, digest):
            found = row
    if found is None:
        raise _refused("the token is unknown")
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _check_proof(identity: str, request: bytes, proof: bytes) -> None:
    if not _IDENTITY.fullmatch(identity):
        raise _refused("the identity is not 64 hexadecimal digits")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity)).verify(proof, request)
    except (ValueError, InvalidSignature) as error:
        raise _refused("the proof is not the identity's signature of the request") from error


def _ended(row: Row[Any], now: datetime) -> str:
    """Why a certificate does not count any more; empty while it does."""
    if row.revoked_at is not None:
        return "was revoked"
    if row.not_after <= now:
        return "expired"
    if row.good_until is not None and row.good_until <= now:
        return "was replaced"
    return ""


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name) or len(name) > NAME_LENGTH:
        what = f"is not a name of at most {NAME_LENGTH} letters, digits, points, dashes and underscores"
        raise InputError.at(repr(name), what, "use the name in the hospital's file")
    if name in RESERVED:
        raise InputError.at(repr(name), "has a meaning of its own", "give the peer another name")


def _refused(why: str) -> MedflError:
    return AdmissionError.at("enrolment", why)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
