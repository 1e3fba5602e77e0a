"""A federation of sites that sums under masks, and a coordinator that a test can make misbehave."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.privacy.channels.base import Channel, CoordinatorEnd, Guard, Message, RoundContext, SiteEnd
from medfl.privacy.channels.masks import Masks, MasksConfig
from medfl.privacy.identity import Ed25519Identity
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

LIMIT = 8_000_000
Tamper = Callable[[str, str, Message], Message | None]


def keep(_stage: str, _site: str, message: Message) -> Message | None:
    return message


def agree(_context: RoundContext, _survivors: tuple[str, ...]) -> None:
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
