"""An authority, a register and peers that ask for certificates, with a clock that tests move."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from medfl.coordinator.authority import Authority
from medfl.coordinator.register import Register
from medfl.keys import new_tls_key
from medfl.privacy.identity import Ed25519Identity
from medfl.transport.certificates import signing_request


@dataclass
class Clock:
    now: datetime = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Applicant:
    """A peer's own side of an enrolment."""

    name: str
    key: EllipticCurvePrivateKey = field(default_factory=new_tls_key)

    def __post_init__(self) -> None:
        self.signer = Ed25519Identity.generate(self.name)
        self.request = signing_request(self.key, self.name)

    @property
    def identity(self) -> str:
        return self.signer.public.hex()

    def enrol(self, register: Register, token: str, **changed: Any) -> bytes:
        given = {"request": self.request, "identity": self.identity, "proof": self.signer.sign(self.request)}
        return register.enrol(token, **{**given, **changed})


class House:
    """A coordinator's register with its authority. notes: what the audit log would hold."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.path = folder / "registry.db"
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.authority = Authority.create("lead", self.clock)
        self.register = Register.create(self.path, self.authority, self.note, self.clock)

    def note(self, kind: str, detail: Any) -> None:
        self.notes.append((kind, dict(detail)))

    def again(self, **changed: Any) -> Register:
        """The same register, as another process opens it."""
        return Register.open(self.path, **{"authority": self.authority, "clock": self.clock, **changed})

    def enrolled(self, name: str, role: Any = "site") -> tuple[Applicant, bytes]:
        peer = Applicant(name)
        return peer, peer.enrol(self.register, self.register.invite(name, role)[0])

    @property
    def reasons(self) -> list[str]:
        return [detail["why"] for _, detail in self.notes if "why" in detail]
