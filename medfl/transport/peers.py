"""Who may talk to the coordinator, and as what. The register of peers implements `Doorkeeper`; transports ask it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from medfl.errors import MedflError, RunError

Role = Literal["site", "key-holder", "auditor"]


class AdmissionError(MedflError):
    """A peer that is not let in, and why. What is told to the peer itself is less."""


class NotCertified(RunError):
    """The coordinator said no, or was never asked: it certified nothing. Any other error of an enrolment may mean that
    only the answer was lost."""


class Unreached(NotCertified):
    """There was no connection to the coordinator."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who holds a certificate. fingerprint: SHA-256 of the certificate (DER), as hex. identity: the public Ed25519 key
    that the peer signs with, as hex; it outlives certificates."""

    name: str
    role: Role
    fingerprint: str
    identity: str


class Doorkeeper(ABC):
    """May be called from several threads."""

    @abstractmethod
    def admit(self, certificate: bytes) -> Peer:
        """The peer of a certificate (PEM) that a connection proved; AdmissionError when it is unknown, revoked, expired
        or replaced. Asked again for every request, so that a revocation counts at once."""

    @abstractmethod
    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        """The certificate (PEM) for a signing request (PEM) that comes with a valid invitation, which is used up.
        identity: the public signing key as hex; proof: its signature over the request. AdmissionError without saying
        which part was wrong."""

    @abstractmethod
    def renew(self, peer: Peer, request: bytes) -> bytes:
        """A new certificate (PEM) for a peer that is in already; the old one stays good for a while."""
