"""The codec of sums: clip, put on the round's grid, and send as int32."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from medfl.errors import RunError
from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import MINIMUM_SITES
from medfl.privacy.grid import Grid
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec
from medfl.update.wire import as_bytes

LEAST = 1 / 16
"""The least weight where the coordinator chooses the weights of a sum: no update may vanish beside the others."""


class GridConfig(PluginConfig):
    kind: Literal["grid"] = "grid"

    def traits(self) -> frozenset[str]:
        return frozenset({"additive", "support-dense"})


class GridCodec(Codec):
    """4 bytes a value. weight: what the clipped update is multiplied by before it travels, at most 1. bit: when not 0,
    one more value travels, bit / 2 if the update was not clipped and -bit / 2 if it was."""

    Config = GridConfig

    def __init__(self, grid: Grid, weight: float = 1.0, bit: int = 0) -> None:
        super().__init__(GridConfig())
        self.grid = grid
        self.weight = weight
        self.bit = bit

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        values = self.grid.encode(update.dense(), self.weight)
        if self.bit:
            mark = self.bit // 2 if update.norm() <= self.grid.clip else -(self.bit // 2)
            values = np.append(values, np.int32(mark))
        return Payload("grid", values.size, (as_bytes(values),))

    def decode(self, payload: Payload, size: int) -> Update:
        """The update of a payload; RunError also when its norm is above the clip, or its clip bit is none."""
        length = size + (1 if self.bit else 0)
        self.check(payload, length, (4 * length,))
        values = np.frombuffer(payload.buffers[0], np.int32)
        if not self.grid.holds(values[:size]):
            raise RunError.at("update", f"has a norm above the clip of {self.grid.clip:g}")
        if self.bit and abs(int(values[size])) != self.bit // 2:
            raise RunError.at("update", "has a clip bit of neither value")
        return Update(self.grid.decode(values[:size], self.weight), size)


def weighted(payload: Payload, weight: float) -> Payload:
    """A grid payload with its integers times `weight`, in [0, 1], and rounded."""
    values = np.frombuffer(payload.buffers[0], np.int32)
    return replace(payload, buffers=(as_bytes(np.rint(values * weight).astype(np.int32)),))


def own_weight(weights: Any, site: str, where: str) -> float:
    """What a site multiplies its update by, of the weights by site that a coordinator tells all sites of a sum;
    RunError when they do not hold the site, are of too few, or would let an update vanish beside another."""
    told = weights if isinstance(weights, Mapping) else {}
    wrong = sorted(str(name) for name, weight in told.items() if not _fair(weight))
    if site not in told or len(told) < MINIMUM_SITES or wrong:
        what = f"those of {', '.join(wrong)} are not in [{LEAST:g}, 1]" if wrong else f"they are of {len(told)} sites"
        raise RunError.at(
            where, f"was told weights that it cannot use: {what}", f"a sum is of {MINIMUM_SITES} sites and more"
        )
    return float(told[site])


def _fair(weight: Any) -> bool:
    return type(weight) in (int, float) and math.isfinite(weight) and LEAST <= weight <= 1
