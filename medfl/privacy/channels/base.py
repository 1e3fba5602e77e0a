"""Channel contract: what the coordinator can see of an update.

Traits: "reveals-each" (the coordinator opens every payload) or "reveals-sum" (only the sum of a round can be opened).

A channel has two ends. A round of a sum-only channel goes

    coordinator: end = channel.coordinator(context, ..); end.prepare(exchange)     keys are agreed on
    site:        payload = end.seal(context.round, grid payload)                    once a round
    coordinator: end.add(site, payload), as they arrive
    coordinator: total = end.open(exchange, noise)                                  once a round

where `exchange(stage, messages by site)` asks sites and returns the answers of those that gave one: the protocol knows
no network. What is summed are the int32 vectors of the codec `grid`, so that every channel gives the same sum, bit for
bit. Keys and masks come from the system's cryptographic generator, never from the study's seed.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Payload
from medfl.update.wire import Buffer

IntVector = npt.NDArray[np.int64]

MINIMUM_SITES = 3
"""A sum of fewer is never opened: two sites could each subtract their own update."""


PART = "ledger.part"
"""The stage at the end of a run, of no channel: the heads of the ledgers change hands."""

HAND_OVER = "update.hand-over"
"""The stage of asynchronous sums, of no channel: a site seals the update that it kept, for a round agreed on."""


@dataclass(frozen=True, slots=True)
class Message:
    """One step of a channel's protocol: a JSON-able header and raw buffers."""

    header: Mapping[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()


_NONE: Mapping[str, float] = MappingProxyType({})

Exchange = Callable[[str, Mapping[str, Message]], dict[str, Message]]


def hides(channel: PluginConfig) -> bool:
    """Whether the coordinator can open nothing but sums of this channel."""
    return "reveals-sum" in channel.traits()


def part_digest(part: Mapping[str, Any], values: Mapping[str, float] = _NONE, model: str = "") -> str:
    """SHA-256, as hex, of what the sites of a sum must have been told alike: the part of the vector that orders name,
    their values, and the digest of the model to train from; "" for all of it and none.

    Were the models not alike, sums would hide nothing: from one that is dead but for one site's the update of that site
    comes out of the sum alone (model inconsistency, Pasquini et al., CCS 2022)."""
    told = {"part": dict(part), "values": dict(values), "model": model}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest() if part or values or model else ""


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What every blob of a round is bound to. attempt counts retries of a round from 1: a retry is a fresh round to the
    cryptography. cohort: sites in combining order. size: values of the vector. limit: no coordinate of the sum, noise
    included, is larger in absolute value. minimum: sites without which the sum is not opened. part: `part_digest` of
    what the sites' orders say of the coordinates that are summed, of weights, clip and grid, and of the model: the same
    for all, or a sum would be of one site's."""

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    size: int
    limit: int
    minimum: int = MINIMUM_SITES
    part: str = ""

    def agrees(self, part: str, where: str) -> None:
        """RunError when a site was told otherwise than what the round was agreed on."""
        if part != self.part:
            what = "was told another part of the vector, other values or another model than the sites agreed on"
            raise RunError.at(where, what, "nothing was sent")

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "round": self.round,
            "attempt": self.attempt,
            "cohort": list(self.cohort),
            "size": self.size,
            "limit": self.limit,
            "minimum": self.minimum,
            "part": self.part,
        }

    @classmethod
    def from_json(cls, header: Mapping[str, Any]) -> "RoundContext":
        """The context of a received message, other keys ignored; RunError when it is not one."""
        try:
            numbers = {name: int(header[name]) for name in ("round", "attempt", "size", "limit", "minimum")}
            cohort = tuple(str(site) for site in header["cohort"])
            return cls(run=str(header["run"]), cohort=cohort, part=str(header["part"]), **numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError.at("message", f"does not say which round it is of: {error!r}") from error


Guard = Callable[[RoundContext, tuple[str, ...]], None]
"""Called at a site with the sites whose sum is about to be opened, before it does its part; raises to refuse."""


class CoordinatorEnd(ABC):
    """One round at the coordinator."""

    @abstractmethod
    def prepare(self, exchange: Exchange) -> tuple[str, ...]:
        """Agree on keys; the sites that can take part. RunError when there are fewer than the context's minimum."""

    @abstractmethod
    def look(self, site: str, payload: Payload) -> Payload | None:
        """The payload that the site sealed, or None when the coordinator cannot see it."""

    @abstractmethod
    def add(self, site: str, payload: Payload) -> None:
        """Take a sealed grid payload into the sum. RunError names the site and round when the blob is not whole, not
        signed by the site, not of this round, or was added already; the sum is then as before."""

    @abstractmethod
    def open(self, exchange: Exchange, noise: IntVector | None = None) -> IntVector:
        """The sum [size] of what was added plus `noise`. At most once a round; RunError when too few sites are in it or
        too few help to open it."""


class SiteEnd(ABC):
    """One site's end, for all rounds of a run."""

    @abstractmethod
    def answer(self, stage: str, message: Message) -> Message:
        """This site's answer in the protocol; RunError when the coordinator asks for what must not be given."""

    @abstractmethod
    def seal(self, round_: int, payload: Payload, part: str = "") -> Payload:
        """The payload as it may leave; at most one a round and attempt under a sum-only channel. part: as in the
        round's context. RunError when it is another."""


class Identity(ABC):
    """A party's long-lived signing key (Ed25519)."""

    name: str

    @property
    @abstractmethod
    def public(self) -> bytes:
        """The raw public key, 32 bytes."""

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """A signature, 64 bytes."""


Roster = Mapping[str, bytes]
"""The pinned public keys of all parties by name."""


class Channel(Plugin[PluginConfig], ABC):
    @abstractmethod
    def site(self, identity: Identity, roster: Roster, guard: Guard) -> SiteEnd:
        """The end at one site."""

    @abstractmethod
    def coordinator(self, context: RoundContext, roster: Roster) -> CoordinatorEnd:
        """The coordinator's end for one round."""


CHANNELS = PluginPoint(
    "channel",
    "medfl.channels",
    {
        "clear": "medfl.privacy.channels.clear:Clear",
        "masks": "medfl.privacy.channels.masks:Masks",
        "he": "medfl.privacy.channels.he:He",
    },
)
