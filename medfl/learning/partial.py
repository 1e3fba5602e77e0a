"""Local training in which only some coordinates of the network move."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medfl.learning.filters import task_units
from medfl.learning.flat import FlatNetwork, initial_vector, seeded
from medfl.update.submodels.base import Coordinates, Setup
from medfl.update.vector import Layout

if TYPE_CHECKING:
    from medfl.tasks.base import Task


def setup_of(task: "Task", seed: int, layout: Layout) -> Setup:
    """What a sub-model is told of a run, the same at coordinator and sites. Networks are made anew when it asks."""
    return Setup(
        layout, seed, lambda: task_units(task, seeded(task.build, seed)), lambda: initial_vector(task, seed)[0]
    )


class PartialTraining:
    """Keeps all but the coordinates `trains` [k] of a network where `start` [size] has them; None holds nothing.

    Zero gradients alone would not do: weight decay and an optimiser's momentum move values as well.
    """

    def __init__(self, network: FlatNetwork, start: Tensor, trains: Coordinates | None) -> None:
        self._network, self._start = network, start
        self._held: Tensor | None = None
        if trains is not None:
            self._held = torch.ones(start.numel(), dtype=torch.bool, device=start.device)
            self._held[torch.from_numpy(trains).to(start.device)] = False

    def direction(self) -> None:
        """After the rules' corrections and before gradient clipping: the gradient of what trains, zero elsewhere."""
        if self._held is not None:
            self._network.gradient.masked_fill_(self._held, 0)

    def hold(self) -> None:
        """After the optimiser's step."""
        if self._held is not None:
            with torch.no_grad():
                torch.where(self._held, self._start, self._network.parameters, out=self._network.parameters.data)
