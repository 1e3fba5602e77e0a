"""LotteryFL (Li et al., "LotteryFL: Personalized and Communication-Efficient Federated Learning with Lottery Ticket
Hypothesis on Non-IID Datasets", 2020, arXiv 2008.03371).

Each site has a mask M of its own, at first everything. It gets x * M of the global model x, measures it on its
validation cases (the task's primary metric), and

    if the metric > threshold and the kept share > target:
        M drops the smallest `rate` of the kept weights |x * M|;    training starts from x_0 * M (the first model)
    else:
        training starts from x * M

Only M trains and is sent; the coordinator averages each coordinate over the sites that own it and leaves the others
alone (use the aggregator `masked_mean`). What a site keeps for itself is the masked model. Weights are what is
pruned; biases and norms stay.

Costs: the kept share of the bytes each way, and the mask once whenever it changes (one bit a value). State: a site's
mask at the site, and at the coordinator one for each site. A mask tells the coordinator of the site's data.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import MedflError, RunError
from medfl.plugins import PluginConfig
from medfl.update.memories.base import SiteState
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice, Chooser, Measure, Start, SubModel
from medfl.update.submodels.bits import fingerprint, packed, unpacked
from medfl.update.vector import FloatVector

Bits = npt.NDArray[np.uint8]
Inside = npt.NDArray[np.bool_]

MASK = "submodel.mask"
"""The site's mask, as packed bits; none is everything."""
KNOWN = "submodel.known"
"""The mask that the coordinator named last: a reply that came too late leaves it one behind the site's."""


class LotteryConfig(PluginConfig):
    kind: Literal["lottery"] = "lottery"
    target: float = Field(0.3, gt=0, lt=1, description="share of the weights where pruning ends")
    rate: float = Field(0.2, gt=0, lt=1, description="share of the kept weights that goes at once")
    threshold: float = Field(0.5, description="metric of the received model above which a site prunes")

    def traits(self) -> frozenset[str]:
        return frozenset({"per-client", "private-mask", "needs-measure"})


class Lottery(SubModel):
    Config = LotteryConfig
    config: LotteryConfig

    @property
    def size(self) -> int:
        return self.setup.layout.size

    @cached_property
    def prunable(self) -> Inside:
        """Whether each coordinate [size] is of a tensor with more than one axis."""
        inside = np.zeros(self.size, np.bool_)
        for slot in self.setup.layout.slots:
            inside[slot.offset : slot.offset + slot.size] = len(slot.shape) > 1
        return inside

    def part(self, choice: Choice) -> Coordinates | None:
        """That of a choice that names no mask; RunError for others, whose mask only the site and the chooser know."""
        if named(choice):
            raise _unknown(choice)
        return None

    def down(self, choice: Choice, state: SiteState) -> Coordinates | None:
        mask = self._named(choice, state)
        return None if mask is None else Coordinates(np.flatnonzero(mask))

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        known = self._named(choice, state)
        state.pop(KNOWN, None)
        if known is not None:
            state[KNOWN] = packed(known)
        mask, values = self._mask(state), self.personal(received, state)
        pruned = self._pruned(mask, values, choice, measure)
        if pruned is not None:
            mask, values = pruned, np.where(pruned, self.setup.initial(), np.float32(0))
            state[MASK] = packed(mask)
        if MASK not in state:
            return Start(values)
        part = Coordinates(np.flatnonzero(mask))
        news = fingerprint(state[MASK]) != named(choice)
        return Start(values, part, part, state[MASK].tobytes() if news else b"")

    def personal(self, model: FloatVector, state: SiteState) -> FloatVector:
        return np.where(self._mask(state), model, np.float32(0)) if MASK in state else model

    def chooser(self) -> "LotteryChooser":
        return LotteryChooser(self)

    def _mask(self, state: SiteState) -> Inside:
        if MASK not in state:
            return np.ones(self.size, np.bool_)
        return unpacked(state[MASK].tobytes(), self.size, MASK)

    def _named(self, choice: Choice, state: SiteState) -> Inside | None:
        """The mask that the coordinator means, None for everything; RunError when the site does not know it."""
        name = named(choice)
        if not name:
            return None
        for key in (MASK, KNOWN):
            if key in state and fingerprint(state[key]) == name:
                return unpacked(state[key].tobytes(), self.size, key)
        raise _unknown(choice)

    def _pruned(self, mask: Inside, values: FloatVector, choice: Choice, measure: Measure) -> Inside | None:
        """A smaller mask, where the site is to prune."""
        kept = mask & self.prunable
        weights, least = int(kept.sum()), math.ceil(self.config.target * int(self.prunable.sum()))
        if weights <= least:
            return None
        metric = measure(values)
        if math.isnan(metric):
            raise RunError.at(
                f"site {choice.site}, round {choice.round}",
                "has no validation cases to measure the received model on",
                "give it some, or choose another update.submodel",
            )
        if not metric > self.config.threshold:
            return None
        return mask & ~_smallest(values, kept, min(weights - least, max(1, int(self.config.rate * weights))))


class LotteryChooser(Chooser):
    """Keeps every site's mask, as the site last told it."""

    submodel: Lottery

    def __init__(self, submodel: Lottery) -> None:
        super().__init__(submodel)
        self._masks: dict[str, Bits] = {}

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        return Choice(site, round_, {"mask": fingerprint(self._masks[site])} if site in self._masks else {})

    def down(self, choice: Choice) -> Coordinates | None:
        if not named(choice):
            return None
        return Coordinates(np.flatnonzero(self._mask(choice, named(choice))))

    def hear(self, choice: Choice, notice: bytes) -> None:
        # what it tells is the part itself
        self.up(choice, notice)

    def up(self, choice: Choice, notice: bytes) -> Coordinates | None:
        if not notice:
            return self.down(choice)
        where = f"site {choice.site}, round {choice.round}"
        mask = unpacked(notice, self.submodel.size, where)
        if not mask.any():
            raise RunError.at(where, "its mask is empty")
        before = self._masks.get(choice.site)
        if before is not None and bool((mask & ~unpacked(before.tobytes(), mask.size, where)).any()):
            raise RunError.at(where, "its mask has coordinates that it did not have before")
        self._masks[choice.site] = np.frombuffer(notice, np.uint8)
        return Coordinates(np.flatnonzero(mask))

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {}, {f"mask.{site}": mask for site, mask in self._masks.items()}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._masks = {name.removeprefix("mask."): np.array(mask) for name, mask in arrays.items()}

    def _mask(self, choice: Choice, name: str) -> Inside:
        mask = self._masks.get(choice.site)
        if mask is None or fingerprint(mask) != name:
            raise _unknown(choice)
        return unpacked(mask.tobytes(), self.submodel.size, f"site {choice.site}")


def _smallest(values: FloatVector, kept: Inside, count: int) -> Inside:
    """Where the `count` smallest |values| among the kept ones are; of equals, the first."""
    magnitudes = np.abs(values[kept])
    magnitudes.partition(count - 1)
    edge = magnitudes[count - 1]
    magnitudes = np.abs(values)
    found: Inside = kept & (magnitudes < edge)
    equal = np.flatnonzero(kept & (magnitudes == edge))
    found[equal[: count - int(found.sum())]] = True
    return found


def named(choice: Choice) -> str:
    """The fingerprint of the mask that a choice means, "" for everything; RunError when it is none."""
    name = choice.content.get("mask", "")
    if not isinstance(name, str):
        raise _unknown(choice)
    return name


def _unknown(choice: Choice) -> MedflError:
    return RunError.at(
        f"site {choice.site}, round {choice.round}",
        "coordinator and site do not have the same mask",
        "restore the site's private state, or begin a new run",
    )
