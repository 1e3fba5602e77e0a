"""Privacy bugs to put into the real parts, each as small as the slip that would make it; an audit must find them all.

The first part of each is a name, the second puts it in and says what a `Coordinated` run is to be made with.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfl.coordinator import desk as desks
from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.rounds import Course, Rounds
from medfl.federation.open_round import OpenRound
from medfl.federation.outcome import RoundOutcome
from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.federation.regulator.finite import FiniteConfig
from medfl.federation.summing import RoundSum
from medfl.learning import disclosure
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.channels.base import IntVector
from medfl.privacy.channels.clear import ClearCoordinator
from medfl.privacy.grid import Grid
from medfl.privacy.ledger.base import Permit
from medfl.privacy.mechanisms.base import NoisePlan
from medfl.privacy.mechanisms.patient import PatientNoise
from medfl.privacy.noise import NoiseSource
from medfl.update.base import Payload

Put = pytest.MonkeyPatch
Fault = Callable[[Put], Mapping[str, Any]]
LAYERS = 4


class KnownNoise(NoiseSource):
    """Keys that follow from the experiment's seed and the number of the draw, said to be the system's."""

    randomness = "system"

    def __init__(self, seed: int = 0) -> None:
        self._draws = seed << 32

    def key(self) -> bytes:
        self._draws += 1
        return hashlib.sha256(self._draws.to_bytes(8, "big")).digest()


class ConstantNoise(NoiseSource):
    """A generator that is seeded anew for every draw."""

    randomness = "system"

    def key(self) -> bytes:
        return bytes(32)


class RedrawingDesk(NoiseDesk):
    """After a crash: draws afresh for the same charge and calls it a retry."""

    last: Permit | None = None

    def release(self, round_: int, alive: int, grid: Grid | None = None, size: int = 0) -> IntVector | None:
        if self.last is None:
            drawn = super().release(round_, alive, grid, size)
            self.last = self._permit
            return drawn
        assert grid is not None
        self.last._left = 1
        drawn = desks.draw(self.last, self.plan.update_noise * grid.bound, size, self._source)
        self.last = None
        return drawn

    def done(self, total: IntVector) -> None:
        if self._permit is not None and self.last is None:
            self._permit = None


class StaleClipDesk(NoiseDesk):
    """The clip has doubled, and the noise is still that of the old one."""

    def release(self, round_: int, alive: int, grid: Grid | None = None, size: int = 0) -> IntVector | None:
        assert grid is not None
        return super().release(round_, alive, Grid(grid.clip / 2, grid.bound // 2), size)


class BareBitDesk(NoiseDesk):
    """Noise for the parameters, and none for the clip bit behind them."""

    def release(self, round_: int, alive: int, grid: Grid | None = None, size: int = 0) -> IntVector | None:
        drawn = super().release(round_, alive, grid, size)
        assert drawn is not None
        drawn[self.plan.parameters :] = 0
        return drawn


class ReopeningRounds(Rounds):
    """Opens a sum, and once more with other noise, for one charge."""

    def _open(self, sum_: RoundSum, round_: OpenRound, course: Course) -> RoundOutcome:
        end, desk = sum_.end, self.desk
        assert isinstance(end, ClearCoordinator) and desk is not None and end._sum is not None
        kept = end._sum.copy()
        first = super()._open(sum_, round_, course)
        end._sum, end._opened = kept, False
        permit = Permit(desk._charge(first.plan.round, None), "")
        noise = desks.draw(permit, desk.plan.update_noise * sum_.codec.grid.bound, kept.size)
        self.federation.round -= 1
        self._step(first, end.open(lambda _, asked: dict(asked), noise).astype(np.int32), sum_.denominator)
        return first


class CosineToTheMean(RegulatorRule):
    """Refuses what points away from the mean of the updates that were admitted before it in this round."""

    Config = FiniteConfig

    def __init__(self) -> None:
        super().__init__(FiniteConfig())
        self._round, self._sum = 0, np.zeros(1)

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        if arrival.round != self._round:
            self._round, self._sum = arrival.round, np.zeros(bench.model.size)
            self._sum += arrival.update.dense()
            return ADMIT
        if arrival.update.dense() @ self._sum <= 0:
            return self.refuse("points away from the mean")
        self._sum += arrival.update.dense()
        return ADMIT


def scaled_noise(factor: float, module: Any) -> Fault:
    def put(monkeypatch: Put) -> Mapping[str, Any]:
        real = module.draw
        monkeypatch.setattr(module, "draw", lambda permit, sigma, *rest: real(permit, sigma * factor, *rest))
        return {}

    return put


def _weights_of_data(monkeypatch: Put) -> Mapping[str, Any]:
    """Each site's share n_k / N of the cases, while the noise stays that of equal weights: s000 has half of them."""
    real = RoundSum.add

    def add(self: RoundSum, site: str, payload: Payload, cases: int, factor: float = 1.0) -> None:
        sites = len(self.context.cohort)
        real(self, site, payload, cases, factor * (sites / 2 if site == "s000" else sites / 2 / (sites - 1)))

    monkeypatch.setattr(RoundSum, "add", add)
    return {}


def _clip_of_each_layer(monkeypatch: Put) -> Mapping[str, Any]:
    """Every layer is clipped to C, and the whole is taken for a vector of norm C."""
    encode, holds = Grid.encode, Grid.holds

    def layers(call: Callable[..., Any]) -> Callable[..., list[Any]]:
        return lambda self, vector, *rest: [call(self, layer, *rest) for layer in np.split(vector, LAYERS)]

    monkeypatch.setattr(Grid, "encode", lambda *given: np.concatenate(layers(encode)(*given)))
    monkeypatch.setattr(Grid, "holds", lambda *given: all(layers(holds)(*given)))
    return {}


def _divide_by_survivors(monkeypatch: Put) -> Mapping[str, Any]:
    monkeypatch.setattr(RoundSum, "denominator", property(lambda self: sum(self.weights.values())))
    return {}


SITE_FAULTS: dict[str, Fault] = {
    "noise / sqrt 2": scaled_noise(2**-0.5, desks),
    "weights n_k / N": _weights_of_data,
    "clip of each layer": _clip_of_each_layer,
    "divides by survivors": _divide_by_survivors,
    "cosine to the mean": lambda _: {"rule": CosineToTheMean},
    "seeded noise": lambda _: {"source": KnownNoise},
    "constant noise": lambda _: {"source": ConstantNoise},
    "stale clip": lambda _: {"desk": StaleClipDesk},
    "redraws for one charge": lambda _: {"desk": RedrawingDesk},
    "opens a sum twice": lambda _: {"rounds": ReopeningRounds},
}


def _split_among_all(monkeypatch: Put) -> Mapping[str, Any]:
    """Shares of z^2 C^2 / n: enough for the sum of all, and too little for what a coalition or a drop-out leaves."""
    real = disclosure.Disclosure.share

    def share(self: disclosure.Disclosure, *given: Any) -> Any:
        return real(replace(self, plan=replace(self.plan, shares=len(self.plan.sites))), *given)

    monkeypatch.setattr(disclosure.Disclosure, "share", share)
    return {}


def _charges_full_noise(monkeypatch: Put) -> Mapping[str, Any]:
    """The charge forgets that shares are missing and that colluders know their own."""

    def event(_self: PatientNoise, plan: NoisePlan, _alive: int | None = None) -> GaussianEvent:
        return GaussianEvent(plan.noise_multiplier, plan.sampling_rate, plan.steps)

    monkeypatch.setattr(PatientNoise, "event", event)
    return {}


PATIENT_FAULTS: dict[str, Fault] = {
    "noise / sqrt 2": scaled_noise(2**-0.5, disclosure),
    "shares of n in place of n - t": _split_among_all,
    "charges as if all shares were there": _charges_full_noise,
    "seeded noise": lambda _: {"source": KnownNoise},
}

UTILITY_FAULTS: dict[str, Fault] = {
    "site": scaled_noise(1.2, desks),
    "patient": scaled_noise(1.2, disclosure),
}
