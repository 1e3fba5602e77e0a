"""A site's end: its keys of an attempt, its sealed update, its agreement, and the key holder's part where it is that.

Everything of an attempt lives in memory and once: a site that restarts can neither open nor agree to what came before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.privacy.channels.base import Guard, Identity, Message, Roster, SiteEnd
from medfl.privacy.channels.he import blobs, keys
from medfl.privacy.channels.he.chunks import SLOTS, chunks_of, count
from medfl.privacy.channels.he.scheme import Integers, KeyKind, Scheme, SchemeName, dump, scheme_of
from medfl.privacy.channels.he.statements import Terms, digest, unhex, update_facts
from medfl.privacy.channels.he.sums import decrypted
from medfl.update.base import Payload
from medfl.update.wire import as_bytes


@dataclass
class _Attempt:
    """One attempt of one round at one site. peers and secret: at the key holder only."""

    terms: Terms
    ephemeral: keys.Ephemeral
    key_id: str = ""
    key: Any = None
    holder_public: bytes = b""
    peers: dict[str, bytes] = field(default_factory=dict)
    secret: Any = None
    done: set[str] = field(default_factory=set)

    def shared(self, party: str, public: bytes, purpose: str, facts: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """The key shared with `party` for one purpose, and what it is bound to."""
        binding = self.terms.text(purpose, facts)
        try:
            return self.ephemeral.derive(public, purpose, binding), binding
        except ValueError as error:
            raise self.terms.error(party, f"joined with a key that cannot be used: {error}") from error

    def tokens(self, site: str, party: str, public: bytes, scheme: Scheme) -> npt.NDArray[np.int64]:
        """The tokens [chunks] that `site` shares with the key holder; `party` is the other one of the two."""
        key, _ = self.shared(party, public, "tokens", {"key": self.key_id, "site": site})
        context = self.terms.context
        return keys.tokens(key, count(context.size), scheme.capacity // len(context.cohort))

    def once(self, step: str, name: str) -> None:
        """RunError when this site did `step` before in this attempt."""
        if step in self.done:
            raise self.terms.error(name, f"was asked twice to {step}", "a retry needs an attempt of its own")
        self.done.add(step)


class HeSite(SiteEnd):
    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        guard: Guard,
        scheme: SchemeName,
        key_kind: KeyKind,
        key_holder: str | None,
    ) -> None:
        self._identity, self._roster, self._guard = identity, roster, guard
        self._scheme: Scheme = scheme_of(scheme)
        self._key_kind, self._key_holder = key_kind, key_holder
        self._attempt: _Attempt | None = None
        self._seen: set[tuple[str, int, int]] = set()
        self._agreed: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._stages = {
            "he.join": self._join,
            "he.keys": self._make_keys,
            "he.install": self._install,
            "he.agree": self._agree,
            "he.decrypt": self._decrypt,
        }

    @property
    def name(self) -> str:
        return self._identity.name

    def answer(self, stage: str, message: Message) -> Message:
        if stage not in self._stages:
            raise RunError.at(f"site {self.name}", f"does not know the protocol stage {stage!r}")
        terms = Terms.of(message.header, self._scheme.name, self._key_kind, self._key_holder)
        return self._stages[stage](terms, message)

    def seal(self, round_: int, payload: Payload, part: str = "") -> Payload:
        attempt = self._attempt
        if attempt is None or attempt.terms.context.round != round_ or attempt.key is None:
            raise RunError.at(f"{self.name}, round {round_}", "has no key of this round", "agree on keys first")
        attempt.terms.context.agrees(part, f"{self.name}, round {round_}")
        values = _values(payload, attempt.terms, self.name)
        attempt.once("seal an update", self.name)
        marks = attempt.tokens(self.name, attempt.terms.holder, attempt.holder_public, self._scheme)
        sealed = blobs.join(self._scheme.encrypted(self._key_kind, attempt.key, chunks_of(values, marks)))
        facts = update_facts(self.name, attempt.key_id, Payload("he", payload.size, sealed))
        signature = attempt.terms.sign(self._identity, "update", facts)
        return Payload("he", payload.size, sealed, {"key": attempt.key_id, "signature": signature})

    def _join(self, terms: Terms, message: Message) -> Message:
        context = terms.context
        if self.name not in {*context.cohort, terms.holder}:
            raise terms.error(self.name, "is neither in the cohort nor the key holder")
        unknown = sorted({*context.cohort, terms.holder} - self._roster.keys())
        if unknown:
            raise terms.error(", ".join(unknown), "is not on this site's roster", "enrol it first")
        if (context.run, context.round, context.attempt) in self._seen:
            raise terms.error(self.name, "took part in this attempt before", "a retry needs an attempt of its own")
        self._seen.add((context.run, context.round, context.attempt))
        self._attempt = _Attempt(terms, keys.Ephemeral())
        public = self._attempt.ephemeral.public.hex()
        signature = terms.sign(self._identity, "join", {"site": self.name, "public": public})
        return Message({"public": public, "signature": signature})

    def _make_keys(self, terms: Terms, message: Message) -> Message:
        attempt = self._current(terms)
        if self.name != terms.holder:
            raise terms.error(self.name, f"is not the key holder: that is {terms.holder}")
        attempt.once("make the key", self.name)
        attempt.peers = self._joined(terms, message.header.get("joined"))
        attempt.secret = self._scheme.secret_key()
        attempt.key_id = keys.fresh_id()
        facts = {
            "key": attempt.key_id,
            "public": attempt.ephemeral.public.hex(),
            "joined": {site: public.hex() for site, public in attempt.peers.items()},
        }
        buffers = tuple(self._sealed_keys(attempt, facts))
        facts["digests"] = [digest([buffer]) for buffer in buffers]
        return Message({"key": facts, "signature": terms.sign(self._identity, "key", facts)}, buffers)

    def _sealed_keys(self, attempt: _Attempt, facts: Mapping[str, Any]) -> Iterator[bytes]:
        if self._key_kind == "public":
            yield dump(self._scheme.public_key(attempt.secret))
            return
        secret = dump(attempt.secret)
        for site, public in attempt.peers.items():
            key, binding = attempt.shared(site, public, "secret key", {"site": site, **facts})
            yield keys.seal(key, secret, binding)

    def _joined(self, terms: Terms, entries: Any) -> dict[str, bytes]:
        """The signed ephemeral keys of the sites that joined."""
        entries = entries if isinstance(entries, Mapping) else {}
        peers = {}
        for site, entry in entries.items():
            if site not in terms.context.cohort or not isinstance(entry, Mapping):
                raise terms.error(str(site), "is not of the cohort, or joined without a key")
            public = entry.get("public")
            terms.verify(self._roster, site, entry.get("signature"), "join", {"site": site, "public": public})
            peers[site] = _public(terms, site, public)
        if len(peers) < terms.context.minimum:
            raise terms.error(self.name, f"got the keys of {len(peers)} sites, {terms.context.minimum} are needed")
        return peers

    def _install(self, terms: Terms, message: Message) -> Message:
        attempt = self._current(terms)
        attempt.once("install a key", self.name)
        facts, signature = message.header.get("key"), message.header.get("signature")
        facts = dict(facts) if isinstance(facts, Mapping) else {}
        terms.verify(self._roster, terms.holder, signature, "key", facts)
        joined, digests = facts.get("joined"), facts.pop("digests", None)
        if not isinstance(joined, dict) or joined.get(self.name) != attempt.ephemeral.public.hex():
            raise terms.error(terms.holder, f"made a key for others than {self.name}, or for an old one of it")
        if len(message.buffers) != 1 or not isinstance(digests, list) or digest(message.buffers) not in digests:
            raise terms.error(terms.holder, "did not sign the key that arrived")
        attempt.holder_public = _public(terms, terms.holder, facts.get("public"))
        blob = message.buffers[0]
        try:
            if self._key_kind == "symmetric":
                about = {"site": self.name, **facts}
                key, binding = attempt.shared(terms.holder, attempt.holder_public, "secret key", about)
                blob = keys.unseal(key, blob, binding)
            attempt.key = self._scheme.load_key(self._key_kind, blob)
        except ValueError as error:
            raise terms.error(terms.holder, f"sent a key that cannot be used: {error}") from error
        attempt.key_id = str(facts.get("key"))
        return Message({"key": attempt.key_id})

    def _agree(self, terms: Terms, message: Message) -> Message:
        attempt = self._current(terms)
        survivors = _survivors(terms, message.header.get("survivors"))
        if self.name not in survivors or "seal an update" not in attempt.done:
            raise terms.error(self.name, "is asked to open a sum that it is not in")
        run, round_ = terms.context.run, terms.context.round
        before = self._agreed.get(run, (0, ()))
        if before[0] == round_ and set(before[1]) != set(survivors):
            raise terms.error(
                self.name,
                f"agreed to the sum of {', '.join(before[1])}, and does not agree to that of {', '.join(survivors)}",
                "two sums of nearly the same updates show one of them; go on with the next round",
            )
        attempt.once("agree to a sum", self.name)
        self._guard(terms.context, survivors)
        self._agreed[run] = round_, survivors
        facts = {"key": attempt.key_id, "survivors": list(survivors), "site": self.name}
        return Message({"signature": terms.sign(self._identity, "agreement", facts)})

    def _decrypt(self, terms: Terms, message: Message) -> Message:
        attempt = self._current(terms)
        if attempt.secret is None:
            raise terms.error(self.name, "holds no key of this round")
        survivors = _survivors(terms, message.header.get("survivors"))
        self._check_agreements(attempt, survivors, message.header.get("agreements"))
        attempt.once("decrypt", self.name)
        try:
            total = self._opened(attempt, survivors, message)
        except blobs.BadBlobError as error:
            raise terms.error("coordinator", f"sent a sum that {error}", "the key is forgotten; retry") from error
        finally:
            attempt.secret = attempt.key = None
        if int(np.abs(total).max()) > terms.context.limit:
            raise terms.error(self.name, f"the sum passes {terms.context.limit}", "nothing of it was released")
        buffers = (as_bytes(total.astype("<i4")),)
        facts = {"key": attempt.key_id, "survivors": list(survivors), "digest": digest(buffers)}
        return Message({"signature": terms.sign(self._identity, "sum", facts)}, buffers)

    def _check_agreements(self, attempt: _Attempt, survivors: tuple[str, ...], agreements: Any) -> None:
        terms = attempt.terms
        agreements = agreements if isinstance(agreements, Mapping) else {}
        for site, signature in agreements.items():
            if site not in survivors:
                raise terms.error(str(site), "agreed to a sum that it is not in")
            facts = {"key": attempt.key_id, "survivors": list(survivors), "site": site}
            terms.verify(self._roster, site, signature, "agreement", facts)
        silent = sorted(set(survivors) - agreements.keys())
        if silent or len(survivors) < terms.context.minimum:
            raise terms.error(
                self.name,
                f"got the agreement of {len(agreements)} of the {len(survivors)} sites in this sum",
                "nothing was decrypted: every site in a sum must agree, and a sum of a few is never opened",
            )
        strangers = sorted(set(survivors) - attempt.peers.keys())
        if strangers:
            raise terms.error(", ".join(strangers), "has no part in this round's key")

    def _opened(self, attempt: _Attempt, survivors: tuple[str, ...], message: Message) -> Integers:
        """The sum [size], once the tokens in it are those of the survivors."""
        context = attempt.terms.context
        chunks = count(context.size)
        expected = np.zeros(chunks, np.int64)
        for site in survivors:
            expected += attempt.tokens(site, site, attempt.peers[site], self._scheme)
        total = np.zeros(chunks * SLOTS, np.int64)
        opened = decrypted(self._scheme, attempt.secret, message.buffers, chunks)
        for number, values in enumerate(opened):
            if values[SLOTS] != expected[number]:
                raise blobs.BadBlobError(f"is not that of {', '.join(survivors)}")
            total[number * SLOTS : (number + 1) * SLOTS] = values[:SLOTS]
        return total[: context.size]

    def _current(self, terms: Terms) -> _Attempt:
        if self._attempt is None or self._attempt.terms != terms:
            raise terms.error(self.name, "did not join this attempt", "start the round with an attempt of its own")
        return self._attempt


def _survivors(terms: Terms, value: Any) -> tuple[str, ...]:
    """The sites of a sum, distinct and of the cohort; RunError when they are too few."""
    survivors = tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()
    if len(set(survivors)) != len(survivors) or not set(survivors) <= set(terms.context.cohort):
        raise terms.error("coordinator", "named a site twice, or one that is not of the cohort")
    if len(survivors) < terms.context.minimum:
        raise terms.error(
            "coordinator",
            f"asks to open a sum of {len(survivors)} sites, {terms.context.minimum} are needed",
            "nothing of it was released",
        )
    return survivors


def _values(payload: Payload, terms: Terms, name: str) -> npt.NDArray[np.int32]:
    """The integers of a grid payload."""
    size = terms.context.size
    lengths = [len(buffer) for buffer in payload.buffers]
    if payload.codec != "grid" or payload.size != size or lengths != [4 * size]:
        raise terms.error(
            name, f"has {payload.size} values of codec {payload.codec!r} to seal, the round sums {size} of codec 'grid'"
        )
    values = np.frombuffer(payload.buffers[0], "<i4")
    if max(int(values.max()), -int(values.min())) > terms.context.limit:
        raise terms.error(name, f"has a value beyond {terms.context.limit} to seal", "nothing was sent")
    return values


def _public(terms: Terms, party: str, value: Any) -> bytes:
    try:
        public = unhex(value)
    except ValueError as error:
        raise terms.error(party, f"has a public key that {error}") from error
    if len(public) != 32:
        raise terms.error(party, f"has a public key of {len(public)} bytes, 32 are needed")
    return public
