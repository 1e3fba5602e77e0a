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
    """4 bytes a value. weight: what the clipped update is multiplied by before it travels, at most 1."""

    Config = GridConfig

    def __init__(self, grid: Grid, weight: float = 1.0) -> None:
        super().__init__(GridConfig())
        self.grid = grid
        self.weight = weight

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return Payload("grid", update.size, (as_bytes(self.grid.encode(update.dense(), self.weight)),))

    def decode(self, payload: Payload, size: int) -> Update:
        """The update of a payload; RunError also when its norm is above the clip."""
        self.check(payload, size, (4 * size,))
        values = np.frombuffer(payload.buffers[0], np.int32)
        if not self.grid.holds(values):
            raise RunError.at("update", f"has a norm above the clip of {self.grid.clip:g}")
        return Update(self.grid.decode(values, self.weight), size)
