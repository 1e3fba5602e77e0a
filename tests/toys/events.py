"""Sites that train least squares and answer when they please: the asynchronous federation without network or images."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.federation.asynchronous.federation import Arrived, AsynchronousFederation, Flight
from medfl.federation.outcome import RoundOutcome
from medfl.federation.schedule.base import SCHEDULES
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS
from toys.parts import federation_parts, plugin
from toys.problems import SiteRows, curvature

Delay = Callable[[np.random.Generator, str], float]


def asynchronous(parameters: int, kind: str = "fedasync", model: Any = None, **settings: Any) -> AsynchronousFederation:
    """A federation from zero, or from `model` [parameters]; "parts__x" settings are those of its parts."""
    parts = {name.removeprefix("parts__"): settings.pop(name) for name in list(settings) if name.startswith("parts__")}
    start = np.zeros(parameters, np.float32) if model is None else np.array(model, np.float32)
    made = federation_parts(schedule=plugin(SCHEDULES, kind, **settings), **parts)
    return AsynchronousFederation(made, 0, start, lambda cases, values: cases)


def reply(order: TrainOrder, change: npt.NDArray[Any], cases: int) -> TrainReply:
    update = Update(np.asarray(change, np.float32), len(change))
    payload: Payload = plugin(CODECS, "fp32").encode(update, np.random.default_rng(0))
    return TrainReply(order.site, order.round, payload, cases, 1, 1, 1.0, 1.0)


class Squares:
    """Local SGD on least squares with a proximal term, in float64, by site and number of the order."""

    def __init__(
        self, sites: list[SiteRows], steps: int = 10, batch: int | None = 8, rho: float = 0.01, seed: int = 0
    ) -> None:
        self.sites = {f"site-{number:02d}": rows for number, rows in enumerate(sites)}
        self.cases = {name: len(rows.targets) for name, rows in self.sites.items()}
        self._rate = 0.1 / curvature(sites)
        self._steps, self._batch, self._rho, self._seed = steps, batch, rho, seed

    def change(self, site: str, number: int, start: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        rows = self.sites[site]
        rng = np.random.default_rng([self._seed, number, list(self.sites).index(site)])
        x, anchor = start.astype(np.float64), start.astype(np.float64)
        for _ in range(self._steps):
            chosen = slice(None) if self._batch is None else rng.choice(len(rows.targets), self._batch, replace=False)
            a, b = rows.features[chosen], rows.targets[chosen]
            x = x - self._rate * (a.T @ (a @ x - b) / len(b) + self._rho * (x - anchor))
        found: npt.NDArray[np.float32] = (x - anchor).astype(np.float32)
        return found

    def answer(self, order: TrainOrder, start: npt.NDArray[Any], _: int = 0) -> TrainReply:
        return reply(order, self.change(order.site, order.round, start), self.cases[order.site])


class Events:
    """A queue of answers: each comes `delay` after its order, in a time of its own."""

    def __init__(self, federation: AsynchronousFederation, squares: Squares, delay: Delay, seed: int = 0) -> None:
        self.federation, self.squares = federation, squares
        self._delay, self._rng = delay, np.random.default_rng(seed)
        self._now, self._due = 0.0, dict[str, float]()
        self.arrived: list[Arrived] = []
        self.records: list[dict[str, Any]] = []

    def step(self) -> RoundOutcome:
        """The next server step."""
        cases = self.squares.cases
        step = self.federation.begin(cases)
        while not step.full:
            while waiting := self._waiting():
                self._send(self.federation.dispatch(str(self._rng.choice(waiting)), cases))
            if not self.federation.flights:
                break
            site = min(self._due, key=lambda name: (self._due[name], name))
            self._now = self._due.pop(site)
            flight = self.federation.flights[site]
            self.federation.receive(step, self.squares.answer(flight.order(), self.federation.base(flight)))
            self.arrived.append(step.arrived[-1])
        outcome = self.federation.finish(step)
        self.records.append({"arrivals": [asdict(arrived) for arrived in step.arrived]})
        return outcome

    def _waiting(self) -> list[str]:
        """Sites to draw from: not those that were asked least, which would tie the staleness to the sites."""
        federation, cases = self.federation, self.squares.cases
        if not federation.idle(cases):
            return []
        tried = {
            site for site in cases if site in federation.flights or federation._before(site).version >= federation.round
        }
        return sorted(set(cases) - tried)

    def _send(self, flight: Flight) -> None:
        self._due[flight.site] = self._now + self._delay(self._rng, flight.site)
