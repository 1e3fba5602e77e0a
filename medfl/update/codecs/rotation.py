"""Random rotation: v -> H D v / sqrt(n) over each block of n values, D random signs, H the Walsh-Hadamard matrix.

It spreads a block's few large values over all of them, so that the range of a block is that of n normal numbers,
about sqrt(2 ln n) standard deviations to each side, whatever its tails were (Suresh et al. 2017, arXiv 1611.00429;
Konecny et al. 2016, arXiv 1610.05492). The inverse is D H / sqrt(n). The signs come from a seed that travels.
"""

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.vector import FloatVector

Rows = npt.NDArray[np.float32]
SEEDS = 1 << 63


class Rotation:
    """Turns a vector piece by piece, in order: the signs of a piece follow those of the one before.

    block: a power of two, at least 64. limit: the largest number of values of a piece, padded to whole blocks.
    """

    def __init__(self, seed: int, block: int, limit: int) -> None:
        self._block = block
        self._bits = np.random.PCG64(seed)
        half = (block.bit_length() - 1) // 2
        self._left, self._right = _hadamard(1 << half), _hadamard(block >> half)
        self._one, self._other = np.empty(limit, np.float32), np.empty(limit, np.float32)

    def forward(self, values: FloatVector) -> Rows:
        """The rotated blocks [k, block] of a piece, which is padded with zeros; valid until the next call."""
        count = -(-values.size // self._block) * self._block
        rows = self._one[:count]
        rows[values.size :] = 0
        np.multiply(values, self._signs(count)[: values.size], out=rows[: values.size])
        return self._transform(rows)

    def inverse(self, rows: Rows) -> FloatVector:
        """The piece [k * block] of rotated blocks; valid until the next call."""
        values: FloatVector = self._transform(rows.reshape(-1)).reshape(-1)
        values *= self._signs(values.size)
        return values

    def _signs(self, count: int) -> FloatVector:
        bits = np.unpackbits(self._bits.random_raw(count // 64).astype("<u8", copy=False).view(np.uint8))
        signs = np.multiply(bits, np.float32(-2), out=self._other[:count])
        signs += 1
        return signs

    def _transform(self, values: FloatVector) -> Rows:
        # two small matrix products cost a quarter of log2(n) butterflies; each is too small for BLAS to start threads
        shape = (-1, len(self._left), len(self._right))
        middle = self._other[: values.size].reshape(shape)
        np.matmul(values.reshape(shape), self._right, out=middle)
        result = self._one[: values.size]
        np.matmul(self._left, middle, out=result.reshape(shape))
        return result.reshape(-1, self._block)


def seed_of(value: object) -> int:
    """A seed that travelled; RunError when it is none."""
    if type(value) is int and 0 <= value < SEEDS:
        return value
    raise RunError.at("update", "has no seed for its rotation", "the sender must use the study's codec")


def refuse_block(block: int) -> None:
    """ValueError when blocks of this size cannot be rotated."""
    if block < 64 or block & (block - 1):
        raise ValueError(f"block {block} cannot be rotated: choose a power of two, 64 or more")


def _hadamard(size: int) -> Rows:
    """The orthonormal Walsh-Hadamard matrix [size, size], in the order of Sylvester."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: Rows = (matrix / np.sqrt(size)).astype(np.float32)
    return orthonormal
