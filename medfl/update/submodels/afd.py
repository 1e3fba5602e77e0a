"""Adaptive federated dropout (Bouacida et al., "Adaptive Federated Dropout: Improving Communication Efficiency and
Generalization for Federated Learning", 2020, arXiv 2011.04050).

A site gets, trains and returns a network without a share of each layer's filters. The coordinator learns which filters
to leave in: with A the set that a site trained, l its training loss and l' that of its round before,

    l < l':  score[A] += (l' - l) / l',  and A is used again;    else a new A is drawn, weighted by the scores.

A filter goes with everything that hangs on it (`medfl.update.submodels.units`); the network's inputs and outputs stay.
`multi` keeps scores, loss and A for each site, `single` one of each for the cohort, with the mean loss. All scores
begin at 1. A set that keeps being rewarded would never be left: after `max_reuse` rounds a new one is drawn.

Costs: about (1 - drop)^2 of the bytes each way, and for the choice one bit a filter. State: at the coordinator one
score a filter (for each site with `multi`); at a site none. Coordinates that nobody trained stay as they are: use the
aggregator `masked_mean`. The sites' training losses reach the coordinator.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import MedflError, RunError, StudyError
from medfl.plugins import PluginConfig
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice, Chooser, SubModel
from medfl.update.submodels.bits import packed, unpacked
from medfl.update.submodels.units import Units

_COHORT = ""
_MOST = 1e30


class AfdConfig(PluginConfig):
    kind: Literal["afd"] = "afd"
    mode: Literal["multi", "single"] = Field("multi", description="a choice for each site, or one for the cohort")
    drop: float = Field(0.25, gt=0, lt=1, description="share of each layer's filters that is left out")
    max_reuse: int = Field(3, ge=0, description="rounds in a row that a rewarded set is used again")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-losses", "per-client" if self.mode == "multi" else "per-round"})


class Afd(SubModel):
    Config = AfdConfig
    config: AfdConfig

    @cached_property
    def units(self) -> Units:
        """StudyError when there is nothing to leave out."""
        units = self.setup.units()
        if not any(self.dropped(layer.units) for layer in units.layers):
            raise StudyError.at(
                "update.submodel",
                f"no layer of this network has enough filters to leave out {self.config.drop:.0%} of them",
                "raise drop, widen the network, or choose another sub-model",
            )
        return units

    def dropped(self, units: int) -> int:
        """How many of a layer's units are left out: the nearest number, the lower of two, and never all."""
        return min(units - 1, math.ceil(self.config.drop * units - 0.5))

    def part(self, choice: Choice) -> Coordinates:
        return Coordinates(self.units.coordinates(self.kept(choice)))

    def kept(self, choice: Choice) -> npt.NDArray[np.bool_]:
        """The units [count] of a choice; RunError when it is not one."""
        where, text = f"site {choice.site}, round {choice.round}", choice.content.get("kept")
        if choice.content.get("units") != self.units.digest[:16]:
            raise RunError.at(
                where,
                "coordinator and site do not see the same filters in the network",
                "install the same versions of medfl and its libraries at both",
            )
        try:
            raw = base64.b64decode(text if isinstance(text, str) else "-", validate=True)
        except (binascii.Error, ValueError):
            raise _not_a_choice(where) from None
        kept = unpacked(raw, self.units.count, where)
        for layer in self.units.layers:
            if kept[layer.start : layer.stop].sum() != layer.units - self.dropped(layer.units):
                raise _not_a_choice(where)
        return kept

    def chooser(self) -> "AfdChooser":
        return AfdChooser(self)


def _is_loss(loss: float) -> bool:
    """A loss is a site's own word, and scores grow by how much of it is gone."""
    return 0 <= loss < _MOST


@dataclass
class _Course:
    """What is known of one site, or of the cohort. scores [units]. kept: the set A [units]. round: of the last choice.
    loss: of the round before. reused: how often A was used again."""

    scores: npt.NDArray[np.float64]
    kept: npt.NDArray[np.bool_]
    round: int = 0
    loss: float | None = None
    recorded: bool = False
    reused: int = 0

    def learn(self, loss: float) -> None:
        if not _is_loss(loss):
            self.recorded = False
            return
        before, self.loss = self.loss, loss
        self.recorded = before is not None and loss < before and before > 0
        if before is not None and self.recorded:
            self.scores[self.kept] += (before - loss) / before


class AfdChooser(Chooser):
    submodel: Afd

    def __init__(self, submodel: Afd) -> None:
        super().__init__(submodel)
        self._courses: dict[str, _Course] = {}

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        course, units = self._course(site), self.submodel.units
        if course.round != round_:
            if course.recorded and course.reused < self.submodel.config.max_reuse:
                course.reused += 1
            else:
                course.kept, course.reused = self._draw(course.scores, rng), 0
            course.round = round_
        kept = base64.b64encode(packed(course.kept).tobytes()).decode()
        return Choice(site, round_, {"units": units.digest[:16], "kept": kept})

    def learn(self, round_: int, losses: Mapping[str, float]) -> None:
        if self.submodel.config.mode == "single":
            finite = [loss for loss in losses.values() if _is_loss(loss)]
            losses = {_COHORT: math.fsum(finite) / len(finite)} if finite else {}
        for site, loss in losses.items():
            course = self._course(site)
            if course.round == round_:
                course.learn(loss)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        plain, arrays = {}, dict[str, npt.NDArray[Any]]()
        for site, course in self._courses.items():
            plain[site] = [course.round, course.loss, course.recorded, course.reused]
            arrays |= {f"scores.{site}": course.scores, f"kept.{site}": course.kept}
        return plain, arrays

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._courses = {
            site: _Course(np.array(arrays[f"scores.{site}"]), np.array(arrays[f"kept.{site}"]), *moving)
            for site, moving in plain.items()
        }

    def _course(self, site: str) -> _Course:
        key = site if self.submodel.config.mode == "multi" else _COHORT
        if key not in self._courses:
            count = self.submodel.units.count
            self._courses[key] = _Course(np.ones(count), np.ones(count, np.bool_))
        return self._courses[key]

    def _draw(self, scores: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Of each layer, a weighted draw without replacement: the first arrivals of Poisson processes."""
        kept = np.zeros(scores.size, np.bool_)
        arrivals = rng.exponential(size=scores.size) / scores
        for layer in self.submodel.units.layers:
            order = np.argsort(arrivals[layer.start : layer.stop], kind="stable")
            kept[layer.start + order[: layer.units - self.submodel.dropped(layer.units)]] = True
        return kept


def _not_a_choice(where: str) -> MedflError:
    return RunError.at(where, "the choice of filters is not one of this study")
