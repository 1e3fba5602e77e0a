"""What the parties sign: a canonical JSON text that names the purpose and the terms of the attempt."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medfl.errors import MedflError, RunError
from medfl.privacy.channels.base import MINIMUM_SITES, Identity, Roster, RoundContext
from medfl.privacy.channels.he.scheme import KeyKind, SchemeName
from medfl.privacy.grid import SUM_LIMIT
from medfl.privacy.identity import verify
from medfl.update.base import Payload
from medfl.update.wire import Buffer


@dataclass(frozen=True, slots=True)
class Terms:
    """What everything of one attempt is bound to: its context, the scheme, and who holds the key."""

    context: RoundContext
    scheme: SchemeName
    keys: KeyKind
    holder: str

    def to_json(self) -> dict[str, Any]:
        return {**self.context.to_json(), "scheme": self.scheme, "keys": self.keys, "holder": self.holder}

    def text(self, purpose: str, facts: Mapping[str, Any]) -> bytes:
        """The bytes to sign, the same for the same facts."""
        return signed_text(purpose, self.to_json(), facts)

    def where(self, party: str = "") -> str:
        """The place that an error names."""
        place = f"round {self.context.round} (attempt {self.context.attempt})"
        return f"{party}, {place}" if party else place

    def error(self, party: str, what: str, remedy: str = "") -> MedflError:
        return RunError.at(self.where(party), what, remedy)

    def sign(self, identity: Identity, purpose: str, facts: Mapping[str, Any]) -> str:
        return identity.sign(self.text(purpose, facts)).hex()

    def verify(self, roster: Roster, party: str, signature: Any, purpose: str, facts: Mapping[str, Any]) -> None:
        """RunError that names party and round unless `party` signed exactly this."""
        try:
            verify(roster, party, unhex(signature), self.text(purpose, facts))
        except (RunError, ValueError) as error:
            raise self.error(party, f"did not sign this {purpose}: {error}", "nothing of it was used") from error

    @classmethod
    def of(cls, header: Mapping[str, Any], scheme: SchemeName, keys: KeyKind, key_holder: str | None) -> "Terms":
        """The terms that a coordinator proposes to a site; RunError when a site must not accept them."""
        context = _context(header.get("context"))
        terms = cls(context, scheme, keys, holder_of(context.cohort, key_holder))
        faults = list(_faults(context))
        if faults:
            raise terms.error("coordinator", f"proposed a round with {'; '.join(faults)}", "the site takes no part")
        return terms


def signed_text(purpose: str, terms: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a statement."""
    statement = {"medfl-he": 1, "purpose": purpose, "terms": dict(terms), "facts": dict(facts)}
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def holder_of(cohort: tuple[str, ...], key_holder: str | None) -> str:
    """The site that holds the key: the named one, or the cohort's first by name, so that every site knows without being
    told whose key to accept."""
    return key_holder if key_holder is not None else min(cohort, default="")


def _context(value: Any) -> RoundContext:
    fields = value if isinstance(value, Mapping) else {}
    cohort = fields.get("cohort")
    numbers = [fields.get(name) for name in ("round", "attempt", "size", "limit", "minimum")]
    names = isinstance(cohort, list) and all(isinstance(name, str) for name in cohort)
    texts = all(isinstance(fields.get(name), str) for name in ("run", "part"))
    if not names or not texts or not all(type(n) is int and n >= 0 for n in numbers):
        raise RunError.at(
            "message", "does not describe a round by run, round, attempt, cohort, size, limit, minimum, part"
        )
    known = {name: fields[name] for name in ("run", "round", "attempt", "size", "limit", "minimum", "part")}
    return RoundContext(cohort=tuple(cohort), **known)  # type: ignore[arg-type]


def _faults(context: RoundContext) -> Iterable[str]:
    if context.minimum < MINIMUM_SITES:
        yield f"a minimum of {context.minimum} sites, {MINIMUM_SITES} are needed"
    if len(set(context.cohort)) != len(context.cohort):
        yield "a site twice in its cohort"
    if len(context.cohort) < context.minimum:
        yield f"a cohort of {len(context.cohort)} sites, {context.minimum} are needed"
    if not 0 < context.limit <= SUM_LIMIT:
        yield f"a limit of {context.limit}, at most {SUM_LIMIT} is possible"
    if context.size < 1 or context.attempt < 1:
        yield "no values or no attempt number"


def unhex(value: Any) -> bytes:
    """The bytes of a hex text; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError("is not a hex text")
    return bytes.fromhex(value)


def digest(buffers: Iterable[Buffer]) -> str:
    """SHA-256 over the buffers and their lengths, as hex."""
    total = hashlib.sha256()
    for buffer in buffers:
        total.update(len(buffer).to_bytes(8, "little"))
        total.update(buffer)
    return total.hexdigest()


def update_facts(site: str, key: str, payload: Payload) -> dict[str, Any]:
    """What a site signs of its sealed update, beside the terms."""
    return {"site": site, "key": key, "codec": "he", "size": payload.size, "digest": digest(payload.buffers)}
