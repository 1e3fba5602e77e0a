"""The coordinator sees each update (protected in transit by the transport only)."""

from typing import Literal

import numpy as np

from medfl.errors import RunError
from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import (
    Channel,
    CoordinatorEnd,
    Exchange,
    Guard,
    Identity,
    IntVector,
    Message,
    Roster,
    RoundContext,
    SiteEnd,
)
from medfl.update.base import Payload

_OPEN = "clear.open"


class ClearConfig(PluginConfig):
    kind: Literal["clear"] = "clear"

    def traits(self) -> frozenset[str]:
        return frozenset({"reveals-each"})


class ClearCoordinator(CoordinatorEnd):
    def __init__(self, context: RoundContext) -> None:
        self._context = context
        self._added: list[str] = []
        self._sum: IntVector | None = None
        self._opened = False

    def prepare(self, exchange: Exchange) -> tuple[str, ...]:
        return self._context.cohort

    def look(self, site: str, payload: Payload) -> Payload:
        return payload

    def add(self, site: str, payload: Payload) -> None:
        where = f"site {site}, round {self._context.round}"
        if site in self._added:
            raise RunError.at(where, "is in the sum already")
        if len(payload.buffers) != 1 or len(payload.buffers[0]) != 4 * self._context.size:
            raise RunError.at(where, f"does not carry {self._context.size} integers")
        values = np.frombuffer(payload.buffers[0], np.int32)
        if self._sum is None:
            self._sum = np.zeros(self._context.size, np.int64)
        self._sum += values
        self._added.append(site)

    def open(self, exchange: Exchange, noise: IntVector | None = None) -> IntVector:
        if self._opened:
            raise RunError.at(f"round {self._context.round}", "its sum was opened already", "go on with the next round")
        self._opened = True
        survivors = tuple(self._added)
        asked = {site: Message({**self._context.to_json(), "survivors": list(survivors)}) for site in survivors}
        silent = sorted(set(survivors) - exchange(_OPEN, asked).keys())
        if silent:
            raise RunError.at(
                f"round {self._context.round}", f"{', '.join(silent)} did not agree to the sum", "the round is void"
            )
        total = np.zeros(self._context.size, np.int64) if self._sum is None else self._sum
        self._sum = None
        return total if noise is None else total + noise


class ClearSite(SiteEnd):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def answer(self, stage: str, message: Message) -> Message:
        if stage != _OPEN:
            raise RunError.at("channel clear", f"has no stage {stage!r}")
        context = RoundContext.from_json(message.header)
        self._guard(context, tuple(message.header["survivors"]))
        return Message({"agreed": True})

    def seal(self, round_: int, payload: Payload, part: str = "") -> Payload:
        return payload


class Clear(Channel):
    Config = ClearConfig

    def site(self, identity: Identity, roster: Roster, guard: Guard) -> ClearSite:
        return ClearSite(guard)

    def coordinator(self, context: RoundContext, roster: Roster) -> ClearCoordinator:
        return ClearCoordinator(context)
