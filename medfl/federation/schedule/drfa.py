"""DRFA, distributionally robust federated averaging (Deng, Kamani & Mahdavi, NeurIPS 2020), and DRFA-Prox.

    min_x max_{lambda in simplex}  sum_k lambda_k f_k(x) - prox/2 |lambda - 1/n|^2

Round: draw `sites` sites by lambda, with replacement; the model moves by the plain mean over the draws. Every site also
sends its model as it was at a common random moment of its local steps; their mean z stands for the whole round. Then
`sites` other sites, drawn uniformly, say their training loss of z, on `probe_images` of their own images:

    v_k = (n / m) f_k(z) for the probed sites, else 0
    lambda <- Proj_simplex(lambda + tau gamma v)                             prox = 0
    lambda <- Proj_simplex((lambda + tau gamma v + a/n) / (1 + a))           a = gamma tau prox

so the worst-off hospital is trained on more often, at some cost of the mean. The snapshot doubles what travels up, the
probe what travels down. Large `prox` goes back to uniform weights. Compare means over rounds: the last one is noisy.
The coordinator sees single sites' losses, and what a site is asked for follows them: no differential privacy covers it.
Of training images a probed site says the sum of the losses and how many they are, nothing else; of fewer than 32 only
where it has no more, nor are differences of probes of fewer: a site's groups stay the same in a run. Images that it
trains on and that are not its own have no part in it: f_k is its own loss.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.federation.schedule.base import Draw, Schedule
from medfl.learning.messages import SNAPSHOT
from medfl.plugins import PluginConfig

Weights = npt.NDArray[np.float64]
_MOST = 10.0
"""Times the median of the told losses: what a site's loss counts at most."""


class DrfaConfig(PluginConfig):
    kind: Literal["drfa"] = "drfa"
    sites: int = Field(5, ge=1, description="draws in a round, with replacement; and sites probed after it")
    gamma: float = Field(0.01, gt=0, description="step of lambda for each local step")
    probe_images: int | None = Field(
        512,
        ge=32,
        description="training images of its own that a probed site takes its loss of, or up to twice as many: one of "
        "the groups that it deals them out in, drawn anew; all where it has no more, or with null",
    )
    prox: float = Field(0.0, ge=0, description="DRFA-Prox: how strongly lambda is held at uniform")

    def traits(self) -> frozenset[str]:
        return frozenset({"own-weights", "snapshots", "reads-losses", "sync-only"})


class Drfa(Schedule):
    Config = DrfaConfig
    config: DrfaConfig

    def __init__(self, config: DrfaConfig) -> None:
        super().__init__(config)
        self.weights: dict[str, float] = {}

    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        return self.draw(round_, cases, rng).cohort

    def draw(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> Draw:
        names = self._known(cases)
        chances = np.array([self.weights[name] for name in names])
        drawn = Counter(str(name) for name in rng.choice(names, self.config.sites, p=chances / chances.sum()))
        return Draw(
            tuple(sorted(drawn)), {name: float(drawn[name]) for name in sorted(drawn)}, {SNAPSHOT: rng.random()}
        )

    def probe(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        names = self._known(cases)
        return tuple(sorted(map(str, rng.choice(names, min(self.config.sites, len(names)), replace=False))))

    def _known(self, cases: Mapping[str, int]) -> list[str]:
        """The sites that are there, by name; one that is new begins with the weight of the mean."""
        for name in sorted(cases):
            self.weights.setdefault(name, float(np.mean(list(self.weights.values()))) if self.weights else 1.0)
        total = sum(self.weights.values())
        self.weights = {name: weight / total for name, weight in sorted(self.weights.items())}
        there = [name for name in self.weights if name in cases]
        # a cohort of sites that all weigh nothing is drawn uniformly
        return there if any(self.weights[name] for name in there) else self._lifted(there)

    def _lifted(self, there: list[str]) -> list[str]:
        self.weights |= dict.fromkeys(there, 1e-9)
        return there

    def learn(self, losses: Mapping[str, float], sites: int, steps: float) -> None:
        names = list(self.weights)
        told = {name: loss for name, loss in losses.items() if name in self.weights and np.isfinite(loss)}
        if not told or not steps:
            return
        # a loss is a site's own word: above this it would take all of lambda at once
        most = _MOST * float(np.median(list(told.values())))
        told = {name: min(loss, most) for name, loss in told.items()}
        gradient = np.array([told.get(name, 0.0) for name in names]) * (sites / len(told))
        moved = np.array([self.weights[name] for name in names]) + steps * self.config.gamma * gradient
        pull = self.config.gamma * steps * self.config.prox
        self.weights = dict(zip(names, projected((moved + pull / len(names)) / (1 + pull)).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        return {"weights": dict(self.weights)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])


def projected(point: Weights) -> Weights:
    """The nearest point of the simplex (Duchi et al. 2008)."""
    # its largest value decides nothing, and far from zero ones would be lost beside it
    point = point - point.max()
    ordered = np.sort(point)[::-1]
    over = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    shift = over[np.nonzero(ordered > over)[0][-1]]
    found: Weights = np.maximum(point - shift, 0.0)
    return found
