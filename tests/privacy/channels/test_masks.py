"""Masks: the sum and nothing but the sum, bit for bit, whoever drops out and whatever the coordinator asks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from medfl.errors import RunError
from medfl.privacy.channels.base import Channel, CoordinatorEnd, Guard, Message, RoundContext, SiteEnd
from medfl.privacy.channels.masks import Masks, MasksConfig
from medfl.privacy.identity import Ed25519Identity
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

LIMIT = 8_000_000
Tamper = Callable[[str, str, Message], Message | None]


def keep(stage: str, site: str, message: Message) -> Message | None:
    return message


def agree(context: RoundContext, survivors: tuple[str, ...]) -> None:
    return None


class Federation:
    """Sites a, b, c, .. and a coordinator that talk through `exchange`.

    tamper changes a request before the site gets it, or loses it (None). refusals: what the sites refused, by site.
    """

    def __init__(self, count: int, threshold: float = 0.67, size: int = 50, guard: Guard = agree) -> None:
        self.names = tuple(chr(ord("a") + i) for i in range(count))
        identities = {name: Ed25519Identity.generate(name) for name in self.names}
        self.roster = {name: identity.public for name, identity in identities.items()}
        self.channel: Channel = Masks(MasksConfig(threshold=threshold))
        self.sites: dict[str, SiteEnd] = {
            name: self.channel.site(identities[name], self.roster, guard) for name in self.names
        }
        self.size = size
        self.tamper: Tamper = keep
        self.refusals: dict[str, str] = {}
        self.sent: dict[str, dict[str, Message]] = {}

    def context(self, round_: int = 1, attempt: int = 1, minimum: int = 3) -> RoundContext:
        return RoundContext("run", round_, attempt, self.names, self.size, LIMIT, minimum)

    def coordinator(self, *args: Any, **kwargs: Any) -> CoordinatorEnd:
        return self.channel.coordinator(self.context(*args, **kwargs), self.roster)

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        answers = {}
        self.sent[stage] = dict(messages)
        for site, message in messages.items():
            changed = self.tamper(stage, site, message)
            if changed is None:
                continue
            try:
                answers[site] = self.sites[site].answer(stage, changed)
            except RunError as error:
                self.refusals[site] = str(error)
        return answers

    def lose(self, lost: Mapping[str, Iterable[str]]) -> None:
        """Sites that do not answer, by stage."""
        self.tamper = lambda stage, site, message: None if site in lost.get(stage, ()) else message

    def updates(self, seed: int = 0) -> dict[str, npt.NDArray[np.int32]]:
        rng = np.random.default_rng(seed)
        return {name: rng.integers(-9999, 9999, self.size, dtype=np.int32) for name in self.names}

    def sealed(self, updates: Mapping[str, npt.NDArray[np.int32]], round_: int = 1) -> dict[str, Payload]:
        return {name: self.sites[name].seal(round_, grid(values)) for name, values in updates.items()}

    def collected(self, sending: Iterable[str], round_: int = 1, attempt: int = 1) -> tuple[CoordinatorEnd, Any]:
        """A coordinator that has the updates of `sending`, ready to open, and their plain sum."""
        end, sending = self.coordinator(round_, attempt), tuple(sending)
        end.prepare(self.exchange)
        updates = {name: values for name, values in self.updates(round_).items() if name in sending}
        for name, payload in self.sealed(updates, round_).items():
            end.add(name, payload)
        return end, sum(values.astype(np.int64) for values in updates.values())


def grid(values: npt.NDArray[np.int32]) -> Payload:
    return Payload("grid", values.size, (as_bytes(values),))


def words(payload: Payload) -> npt.NDArray[np.uint32]:
    return np.frombuffer(payload.buffers[0], np.uint32)


def uniform(values: npt.NDArray[np.uint32]) -> bool:
    """Whether the bytes of the words could be uniform (chi-square, one in 10^6 false alarms)."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_sum_is_the_plain_sum_for_any_survivors(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 8))
    threshold = data.draw(st.sampled_from([0.51, 0.67, 1.0]))
    federation = Federation(count, threshold, size=data.draw(st.sampled_from([0, 1, 7, 64])))
    needed = max(3, int(np.ceil(threshold * count - 1e-9)))
    lost = data.draw(st.permutations(federation.names))
    kept = data.draw(st.integers(needed, count))
    stages = ("masks.keys", "masks.shares", "masks.peers", "seal")
    when = {name: data.draw(st.sampled_from(stages)) for name in lost[kept:]}
    federation.lose({stage: [name for name in when if when[name] == stage] for stage in stages})
    end = federation.coordinator()
    ready = end.prepare(federation.exchange)
    assert set(ready) == set(lost[:kept]) | {name for name in when if when[name] == "seal"}
    updates = {name: federation.updates()[name] for name in data.draw(st.permutations(lost[:kept]))}
    for name, payload in federation.sealed(updates).items():
        end.add(name, payload)
    total = end.open(federation.exchange)
    assert total.dtype == np.int64
    np.testing.assert_array_equal(total, sum(values.astype(np.int64) for values in updates.values()))
