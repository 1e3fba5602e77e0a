"""The one integer codec of sums: clip a vector, put it on a grid, add integers, come back.

Floating-point sums depend on their order and leak through rounding (Mironov 2012); integers do neither, and clear,
masked and encrypted sums of them are the same bits. The clip is part of the codec, so that what is bounded is what
travels: the Euclidean norm of the integers, which is exact, never exceeds `bound`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError, StudyError
from medfl.update.vector import FloatVector

CLIP, BOUND, CAP, BIT = "sum.clip", "sum.bound", "sum.cap", "sum.bit"
"""A round's grid, weights and clip bit (grid units between its two values, 0 for none), by their names in an order's
values."""

IntValues = npt.NDArray[np.int32]

SUM_LIMIT = 8_000_000
"""Largest absolute coordinate of any sum: below half of the 24-bit plain modulus of the HE channel."""
NOISE_TAIL = 12.0
"""Standard deviations of noise that a sum leaves room for; beyond them lies less than 1e-32."""
_COARSEST = 1 << 8
_COHERENT = 64
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Grid:
    """clip: the norm bound C. bound: C in grid units. step: the value of one unit, C / bound."""

    clip: float
    bound: int

    @classmethod
    def fit(cls, clip: float, sites: int, noise_multiplier: float = 0.0, limit: int = SUM_LIMIT) -> "Grid":
        """The finest grid (a power of two) on which `sites` vectors of norm `clip` and Gaussian noise of
        noise_multiplier * clip in all fit a sum within `limit`; StudyError when it would be too coarse."""
        room = limit / (sites + NOISE_TAIL * noise_multiplier)
        bound = 1 << max(0, int(np.floor(np.log2(room)))) if room >= 1 else 0
        if bound < _COARSEST:
            raise StudyError.at(
                "privacy",
                f"{sites} sites with noise multiplier {noise_multiplier:g} leave {bound} grid units a clip norm, "
                f"{_COARSEST} are needed",
                "use fewer sites or less noise",
            )
        return cls(clip, bound)

    @classmethod
    def of(cls, values: Mapping[str, float]) -> "Grid":
        """The grid that an order's values describe."""
        return cls(values[CLIP], int(values[BOUND]))

    @classmethod
    def for_gradients(cls, clip: float, noise_multiplier: float, limit: int = SUM_LIMIT) -> "Grid":
        """The grid for sums over patients, which have no norm bound of their own: room for coherent gradients of
        `_COHERENT` patients in every coordinate; what is beyond is held at the limit of `share`."""
        return cls.fit(clip, _COHERENT, noise_multiplier, limit)

    def share(self, sites: int, noise_multiplier: float, limit: int = SUM_LIMIT) -> int:
        """The largest absolute coordinate that each of `sites` may send besides the noise."""
        return int((limit - NOISE_TAIL * noise_multiplier * self.bound) / sites)

    @property
    def step(self) -> float:
        return self.clip / self.bound

    def encode(self, vector: FloatVector, weight: float = 1.0) -> IntValues:
        """The vector [size] clipped to `clip`, times `weight` (at most 1), rounded to the grid; RunError when a value
        is not finite."""
        norm = _norm(vector)
        if not np.isfinite(norm):
            raise RunError.at("update", "holds values that are not finite", "nothing of it was sent")
        factor = weight * min(1.0, self.clip / norm) / self.step if norm else 0.0
        values = _round(vector, factor)
        if not self.holds(values):
            # rounding moved it over the bound: every coordinate moves by at most half a unit
            room = self.bound - 0.5 * np.sqrt(vector.size)
            if room <= 0:
                raise RunError.at(
                    "update",
                    f"{vector.size} values do not fit a grid of {self.bound} units a clip norm",
                    "train fewer parameters, or use fewer sites or less noise",
                )
            values = _round(vector, min(factor, room / norm))
        return values

    def quantise(self, vector: FloatVector, limit: int) -> IntValues:
        """The vector [size] rounded to the grid without a clip, each coordinate held within `limit` (which moves two
        vectors no further apart); RunError when a value is not finite."""
        if not np.isfinite(_norm(vector)):
            raise RunError.at("update", "holds values that are not finite", "nothing of it was sent")
        return _round(vector, 1 / self.step, limit)

    def decode(self, total: npt.NDArray[np.signedinteger[Any]], denominator: float = 1.0) -> FloatVector:
        """The integers [size] as values, divided by `denominator`."""
        values: FloatVector = np.multiply(total, self.step / denominator, dtype=np.float64).astype(np.float32)
        return values

    def holds(self, values: IntValues) -> bool:
        """Whether the integer norm is at most `bound`, computed without rounding."""
        total = 0
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK].astype(np.int64)
            if block.size and max(int(block.max()), -int(block.min())) > self.bound:
                return False
            total += int(np.dot(block, block))
        return total <= self.bound**2


def weight_of(cases: int, cap: float) -> float:
    """What an update of so many cases is multiplied by: min(cases / cap, 1), or 1 without a cap."""
    return min(1.0, cases / cap) if cap else 1.0


def _norm(vector: FloatVector) -> float:
    squared = 0.0
    for start in range(0, vector.size, _BLOCK):
        block = vector[start : start + _BLOCK].astype(np.float64)
        squared += float(np.dot(block, block))
    return float(np.sqrt(squared))


def _round(vector: FloatVector, factor: float, limit: int = 2**31 - 1) -> IntValues:
    values = np.empty(vector.size, np.int32)
    for start in range(0, vector.size, _BLOCK):
        block = vector[start : start + _BLOCK].astype(np.float64)
        block *= factor
        np.rint(block, out=block)
        np.clip(block, -limit, limit, out=block)
        values[start : start + _BLOCK] = block
    return values
