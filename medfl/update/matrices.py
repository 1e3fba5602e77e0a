"""Tensors of the flat vector seen as matrices: for what acts on rows and columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfl.update.vector import FloatVector, Layout


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor's values [rows * columns], which begin at `offset` of the vector."""

    rows: int
    columns: int
    offset: int

    @property
    def size(self) -> int:
        return self.rows * self.columns

    @property
    def end(self) -> int:
        return self.offset + self.size

    def of(self, vector: FloatVector) -> npt.NDArray[np.float32]:
        """The matrix [rows, columns], as a view of the vector."""
        return vector[self.offset : self.end].reshape(self.rows, self.columns)


def matrices(layout: Layout) -> Iterator[Matrix]:
    """Every tensor with two axes or more, in the order of the layout. The first axis makes the rows: a convolution
    [out, in, k, k] is the matrix [out, in k k]."""
    for slot in layout.slots:
        if len(slot.shape) > 1 and slot.size:
            yield Matrix(slot.shape[0], slot.size // slot.shape[0], slot.offset)


def move_rest(chosen: Sequence[Matrix], values: FloatVector, rest: FloatVector, out: bool) -> None:
    """Copy what lies between the matrices, in order, from `values` into `rest`, or back."""
    place = start = 0
    for end, following in [(matrix.offset, matrix.end) for matrix in chosen] + [(values.size, 0)]:
        stop = place + end - start
        if out:
            rest[place:stop] = values[start:end]
        else:
            values[start:end] = rest[place:stop]
        place, start = stop, following
