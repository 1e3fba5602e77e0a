"""The quantiser of most codecs: signed whole numbers times one scale a block, or times a scale that never moves."""

import math
from typing import Literal

import numpy as np

from medfl.update.codecs.blocks import Quantiser, reciprocal, stochastic
from medfl.update.codecs.packing import Codes, signed
from medfl.update.codecs.rotation import Rows

Rounding = Literal["nearest", "stochastic"]
# three roundings in float32 must not lift the largest value above the largest code
MARGIN = np.float32(1 + 2**-22)


class Symmetric(Quantiser):
    """v -> round(v / scale) in -levels ... levels, as two's complement.

    scale: None for the smallest that holds the block's largest value (or its norm, `by_norm`); a number is used for all
    blocks and clips what it cannot hold. short: scales travel as bfloat16, rounded up.
    """

    def __init__(
        self,
        levels: int,
        block: int,
        rounding: Rounding,
        *,
        scale: float | None = None,
        by_norm: bool = False,
        short: bool = False,
    ) -> None:
        self.levels, self.block, self.bits = levels, block, (2 * levels).bit_length()
        self.numbers, self.short = (1 if scale is None else 0), short
        self._scale = None if scale is None else np.full((1, 1), scale, np.float32)
        self._by_norm = by_norm
        self._rounding = rounding

    def omega(self, count: int, rotated: bool) -> float:
        if self._scale is not None:
            return math.inf
        if self._by_norm:
            # a value lies between two levels, which is off by half a step at most
            return min(1.02 * count / (4 * self.levels**2), math.sqrt(count) / self.levels)
        # errors of half a scale; the largest of n rotated values has E max^2 <= 2 (ln 2n + 1) / n |v|^2
        largest = min(1.0, 2 * (math.log(2 * count) + 1) / count) if rotated else 1.0
        bound = 1.02 * largest * count / (4 * self.levels**2)
        if self._rounding == "stochastic":
            return min(bound, 1.01 * math.sqrt(count) / self.levels)
        # without rotation the largest value is exact: with E = bound max^2 at most E / (max^2 + E) of |v|^2 is lost
        return bound / (1 - bound) if rotated and bound < 1 else bound

    def measure(self, rows: Rows, work: Rows) -> Rows:
        if self._by_norm:
            # in float64, as squares of small values vanish in float32
            largest = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)[:, None]
        else:
            largest = np.abs(rows, out=work).max(axis=1, keepdims=True)
        scale: Rows = largest * (MARGIN / np.float32(self.levels))
        return _bfloat16_above(scale) if self.short else scale

    def quantise(self, rows: Rows, numbers: Rows, codes: Codes, work: Rows, rng: np.random.Generator) -> None:
        np.multiply(rows, reciprocal(numbers if self._scale is None else self._scale), out=work)
        if self._scale is not None:
            np.clip(work, -self.levels, self.levels, out=work)
        if self._rounding == "stochastic":
            stochastic(work, rng)
        else:
            np.rint(work, out=work)
        np.copyto(codes.view(np.int8), work, casting="unsafe")

    def restore(self, codes: Codes, numbers: Rows, out: Rows) -> None:
        np.multiply(signed(codes, self.bits), numbers if self._scale is None else self._scale, out=out)


def _bfloat16_above(values: Rows) -> Rows:
    """The next bfloat16 that is not below; not finite stays so."""
    bits = values.view(np.uint32)
    above = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(values), above, values)
