"""The codec of sums: clip, put on the round's grid, and send as int32."""

from typing import Literal

import numpy as np

from medfl.errors import RunError
from medfl.plugins import PluginConfig
from medfl.privacy.grid import Grid
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec
from medfl.update.wire import as_bytes


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
