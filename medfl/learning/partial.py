"""Local training in which only a part of the network moves."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medfl.learning.filters import task_units
from medfl.learning.flat import FlatNetwork, initial_vector, seeded
from medfl.update.parts import Basis, Part
from medfl.update.submodels.base import Setup
from medfl.update.vector import Layout

if TYPE_CHECKING:
    from medfl.tasks.base import Task


def setup_of(task: "Task", seed: int, layout: Layout) -> Setup:
    """What a sub-model is told of a run, the same at coordinator and sites. Networks are made anew when it asks."""
    return Setup(
        layout, seed, lambda: task_units(task, seeded(task.build, seed)), lambda: initial_vector(task, seed)[0]
    )


class PartialTraining:
    """Keeps a network within `trains` of where `start` [size] has it; None holds nothing.

    Projected gradients alone would not do: weight decay and an optimiser's momentum move values as well.
    """

    def __init__(self, network: FlatNetwork, start: Tensor, trains: Part | None) -> None:
        self._network, self._start = network, start
        self._held: Tensor | None = None
        self._bases: list[_Moving] = []
        if trains is not None:
            subspace = trains.subspace(start.numel())
            if subspace.held is not None:
                self._held = torch.from_numpy(subspace.held).to(start.device)
            self._bases = [_Moving(basis, network, start) for basis in subspace.bases]

    def direction(self) -> None:
        """After the rules' corrections and before gradient clipping: the gradient's projection on what trains."""
        if self._held is not None:
            self._network.gradient.masked_fill_(self._held, 0)
        for basis in self._bases:
            basis.direction()

    def hold(self) -> None:
        """After the optimiser's step."""
        with torch.no_grad():
            if self._held is not None:
                torch.where(self._held, self._start, self._network.parameters, out=self._network.parameters.data)
            for basis in self._bases:
                basis.hold()


class _Moving:
    """A matrix of the network that moves in the directions of a basis: W = W_0 + A B."""

    def __init__(self, basis: Basis, network: FlatNetwork, start: Tensor) -> None:
        matrix = basis.matrix
        place, shape = slice(matrix.offset, matrix.end), (matrix.rows, matrix.columns)
        self._columns = torch.from_numpy(basis.columns).to(start.device)
        self._gradient = network.gradient[place].view(shape)
        self._values = network.parameters.data[place].view(shape)
        self._start = start[place].view(shape)

    def direction(self) -> None:
        torch.mm(self._columns, self._columns.T @ self._gradient, out=self._gradient)

    def hold(self) -> None:
        moved = self._columns.T @ (self._values - self._start)
        torch.addmm(self._start, self._columns, moved, out=self._values)
