"""One site's end of the masks channel.

A round, after Bonawitz et al. 2017, figure 4 (its rounds in brackets):

    masks.keys       [0] the site makes two key pairs and signs their public halves
    masks.shares     [1] it checks all sites' keys against the roster, and gives every site encrypted shares of its
                     masking key and of the seed of its own mask
    masks.peers      [2] it learns which sites gave shares: masks are made with those
    seal             [2] update + own mask + masks of pairs, modulo 2^32, signed
    masks.survivors  [3] it is told whose updates arrived, and signs that it will open this sum and no other
    masks.open       [4] shown that enough sites signed the same, it reveals for each site ONE share: of the seed of a
                     site that survived, or of the masking key of one that did not

Every step happens once a round and attempt, in this order, for newer rounds only; what a round's keys are used for is
bound to run, round, attempt, cohort, limits and the keys of all sites that take part. A site that helped to open a
round does so again, in a later attempt, for the same survivors only: two sums over different sites of the same updates
would show their difference.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from secrets import token_bytes

import numpy as np

from medfl.errors import RunError
from medfl.privacy.channels.base import MINIMUM_SITES, Guard, Identity, Message, Roster, RoundContext, SiteEnd
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
from medfl.update.wire import as_bytes

SEAL = "seal"
_DONE = "nothing more"


@dataclass(slots=True, repr=False)
class _Round:
    """What a site keeps of a round. about_..: digests that bind, see `keys`. held: this site's shares of each member's
    (masking key, seed)."""

    context: RoundContext
    about_round: str
    private: keys.RoundKeys = field(default_factory=keys.RoundKeys)
    seed: bytes = field(default_factory=lambda: token_bytes(shamir.SECRET_BYTES))
    peers: dict[str, PublicKeys] = field(default_factory=dict)
    about_keys: str = ""
    about_members: str = ""
    own: tuple[bytes, bytes] = (b"", b"")
    held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    next: str = SHARES


class MasksSite(SiteEnd):
    def __init__(self, identity: Identity, roster: Roster, guard: Guard, threshold: float) -> None:
        self._identity = identity
        self._roster = roster
        self._guard = guard
        self._threshold = threshold
        self._round: _Round | None = None
        self._last: dict[str, tuple[int, int]] = {}
        self._opened: dict[str, tuple[int, tuple[str, ...]]] = {}

    @property
    def _name(self) -> str:
        return self._identity.name

    def answer(self, stage: str, message: Message) -> Message:
        if stage == KEYS:
            return self._keys(read(KeysRequest, message, self._name).context).message()
        if stage == SHARES:
            return self._shares(read(SharesRequest, message, self._name)).message()
        if stage == PEERS:
            return self._peers(read(PeersRequest, message, self._name)).message()
        if stage == SURVIVORS:
            return self._survivors(read(SurvivorsRequest, message, self._name)).message()
        if stage == OPEN:
            return self._open(read(OpenRequest, message, self._name)).message()
        raise RunError.at(self._name, f"was asked for {stage!r}, which is no step of the masks channel")

    def seal(self, round_: int, payload: Payload, part: str = "") -> Payload:
        now = self._at(SEAL, round_)
        context, name = now.context, self._name
        context.agrees(part, self._where(context))
        words = _words(payload, context, self._where(context))
        now.next = SURVIVORS
        mask.apply(words, *self._mask_keys(now))
        sealed = Payload("masks", words.size, (as_bytes(words),))
        signature = self._identity.sign(keys.sealed_statement(now.about_members, name, sealed))
        meta = {"run": context.run, "round": context.round, "attempt": context.attempt, "signature": signature.hex()}
        return Payload(sealed.codec, sealed.size, sealed.buffers, meta)

    def _mask_keys(self, now: _Round) -> tuple[list[bytes], list[bytes]]:
        """The keys of the masks to add and of those to subtract: of a pair, the first in the cohort adds."""
        name, rank = self._name, now.context.cohort.index
        added, subtracted = [keys.self_key(now.seed, now.about_members, name)], list[bytes]()
        for peer in now.held:
            if peer != name:
                key = keys.pair_key(now.private.masking, now.peers[peer].masking, now.about_members, name, peer)
                (added if rank(name) < rank(peer) else subtracted).append(key)
        return added, subtracted

    def _keys(self, context: RoundContext) -> PublicKeys:
        self._check(context)
        now = _Round(context, keys.round_digest(context, self._threshold))
        # the round before is forgotten: nothing of it can be opened any more
        self._round, self._last[context.run] = now, (context.round, context.attempt)
        sealing, masking = now.private.public
        signature = self._identity.sign(keys.keys_statement(now.about_round, self._name, (sealing, masking)))
        return PublicKeys(sealing=sealing, masking=masking, signature=signature)

    def _check(self, context: RoundContext) -> None:
        where = self._where(context)
        if self._last.get(context.run, (0, 0)) >= (context.round, context.attempt):
            raise RunError.at(where, f"attempt {context.attempt} is not newer than one that it took part in")
        if context.minimum < MINIMUM_SITES:
            raise RunError.at(
                where, f"a sum of {context.minimum} sites would be opened, {MINIMUM_SITES} are the minimum"
            )
        if len(set(context.cohort)) != len(context.cohort) or self._name not in context.cohort:
            raise RunError.at(where, "the cohort names a site twice, or does not name this one")

    def _shares(self, request: SharesRequest) -> SharesAnswer:
        now = self._at(SHARES, request.round, request.attempt)
        where, name = self._where(now.context), self._name
        _check_known(request.keys, now.context.cohort, "a key of", where)
        for site, public in request.keys.items():
            verify(
                self._roster,
                site,
                public.signature,
                keys.keys_statement(now.about_round, site, (public.sealing, public.masking)),
                where,
            )
        if name not in request.keys or (request.keys[name].sealing, request.keys[name].masking) != now.private.public:
            raise RunError.at(where, "the keys that were announced for this site are not those it made")
        self._check_enough(now.context, len(request.keys), "have keys")
        now.peers, now.about_keys = request.keys, keys.keys_digest(now.about_round, request.keys)
        answer = SharesAnswer(
            commitment=keys.commitment(now.seed, now.about_keys, name),
            shares=_encrypted_shares(now, name, keys.needed(now.context, self._threshold)),
        )
        now.next = PEERS
        return answer

    def _peers(self, request: PeersRequest) -> Header:
        now = self._at(PEERS, request.round, request.attempt)
        where, name = self._where(now.context), self._name
        _check_known(request.shares, now.peers, "shares of", where)
        members = [site for site in now.context.cohort if site in request.shares or site == name]
        self._check_enough(now.context, len(members), "gave shares")
        held = {name: now.own}
        for site, text in request.shares.items():
            if site != name:
                public = now.peers[site].sealing
                held[site] = _halves(keys.decrypt(now.private.sealing, public, now.about_keys, site, name, text), site)
        now.held, now.about_members, now.next = held, keys.members_digest(now.about_keys, members), SEAL
        return Header()

    def _survivors(self, request: SurvivorsRequest) -> SurvivorsAnswer:
        now = self._at(SURVIVORS, request.round, request.attempt)
        where, survivors = self._where(now.context), tuple(request.survivors)
        _check_known(request.survivors, now.held, "an update of", where)
        if self._name not in survivors:
            raise RunError.at(where, "is asked to open a sum without its own update")
        self._check_enough(now.context, len(survivors), "are in the sum to be opened")
        round_, before = self._opened.get(now.context.run, (0, ()))
        if round_ == now.context.round and set(before) != set(survivors):
            raise RunError.at(
                where,
                f"helped to open the sum of {', '.join(before)}, and does not open that of {', '.join(survivors)}",
                "go on with the next round",
            )
        self._guard(now.context, survivors)
        now.survivors, now.next = survivors, OPEN
        return SurvivorsAnswer(signature=self._identity.sign(keys.survivors_statement(now.about_members, survivors)))

    def _open(self, request: OpenRequest) -> OpenAnswer:
        now = self._at(OPEN, request.round, request.attempt)
        where = self._where(now.context)
        _check_known(request.signatures, now.survivors, "a signature of", where)
        self._check_enough(now.context, len(request.signatures), "signed the sum to be opened")
        agreed = keys.survivors_statement(now.about_members, now.survivors)
        for site, signature in request.signatures.items():
            verify(self._roster, site, signature, agreed, where)
        now.next = _DONE
        self._opened[now.context.run] = now.context.round, now.survivors
        revealed = {site: shares[site in now.survivors] for site, shares in now.held.items()}
        now.held = {}
        return OpenAnswer(shares=revealed)

    def _at(self, step: str, round_: int, attempt: int | None = None) -> _Round:
        """The round, when this is its next step."""
        now = self._round
        if now is None or now.context.round != round_ or attempt not in (None, now.context.attempt):
            at = "none" if now is None else f"round {now.context.round}, attempt {now.context.attempt}"
            raise RunError.at(
                f"{self._name}, round {round_}", f"was asked for {step!r}; the round that it agreed on keys for is {at}"
            )
        if now.next != step:
            raise RunError.at(self._where(now.context), f"was asked for {step!r}; what it does next is {now.next!r}")
        return now

    def _check_enough(self, context: RoundContext, count: int, what: str) -> None:
        least = keys.needed(context, self._threshold)
        if count < least:
            raise RunError.at(self._where(context), f"{count} sites {what}, {least} are needed")

    def _where(self, context: RoundContext) -> str:
        return f"{self._name}, round {context.round}"


def _check_known(named: Collection[str], known: Collection[str], what: str, where: str) -> None:
    strange = sorted(set(named).difference(known))
    if strange or len(set(named)) != len(named):
        raise RunError.at(
            where, f"was shown {what} {', '.join(strange) or 'a site twice'}, against what was agreed before"
        )


def _encrypted_shares(now: _Round, name: str, threshold: int) -> dict[str, bytes]:
    """For each other site its shares of this site's masking key and seed; the own ones stay in `now`."""
    cohort = now.context.cohort
    points = [cohort.index(site) + 1 for site in now.peers]
    key = shamir.split(now.private.masking.private_bytes_raw(), threshold, points)
    seed = shamir.split(now.seed, threshold, points)
    shares = dict(zip(now.peers, zip(key, seed, strict=True), strict=True))
    now.own = shares.pop(name)
    return {
        site: keys.encrypt(now.private.sealing, now.peers[site].sealing, now.about_keys, name, site, key + seed)
        for site, (key, seed) in shares.items()
    }


def _halves(text: bytes, site: str) -> tuple[bytes, bytes]:
    if len(text) != 2 * shamir.SHARE_BYTES:
        raise RunError.at(
            site, f"sent shares of {len(text)} bytes, {2 * shamir.SHARE_BYTES} are right", "use one medfl version"
        )
    return text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :]


def _words(payload: Payload, context: RoundContext, where: str) -> mask.Words:
    """A copy of the payload's integers as words modulo 2^32."""
    lengths = [len(buffer) for buffer in payload.buffers]
    if payload.codec != "grid" or payload.size != context.size or lengths != [4 * context.size]:
        raise RunError.at(
            where,
            f"a payload {payload.codec!r} of {payload.size} values in {sum(lengths)} bytes cannot be masked",
            f"{context.size} values of codec 'grid' are asked for",
        )
    return np.frombuffer(payload.buffers[0], "<u4").copy()
