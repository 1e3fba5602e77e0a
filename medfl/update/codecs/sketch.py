"""Probabilistic b-bit sketch: each value goes to one of 2^b levels between its block's least and largest, at random.

With L = 2^b - 1 and x = L (v - min) / (max - min), q = floor(x) or floor(x) + 1 so that the mean is x, and
Q(v) = min + q (max - min) / L: unbiased; b bits a value and 8 bytes a block (Konecny et al. 2016, arXiv 1610.05492).
`rotate` (default) first turns each block by random signs and a Walsh-Hadamard transform, which makes the range small:
E|Q(v) - v|^2 <= (2 ln n + 2) / L^2 |v|^2 in a block of n values, in place of n / (2 L^2) (Suresh et al. 2017, arXiv
1611.00429). A rotated vector is padded to whole blocks. The seed of the signs travels. No state.
"""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medfl.plugins import PluginConfig
from medfl.update.codecs.blocks import BlockCodec, Quantiser, reciprocal, stochastic
from medfl.update.codecs.packing import Codes
from medfl.update.codecs.rotation import Rows, refuse_block
from medfl.update.codecs.symmetric import MARGIN


class SketchConfig(PluginConfig):
    kind: Literal["sketch"] = "sketch"
    bits: int = Field(4, ge=1, le=8, description="b: bits a value")
    block: int = Field(1024, ge=8, le=65536, multiple_of=8, description="values that share a range")
    rotate: bool = Field(True, description="rotate each block first, by random signs and a Hadamard transform")

    @model_validator(mode="after")
    def _block_can_be_rotated(self) -> Self:
        if self.rotate:
            refuse_block(self.block)
        return self

    def traits(self) -> frozenset[str]:
        return frozenset({"lossy", "unbiased", "support-dense", "scale-adaptive"})


class _Ranges(Quantiser):
    """A block's numbers are its least value and its range."""

    numbers = 2

    def __init__(self, bits: int, block: int) -> None:
        self.bits, self.block = bits, block
        self._levels = np.float32((1 << bits) - 1)

    def omega(self, count: int, rotated: bool) -> float:
        range_ = min(count / 2, 2 * math.log(count) + 2) if rotated else count / 2
        return float(range_ / self._levels**2)

    def measure(self, rows: Rows, work: Rows) -> Rows:
        least = rows.min(axis=1)
        return np.stack([least, (rows.max(axis=1) - least) * MARGIN], axis=1)

    def quantise(self, rows: Rows, numbers: Rows, codes: Codes, work: Rows, rng: np.random.Generator) -> None:
        np.subtract(rows, numbers[:, :1], out=work)
        work *= reciprocal(numbers[:, 1:] / self._levels)
        stochastic(work, rng)
        np.copyto(codes, work, casting="unsafe")

    def restore(self, codes: Codes, numbers: Rows, out: Rows) -> None:
        np.multiply(codes, numbers[:, 1:] / self._levels, out=out)
        out += numbers[:, :1]


class Sketch(BlockCodec):
    Config = SketchConfig
    config: SketchConfig

    def __init__(self, config: SketchConfig) -> None:
        super().__init__(config)
        self.quantiser = _Ranges(config.bits, config.block)
        self.rotate = config.rotate
