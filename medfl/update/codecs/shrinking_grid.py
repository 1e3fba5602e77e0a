"""Shrinking grid: each value to the nearest point of a grid between -r_k and r_k, r_k = r_0 sigma^k; b bits a value.

Step 2 r_k / (2^b - 1), one point at zero; |Q(v) - v| <= r_k / (2^b - 1) as long as |v| <= r_k, and larger values are
clipped (the memory keeps their rest). With `shrink` slower than the optimiser's own rate the innovations stay within
the grid and training converges linearly with a few bits, where a grid that does not shrink stops at its step
(Magnusson et al. 2020, arXiv 1902.11163). It is meant for innovations, what changed since the coordinator last heard,
as the gate `innovation` sends. State: the radius, 8 bytes at the sender; it travels. Without `radius` the first
vector's largest magnitude is r_0.
"""

from collections.abc import MutableMapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import RunError
from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import RememberingCodec
from medfl.update.codecs.blocks import BlockCodec, says_not_finite
from medfl.update.codecs.symmetric import Symmetric

_RADIUS = "codec.radius"
_BLOCK = 4096
_LARGEST = float(np.finfo(np.float32).max)


class ShrinkingGridConfig(PluginConfig):
    kind: Literal["shrinking_grid"] = "shrinking_grid"
    bits: int = Field(4, ge=2, le=8, description="b: bits a value")
    radius: float | None = Field(None, gt=0, lt=1e30, description="r_0; default: the first vector's largest magnitude")
    shrink: float = Field(0.99, gt=0, le=1, description="sigma: the radius is multiplied by it after each vector")

    def traits(self) -> frozenset[str]:
        return frozenset({"lossy", "support-dense", "scale-static"})


class ShrinkingGrid(RememberingCodec, BlockCodec):
    Config = ShrinkingGridConfig
    config: ShrinkingGridConfig

    def omega(self, size: int) -> float:
        return np.inf

    def encode_with(
        self, update: Update, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]
    ) -> Payload:
        radius = float(state[_RADIUS][0]) if _RADIUS in state else self._first(update)
        payload = self.encode_by(self._grid(radius), update, rng, {"radius": radius})
        if radius and payload.buffers:
            state[_RADIUS] = np.array([radius * self.config.shrink])
        return payload

    def decode(self, payload: Payload, size: int) -> Update:
        radius: Any = 0.0 if says_not_finite(payload) else payload.meta.get("radius")
        if type(radius) not in (int, float) or not 0 <= radius <= _LARGEST:
            raise RunError.at("update", "has no radius of its grid", "the sender must use the study's codec")
        return self.decode_by(self._grid(radius), payload, size)

    def _first(self, update: Update) -> float:
        if self.config.radius is not None:
            return self.config.radius
        values = update.values
        return float(max(values.max(), -values.min())) if values.size else 0.0

    def _grid(self, radius: float) -> Symmetric:
        levels = (1 << (self.config.bits - 1)) - 1
        return Symmetric(levels, _BLOCK, "nearest", scale=radius * 2 / ((1 << self.config.bits) - 1))
