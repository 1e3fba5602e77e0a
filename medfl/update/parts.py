"""Parts of the vector: the fewer values that stand for a change of it, and the subspace that a training moves in.

A part is a linear map from its values to vectors: `put` applies it, and `take` is its left inverse, so that
take(put(v)) = v, and put(take(u)) is the orthogonal projection of u. For `Coordinates` that leaves some values as they
are and makes the others zero. In place of a part, `None` is the whole vector.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.base import Update
from medfl.update.matrices import Matrix
from medfl.update.vector import FloatVector


@dataclass(frozen=True, slots=True)
class Basis:
    """Where a matrix of the network may move: by `columns` [rows, rank], which are orthonormal, times anything."""

    matrix: Matrix
    columns: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Subspace:
    """Where a vector may move. held: whether each value [size] stays as it is; None: none does. bases: matrices, apart
    from each other and from what is held, that move in fewer directions than they have rows."""

    held: npt.NDArray[np.bool_] | None = None
    bases: tuple[Basis, ...] = ()


class Part(ABC):
    @property
    @abstractmethod
    def size(self) -> int:
        """How many values travel."""

    @abstractmethod
    def take(self, update: Update) -> FloatVector:
        """The values [k] that stand for an update of the vector, or for its projection on the part."""

    @abstractmethod
    def put(self, update: Update, size: int) -> Update:
        """The update of a vector of `size` values that the values of `update` [k], dense or sparse, stand for."""

    @abstractmethod
    def subspace(self, size: int) -> Subspace:
        """Everything that `put` can give."""


@dataclass(frozen=True, eq=False, slots=True)
class Coordinates(Part):
    """Some values of the vector, as they are. indices [k]: their positions, strictly increasing."""

    indices: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return self.indices.size

    def take(self, update: Update) -> FloatVector:
        return update.values if update.indices is self.indices else update.dense()[self.indices]

    def put(self, update: Update, size: int) -> Update:
        """Sparse: other parts may have the other coordinates."""
        return Update(update.values, size, self.indices if update.indices is None else self.indices[update.indices])

    def subspace(self, size: int) -> Subspace:
        held = np.ones(size, np.bool_)
        held[self.indices] = False
        return Subspace(held)


def taken(vector: FloatVector, part: Part | None) -> FloatVector:
    """The values [k] that travel of a vector [size]; the vector itself when all of it does."""
    return vector if part is None else part.take(Update(vector, vector.size))


def embedded(update: Update, part: Part | None, size: int) -> Update:
    """The update of a vector of `size` values whose part is `update` [k], itself dense or sparse; RunError when it is
    of another length."""
    expected = size if part is None else part.size
    if update.size != expected:
        raise RunError.at("update", f"is of {update.size} values, the site's part of the vector has {expected}")
    return update if part is None else part.put(update, size)
