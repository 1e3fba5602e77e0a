"""Low-rank factors (Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016,
arXiv 1610.05492, section 2: structured updates).

A matrix of the network changes by H = A B alone. A has `rank` columns and is drawn anew in each round; both ends draw
the same, so that only B is trained and sent. A convolution [out, in, k, k] is the matrix [out, in k k].

    W = W_0 + A B,    A [rows, rank] uniformly among the matrices with A^T A = 1,    sent: B = A^T (W - W_0)
    a step of SGD on B:    W <- W - lr A A^T (g + decay W)

Each gradient is projected on the range of A, after the local rules' corrections; with and without momentum that is SGD
on B, exactly, which it would not be for an optimiser that is not linear (Adam is refused). On average over A, A A^T is
rank / rows times the identity: a step is right in direction on average, and as much shorter. Multiplied by rows / rank
it would be unbiased, with a variance of (rows / rank - 1) of its squared length; here nothing is multiplied, and what a
site trained is what it sends. A differs from site to site, or with `shared` only from round to round: then B's sum is
the sum of the updates, which may be added unseen. Every coordinate of A B is known, so the aggregator is a mean over
all sites (`weighted_mean`), not over owners.

Costs: rank / rows of a matrix's bytes up; tensors with one axis, or with no more than `rank` rows, travel and train
whole; so does the whole model down. No state. A memory keeps what a codec lost until a later A reaches it. The seed is
public to coordinator and sites: A hides nothing. The restriction costs progress in each round, where a codec such as
powersgd finds the best directions of an update after the fact; it is for lines whose way up is slow.
"""

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import RunError, StudyError
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.matrices import Matrix, matrices, move_rest
from medfl.update.parts import Basis, Part, Subspace
from medfl.update.submodels.base import Choice, SubModel
from medfl.update.vector import FloatVector

_UNIT = 2.0**-53


class LowRankConfig(PluginConfig):
    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(4, ge=1, le=1024, description="rows of B; more is closer and larger")
    shared: bool = Field(False, description="the same A at all sites of a round")

    def traits(self) -> frozenset[str]:
        return frozenset({"per-round" if self.shared else "own-factors", "mixes-coordinates"})


@dataclass(frozen=True, eq=False, slots=True)
class Factors(Part):
    """Values that travel: B [rank, columns] of each basis, then everything else, as one row. whole: values of the
    vector."""

    whole: int
    bases: tuple[Basis, ...]

    @property
    def size(self) -> int:
        return self.whole - sum(basis.matrix.size for basis in self.bases) + sum(self._small)

    def take(self, update: Update) -> FloatVector:
        """RunError when the update is of another size."""
        self._check(update.size)
        vector, values = update.dense(), np.empty(self.size, np.float32)
        factors, rest = self._split(values)
        for basis, factor in zip(self.bases, factors, strict=True):
            np.matmul(basis.columns.T, basis.matrix.of(vector), out=factor)
        move_rest([basis.matrix for basis in self.bases], vector, rest, out=True)
        return values

    def put(self, update: Update, size: int) -> Update:
        """Dense: every coordinate is known. What is not finite stays so. RunError when the vector is of another
        size."""
        self._check(size)
        vector = np.empty(size, np.float32)
        factors, rest = self._split(update.dense())
        with np.errstate(over="ignore", invalid="ignore"):
            for basis, factor in zip(self.bases, factors, strict=True):
                np.matmul(basis.columns, factor, out=basis.matrix.of(vector))
        move_rest([basis.matrix for basis in self.bases], vector, rest, out=False)
        return Update(vector, size)

    def subspace(self, size: int) -> Subspace:
        self._check(size)
        return Subspace(None, self.bases)

    @property
    def _small(self) -> list[int]:
        """Values of each B."""
        return [basis.columns.shape[1] * basis.matrix.columns for basis in self.bases]

    def _split(self, values: FloatVector) -> tuple[list[npt.NDArray[np.float32]], FloatVector]:
        """The B of each basis, and everything else, as views."""
        *factors, rest = np.split(values, np.cumsum(self._small))
        return [
            factor.reshape(-1, basis.matrix.columns) for basis, factor in zip(self.bases, factors, strict=True)
        ], rest

    def _check(self, size: int) -> None:
        if size != self.whole:
            raise RunError.at("update", f"has {size} values, the network has {self.whole}")


class LowRank(SubModel):
    Config = LowRankConfig
    config: LowRankConfig
    whole_down = True

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those that factors make smaller; StudyError when there are none."""
        rank = self.config.rank
        found = tuple(matrix for matrix in matrices(self.setup.layout) if matrix.rows > rank)
        if not found:
            raise StudyError.at(
                "update.submodel.rank",
                f"no matrix of this network has more than {rank} rows",
                "lower it, widen the network, or choose another sub-model",
            )
        return found

    def part(self, choice: Choice) -> Factors:
        words = [self.setup.seed, zlib.crc32(b"low_rank"), choice.round]
        if not self.config.shared:
            words.append(zlib.crc32(choice.site.encode()))
        bits = np.random.PCG64(np.random.SeedSequence(words))
        bases = [Basis(matrix, orthonormal(bits, matrix.rows, self.config.rank)) for matrix in self.matrices]
        return Factors(self.setup.layout.size, tuple(bases))


def orthonormal(bits: np.random.PCG64, rows: int, rank: int) -> npt.NDArray[np.float32]:
    """A matrix [rows, rank] drawn uniformly among those with orthonormal columns."""
    # NumPy keeps the stream of a bit generator from version to version, not that of a Generator's methods
    uniform = (bits.random_raw(2 * rows * rank) >> np.uint64(11)).reshape(2, rows, rank) * _UNIT
    normal = np.sqrt(-2 * np.log1p(-uniform[0])) * np.cos(2 * math.pi * uniform[1])
    q, r = np.linalg.qr(normal)
    # a LAPACK may give either sign; in float64, so that both ends round to the same float32
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q.astype(np.float32)
