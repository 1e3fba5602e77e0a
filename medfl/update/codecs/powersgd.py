"""PowerSGD (Vogels, Karimireddy & Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression", NeurIPS 2019): each
matrix M travels as two thin factors, found by one step of power iteration that starts where the last round's ended.

    P = orth(M Q);   Q = M^T P;   sent: P and Q, 4 r (m + n) bytes in place of 4 m n;   decoded: P Q^T

A convolution [out, in, k, k] is the matrix [out, in k k]. Vectors, and matrices that factors would not make smaller,
travel as float32. Each site keeps its own Q ("codec.q", r values a column of each matrix) as the start of its next
round: after a few rounds P Q^T is nearly the best approximation of rank r, where one step from a random Q is about
twice as far off. The published form averages P and Q over the workers in two exchanges; here each site sends its own in
one, so the aggregator sees each site's approximation.

Biased: what has rank above r is lost in every round unless a memory keeps it (`memory: error_feedback`). Default r = 4:
1.5 % of a ResNet-50's bytes. Cost: 2 r multiply-adds a value at the site (3 r with a memory), r at the coordinator.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import RunError
from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import RememberingCodec, dense_values
from medfl.update.matrices import Matrix, matrices, move_rest
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import as_bytes

_Q = "codec.q"
_SMALLEST = float(np.finfo(np.float32).tiny)


class PowerSgdConfig(PluginConfig):
    kind: Literal["powersgd"] = "powersgd"
    rank: int = Field(4, ge=1, le=1024, description="columns of the factors; more is closer and larger")

    def traits(self) -> frozenset[str]:
        return frozenset({"lossy", "support-dense", "by-tensor"})


@dataclass(frozen=True, slots=True)
class _Factored(Matrix):
    """A tensor that travels as factors: P [rows, rank] and then Q [columns, rank] begin at `sent` of the message, and
    the warm Q at `warm` of the state."""

    sent: int
    warm: int

    def factors(self, message: FloatVector, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        middle, end = self.sent + self.rows * rank, self.sent + (self.rows + self.columns) * rank
        return message[self.sent : middle].reshape(-1, rank), message[middle:end].reshape(-1, rank)

    def start(self, state: FloatVector, rank: int) -> npt.NDArray[np.float32]:
        return state[self.warm : self.warm + self.columns * rank].reshape(-1, rank)


class PowerSgd(RememberingCodec):
    """A message is all factors, then everything else, as one row of float32. Until `bind` there are no matrices."""

    Config = PowerSgdConfig
    config: PowerSgdConfig

    def __init__(self, config: PowerSgdConfig) -> None:
        super().__init__(config)
        self._layout: Layout | None = None
        self._matrices: tuple[_Factored, ...] = ()
        self._sent = self._warm = self._covered = 0

    def bind(self, layout: Layout) -> None:
        rank, found = self.config.rank, []
        self._layout, self._sent, self._warm, self._covered = layout, 0, 0, 0
        for matrix in matrices(layout):
            rows, columns = matrix.rows, matrix.columns
            if rank * (rows + columns) >= rows * columns:
                continue
            found.append(_Factored(rows, columns, matrix.offset, self._sent, self._warm))
            self._sent += rank * (rows + columns)
            self._warm += rank * columns
            self._covered += matrix.size
        self._matrices = tuple(found)

    def omega(self, size: int) -> float:
        """From a random start at least r / min(m, n) of a matrix's energy is kept, whatever its spectrum."""
        worst = max((min(matrix.rows, matrix.columns) for matrix in self._matrices), default=self.config.rank)
        return worst / self.config.rank - 1

    def encode_with(
        self, update: Update, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]
    ) -> Payload:
        """RunError when the update or the remembered Q is not of the bound layout."""
        rank, values = self.config.rank, dense_values(update)
        message = np.empty(self._length(update.size), np.float32)
        warm = self._start(rng, state)
        for matrix in self._matrices:
            p, q = matrix.factors(message, rank)
            _factor(matrix.of(values), matrix.start(warm, rank), p, q)
        move_rest(self._matrices, values, message[self._sent :], out=True)
        if self._matrices:
            state[_Q] = warm
        return Payload("powersgd", update.size, (as_bytes(message),))

    def decode(self, payload: Payload, size: int) -> Update:
        length = self._length(size)
        self.check(payload, size, (4 * length,))
        message = np.frombuffer(payload.buffers[0], np.float32)
        values = np.empty(size, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for matrix in self._matrices:
                p, q = matrix.factors(message, self.config.rank)
                np.matmul(p, q.T, out=matrix.of(values))
        move_rest(self._matrices, values, message[self._sent :], out=False)
        return Update(values, size)

    def _length(self, size: int) -> int:
        """Values of a message; RunError when the vector is not the bound layout's."""
        if self._layout is not None and size != self._layout.size:
            raise RunError.at("update", f"has {size} values, the network has {self._layout.size}")
        return size - self._covered + self._sent

    def _start(self, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]) -> FloatVector:
        """Where power iteration starts: after the last round's end, or at random directions."""
        known = state.get(_Q)
        if known is None:
            return rng.standard_normal(self._warm, np.float32)
        if known.shape != (self._warm,) or known.dtype != np.float32:
            raise RunError.at(_Q, f"has shape {known.shape}, the network needs {self._warm} values", "start a new run")
        return known.copy()


def _factor(
    matrix: npt.NDArray[np.float32],
    warm: npt.NDArray[np.float32],
    p: npt.NDArray[np.float32],
    q: npt.NDArray[np.float32],
) -> None:
    """Fill p [m, r] and q [n, r]; move `warm` [n, r]. A matrix that is not finite gives factors of NaN, and is not
    remembered."""
    with np.errstate(over="ignore", invalid="ignore"):
        # the scale does not change the directions, and keeps products within float32
        largest = max(float(matrix.max()), -float(matrix.min()))
        image = matrix @ (warm / np.float32(max(largest, _SMALLEST)))
    if not np.isfinite(image).all():
        p.fill(np.nan)
        q.fill(np.nan)
        return
    p[:] = np.linalg.qr(image)[0]
    np.matmul(matrix.T, p, out=q)
    length = np.sqrt(np.square(q, dtype=np.float64).sum(axis=0))
    # a direction in which there is nothing keeps its start: as zero it would stay empty for ever
    there = (length > 0) & np.isfinite(length)
    warm[:, there] = q[:, there] / length[there]
