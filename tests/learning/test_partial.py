"""Training of some coordinates: the others stay where they are, whatever the optimiser does."""

import numpy as np
import pytest
import torch
from torch import nn

from medfl.learning.flat import FlatNetwork
from medfl.learning.partial import PartialTraining
from medfl.update.parts import Coordinates

TRAINS = Coordinates(np.array([0, 3, 4, 7, 11]))
OPTIMIZERS = {
    "sgd": lambda values: torch.optim.SGD([values], 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda values: torch.optim.AdamW([values], 0.1, weight_decay=0.1),
}


class GradientOnly(PartialTraining):
    """The fake: only the gradient is masked."""

    def hold(self) -> None:
        pass


def moved(kind: type[PartialTraining], optimizer: str, trains: Coordinates | None) -> np.ndarray:
    """Which values a training of three steps changed, and that nothing of the others was in the gradient."""
    torch.manual_seed(0)
    network = FlatNetwork(nn.Linear(3, 3), torch.device("cpu"))
    start = network.parameters.detach().clone()
    part, steps = kind(network, start, trains), OPTIMIZERS[optimizer](network.parameters)
    for _ in range(3):
        network.gradient.zero_()
        network.module(torch.randn(5, 3)).square().sum().backward()
        part.direction()
        if trains is not None:
            assert set(np.flatnonzero(network.gradient.numpy())) <= set(trains.indices.tolist())
        steps.step()
        part.hold()
    assert network.module.weight.data_ptr() == network.parameters.data_ptr()
    return np.flatnonzero((network.parameters.detach() != start).numpy())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_what_trains_moves(optimizer: str) -> None:
    assert moved(PartialTraining, optimizer, TRAINS).tolist() == TRAINS.indices.tolist()
    assert moved(GradientOnly, optimizer, TRAINS).tolist() != TRAINS.indices.tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_a_part_everything_moves(optimizer: str) -> None:
    assert moved(PartialTraining, optimizer, None).size == 12
    assert moved(PartialTraining, optimizer, Coordinates(TRAINS.indices[:0])).size == 0
