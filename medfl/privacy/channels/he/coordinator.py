"""The coordinator's end of one attempt: it passes keys that it cannot read, and adds what it cannot open."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from medfl.privacy.channels.base import CoordinatorEnd, Exchange, IntVector, Message, Roster, RoundContext
from medfl.privacy.channels.he import blobs
from medfl.privacy.channels.he.scheme import KeyKind, SchemeName, scheme_of
from medfl.privacy.channels.he.statements import Terms, digest, holder_of, update_facts
from medfl.privacy.channels.he.sums import RunningSum
from medfl.update.base import Payload


class HeCoordinator(CoordinatorEnd):
    def __init__(
        self, context: RoundContext, roster: Roster, scheme: SchemeName, keys: KeyKind, key_holder: str | None
    ) -> None:
        self._context, self._roster = context, roster
        self._terms = Terms(context, scheme, keys, holder_of(context.cohort, key_holder))
        self._scheme = scheme_of(scheme)
        self._key_id = ""
        self._sites: tuple[str, ...] = ()
        self._added: list[str] = []
        self._sum = RunningSum(self._scheme, context.size, seeded=keys == "symmetric")
        self._opened = False
        if context.limit > self._scheme.capacity:
            raise self._terms.error(
                "coordinator",
                f"a sum of up to {context.limit} has no room in scheme {scheme!r}, which holds {self._scheme.capacity}",
                "use a coarser grid",
            )

    def prepare(self, exchange: Exchange) -> tuple[str, ...]:
        terms, holder = self._terms, self._terms.holder
        asked = dict.fromkeys((*self._context.cohort, holder))
        joined = exchange("he.join", {site: self._message() for site in asked})
        for site, answer in joined.items():
            public = answer.header.get("public")
            terms.verify(self._roster, site, answer.header.get("signature"), "join", {"site": site, "public": public})
        if holder not in joined:
            raise self._no_holder("did not join")
        entries = {site: dict(joined[site].header) for site in self._context.cohort if site in joined}
        self._enough(entries, "joined")
        made = exchange("he.keys", {holder: self._message(joined=entries)}).get(holder)
        if made is None:
            raise self._no_holder("gave no key")
        facts = self._checked_key(made, entries)
        boxes = dict(zip(entries, self._boxes(made, len(entries)), strict=True))
        header = {"key": facts, "signature": made.header["signature"]}
        installed = exchange("he.install", {site: self._message((box,), **header) for site, box in boxes.items()})
        self._sites = tuple(site for site in entries if site in installed)
        self._enough(self._sites, "installed the key")
        self._key_id = facts["key"]
        return self._sites

    def look(self, site: str, payload: Payload) -> Payload | None:
        return None

    def add(self, site: str, payload: Payload) -> None:
        terms = self._terms
        if self._opened:
            raise terms.error(site, "came after the sum was opened", "nothing of it was used")
        if site not in self._sites:
            raise terms.error(site, "has no key of this round", "nothing of it was used")
        if site in self._added:
            raise terms.error(site, "is in the sum already", "nothing of it was used twice")
        self._check(site, payload)
        try:
            self._sum.add(payload.buffers)
        except blobs.BadBlobError as error:
            raise terms.error(site, f"sealed an update that {error}", "nothing of it was used") from error
        self._added.append(site)

    def open(self, exchange: Exchange, noise: IntVector | None = None) -> IntVector:
        if self._opened:
            raise self._terms.error("coordinator", "opens the sum twice", "a retry needs an attempt of its own")
        self._opened = True
        survivors = tuple(site for site in self._context.cohort if site in self._added)
        self._enough(survivors, "are in the sum")
        agreements = self._agreements(exchange, survivors)
        if noise is not None:
            self._add_noise(noise)
        header = {"key": self._key_id, "survivors": list(survivors), "agreements": agreements}
        answer = exchange("he.decrypt", {self._terms.holder: self._message(self._sum.save(), **header)}).get(
            self._terms.holder
        )
        if answer is None:
            raise self._no_holder("did not decrypt the sum")
        return self._checked_sum(answer, survivors)

    def _message(self, buffers: Iterable[Any] = (), **header: Any) -> Message:
        return Message({"context": self._context.to_json(), **header}, tuple(buffers))

    def _enough(self, sites: Iterable[str], what: str) -> None:
        present = list(sites)
        if len(present) < self._context.minimum:
            missing = ", ".join(site for site in self._context.cohort if site not in present) or "none"
            raise self._terms.error(
                f"sites without: {missing}",
                f"{len(present)} sites {what}, {self._context.minimum} are needed",
                "retry with sites that can be reached",
            )

    def _no_holder(self, what: str) -> Exception:
        return self._terms.error(
            self._terms.holder, f"holds the round's key and {what}", "retry with another key holder or cohort"
        )

    def _checked_key(self, made: Message, entries: Mapping[str, Any]) -> dict[str, Any]:
        facts = made.header.get("key")
        facts = dict(facts) if isinstance(facts, Mapping) else {}
        holder = self._terms.holder
        self._terms.verify(self._roster, holder, made.header.get("signature"), "key", facts)
        if not isinstance(facts.get("key"), str) or facts.get("joined") != {s: e["public"] for s, e in entries.items()}:
            raise self._terms.error(holder, "made a key for other sites than those that joined")
        return facts

    def _boxes(self, made: Message, sites: int) -> tuple[Any, ...]:
        boxes = made.buffers * sites if self._terms.keys == "public" and len(made.buffers) == 1 else made.buffers
        if len(boxes) != sites:
            raise self._terms.error(self._terms.holder, f"sent {len(boxes)} keys for {sites} sites")
        return boxes

    def _check(self, site: str, payload: Payload) -> None:
        """Whose, of which key and of which shape the payload is, before anything of it is read."""
        terms, context = self._terms, self._context
        if payload.codec != "he" or payload.size != context.size:
            raise terms.error(
                site, f"sent {payload.size} values of codec {payload.codec!r}, the round sums {context.size} of 'he'"
            )
        if payload.meta.get("key") != self._key_id:
            raise terms.error(site, "sealed with a key of another round or attempt", "nothing of it was used")
        facts = update_facts(site, self._key_id, payload)
        terms.verify(self._roster, site, payload.meta.get("signature"), "update", facts)

    def _agreements(self, exchange: Exchange, survivors: tuple[str, ...]) -> dict[str, str]:
        request = self._message(key=self._key_id, survivors=list(survivors))
        answers = exchange("he.agree", dict.fromkeys(survivors, request))
        agreements = {}
        for site, answer in answers.items():
            signature = answer.header.get("signature")
            facts = {"key": self._key_id, "survivors": list(survivors), "site": site}
            self._terms.verify(self._roster, site, signature, "agreement", facts)
            agreements[site] = str(signature)
        if silent := sorted(set(survivors) - agreements.keys()):
            raise self._terms.error(
                ", ".join(silent), "did not agree to open the sum", "it stays closed; retry the round without them"
            )
        return agreements

    def _add_noise(self, noise: IntVector) -> None:
        if noise.shape != (self._context.size,) or int(np.abs(noise).max()) > self._context.limit:
            raise self._terms.error(
                "coordinator", f"noise has shape {noise.shape} or a value beyond {self._context.limit}", "mend the plan"
            )
        self._sum.add_plain(noise)

    def _checked_sum(self, answer: Message, survivors: tuple[str, ...]) -> IntVector:
        facts = {"key": self._key_id, "survivors": list(survivors), "digest": digest(answer.buffers)}
        holder = self._terms.holder
        self._terms.verify(self._roster, holder, answer.header.get("signature"), "sum", facts)
        if [len(buffer) for buffer in answer.buffers] != [4 * self._context.size]:
            raise self._terms.error(holder, f"gave a sum that is not of {self._context.size} values")
        return np.frombuffer(answer.buffers[0], "<i4").astype(np.int64)
