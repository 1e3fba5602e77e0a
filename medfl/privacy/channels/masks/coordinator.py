"""The coordinator's end of the masks channel, for one round: it relays the sites' messages, adds what they send, and
with the shares that they reveal takes the masks off the sum. See `site` for the protocol.

It trusts no site: keys and updates must be signed, and rebuilt secrets must fit what was committed to. Sites that do
not answer are left out; one whose answer is wrong ends the round with an error that names it.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfl.errors import RunError
from medfl.privacy.channels.base import CoordinatorEnd, Exchange, IntVector, Message, Roster, RoundContext
from medfl.privacy.channels.masks import keys, mask, shamir
from medfl.privacy.channels.masks.messages import (
    KEYS,
    OPEN,
    PEERS,
    SHARES,
    SURVIVORS,
    Header,
    KeysRequest,
    OpenAnswer,
    OpenRequest,
    PeersRequest,
    PublicKeys,
    SharesAnswer,
    SharesRequest,
    SurvivorsAnswer,
    SurvivorsRequest,
    read,
)
from medfl.privacy.identity import verify
from medfl.update.base import Payload

_WORD_LIMIT = 2**31
A = TypeVar("A", bound=Header)


class MasksCoordinator(CoordinatorEnd):
    def __init__(self, context: RoundContext, roster: Roster, threshold: float) -> None:
        self._context = context
        self._roster = roster
        self._needed = keys.needed(context, threshold)
        self._about_round = keys.round_digest(context, threshold)
        self._about_members = ""
        self._keys: dict[str, PublicKeys] = {}
        self._commitments: dict[str, bytes] = {}
        self._about_keys = ""
        self._members: tuple[str, ...] = ()
        self._added: set[str] = set()
        self._sum: mask.Words | None = None
        self._began = False

    def prepare(self, exchange: Exchange) -> tuple[str, ...]:
        context = self._context
        if self._began:
            raise RunError.at(self._where(), "its keys were agreed on already")
        self._began = True
        self._check_enough(context.cohort, "are in the cohort")
        if not 0 < context.limit < _WORD_LIMIT:
            raise RunError.at(self._where(), f"sums of up to {context.limit} do not fit words of 32 bits")
        self._exchange_keys(exchange)
        answers = self._exchange_shares(exchange)
        requests = {site: self._peers_request(site, answers) for site in self._members}
        ready = self._ask(exchange, PEERS, requests, Header)
        self._check_enough(ready, "are ready to send")
        self._sum = np.zeros(context.size, np.uint32)
        return tuple(ready)

    def _exchange_keys(self, exchange: Exchange) -> None:
        request = KeysRequest(context=self._context)
        answers = self._ask(exchange, KEYS, dict.fromkeys(self._context.cohort, request), PublicKeys)
        for site, answer in answers.items():
            said = keys.keys_statement(self._about_round, site, (answer.sealing, answer.masking))
            verify(self._roster, site, answer.signature, said, self._where(site))
        self._check_enough(answers, "gave keys")
        self._keys, self._about_keys = answers, keys.keys_digest(self._about_round, answers)

    def _exchange_shares(self, exchange: Exchange) -> dict[str, SharesAnswer]:
        request = SharesRequest(**self._step(), keys=self._keys)
        answers = self._ask(exchange, SHARES, dict.fromkeys(self._keys, request), SharesAnswer)
        for site, answer in answers.items():
            if set(answer.shares) != set(self._keys) - {site}:
                raise RunError.at(self._where(site), "did not give one share for each other site")
        self._check_enough(answers, "gave shares")
        self._commitments = {site: answer.commitment for site, answer in answers.items()}
        self._members = tuple(answers)
        self._about_members = keys.members_digest(self._about_keys, self._members)
        return answers

    def _peers_request(self, site: str, answers: Mapping[str, SharesAnswer]) -> PeersRequest:
        shares = {sender: answer.shares[site] for sender, answer in answers.items() if sender != site}
        return PeersRequest(**self._step(), shares=shares)

    def look(self, site: str, payload: Payload) -> Payload | None:
        return None

    def add(self, site: str, payload: Payload) -> None:
        where = self._where(site)
        if self._sum is None:
            raise RunError.at(where, "an update came before keys were agreed on, or after the sum was opened")
        if site not in self._members:
            raise RunError.at(where, "sent an update and did not take part in the agreement on keys")
        if site in self._added:
            raise RunError.at(where, "its update was added already")
        self._check_blob(payload, where)
        signature = _hex(payload.meta.get("signature"))
        verify(self._roster, site, signature, keys.sealed_statement(self._about_members, site, payload), where)
        self._sum += np.frombuffer(payload.buffers[0], "<u4")
        self._added.add(site)

    def _check_blob(self, payload: Payload, where: str) -> None:
        context = self._context
        of = tuple(payload.meta.get(key) for key in ("run", "round", "attempt"))
        if of != (context.run, context.round, context.attempt):
            raise RunError.at(where, f"its update is of run {of[0]!r}, round {of[1]}, attempt {of[2]}")
        lengths = [len(buffer) for buffer in payload.buffers]
        if payload.codec != "masks" or payload.size != context.size or lengths != [4 * context.size]:
            raise RunError.at(
                where,
                f"sent {payload.size} values of codec {payload.codec!r} in {sum(lengths)} bytes; "
                f"{context.size} of codec 'masks' are right",
            )

    def open(self, exchange: Exchange, noise: IntVector | None = None) -> IntVector:
        words, self._sum = self._sum, None
        if words is None:
            raise RunError.at(
                self._where(), "there is no sum to open: keys were not agreed on, or it was opened before"
            )
        survivors = tuple(site for site in self._members if site in self._added)
        self._check_enough(survivors, "sent an update")
        revealed = self._reveal(exchange, survivors)
        seeds, masking = self._rebuild(revealed, survivors)
        self._unmask(words, seeds, masking)
        return self._checked(words.view(np.int32).astype(np.int64), noise)

    def _reveal(self, exchange: Exchange, survivors: tuple[str, ...]) -> dict[str, OpenAnswer]:
        """As many sites' shares as are needed, after enough of them signed which sum is opened."""
        request = SurvivorsRequest(**self._step(), survivors=list(survivors))
        signed = self._ask(exchange, SURVIVORS, dict.fromkeys(survivors, request), SurvivorsAnswer)
        said = keys.survivors_statement(self._about_members, survivors)
        for site, answer in signed.items():
            verify(self._roster, site, answer.signature, said, self._where(site))
        self._check_enough(signed, "agreed to open the sum")
        proof = OpenRequest(**self._step(), signatures={site: answer.signature for site, answer in signed.items()})
        revealed = self._ask(exchange, OPEN, dict.fromkeys(signed, proof), OpenAnswer)
        for site, opened in revealed.items():
            if set(opened.shares) != set(self._members):
                raise RunError.at(self._where(site), "did not reveal one share for each site")
        self._check_enough(revealed, "helped to open the sum")
        return dict(list(revealed.items())[: self._needed])

    def _rebuild(
        self, revealed: Mapping[str, OpenAnswer], survivors: tuple[str, ...]
    ) -> tuple[dict[str, bytes], dict[str, X25519PrivateKey]]:
        """The seeds of the survivors and the masking keys of the others."""
        weights = shamir.weights([self._context.cohort.index(site) + 1 for site in revealed])
        seeds, masking = {}, {}
        for member in self._members:
            secret = shamir.combine(weights, [answer.shares[member] for answer in revealed.values()])
            if member in survivors:
                seeds[member] = secret
                fits = keys.commitment(secret, self._about_keys, member) == self._commitments[member]
            else:
                masking[member] = X25519PrivateKey.from_private_bytes(secret)
                fits = masking[member].public_key().public_bytes_raw() == self._keys[member].masking
            if not fits:
                raise RunError.at(
                    self._where(member),
                    f"its secret cannot be rebuilt from the shares of {', '.join(revealed)}: one of these sites, or "
                    f"{member} itself, gave wrong shares",
                    "repeat the round without the site that is at fault",
                )
        return seeds, masking

    def _unmask(self, words: mask.Words, seeds: Mapping[str, bytes], masking: Mapping[str, X25519PrivateKey]) -> None:
        """Take off the survivors' own masks, and those of pairs of a survivor with a site that dropped out."""
        about, rank = self._about_members, self._context.cohort.index
        added: list[bytes] = []
        subtracted = [keys.self_key(seed, about, site) for site, seed in seeds.items()]
        for lost, private in masking.items():
            for site in seeds:
                key = keys.pair_key(private, self._keys[site].masking, about, lost, site)
                (subtracted if rank(site) < rank(lost) else added).append(key)
        mask.apply(words, added, subtracted)

    def _checked(self, total: IntVector, noise: IntVector | None) -> IntVector:
        if noise is not None:
            if noise.shape != total.shape:
                raise RunError.at(self._where(), f"noise of {noise.size} values for a sum of {total.size}")
            total += noise
        largest = max(int(total.max(initial=0)), -int(total.min(initial=0)))
        if largest > self._context.limit:
            raise RunError.at(
                self._where(),
                f"a coordinate of the sum is {largest} in size, at most {self._context.limit} is possible",
                "a site sent an update that is not clipped, or wrong masks: look at its software",
            )
        return total

    def _ask(self, exchange: Exchange, stage: str, requests: Mapping[str, Header], answer: type[A]) -> dict[str, A]:
        """The answers of those that gave one, in the cohort's order. A request of several sites is coded once."""
        coded: dict[int, Message] = {id(request): request.message() for request in requests.values()}
        answers = exchange(stage, {site: coded[id(request)] for site, request in requests.items()})
        return {site: read(answer, answers[site], self._where(site)) for site in requests if site in answers}

    def _step(self) -> dict[str, int]:
        return {"round": self._context.round, "attempt": self._context.attempt}

    def _check_enough(self, sites: Collection[str], what: str) -> None:
        count = len(sites)
        if count < self._needed:
            raise RunError.at(
                self._where(),
                f"{count} of {len(self._context.cohort)} sites {what}, {self._needed} are needed to open a sum",
                "wait for more sites, or lower the channel's threshold",
            )

    def _where(self, site: str = "") -> str:
        return f"{site}, round {self._context.round}" if site else f"round {self._context.round}"


def _hex(value: object) -> bytes:
    """The bytes of a hexadecimal text; none when it is not one, so that no signature fits."""
    try:
        return bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return b""
