"""Small pictures of classes, and a network that reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfl.tasks.base import TaskConfig
from medfl.tasks.images import network_input
from toys.tasks import Rows, ToyTask


class Pictures(Rows):
    """Images [N, 1, edge, edge] with labels [N]."""

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        return {"image": self.features[indices], "label": self.targets[indices]}


class Reader(ToyTask):
    """An MLP on pictures, which it sees as real tasks do: each at mean 0 and variance 1."""

    def __init__(self, classes: int, edge: int, hidden: tuple[int, ...] = (96, 48)) -> None:
        super().__init__(edge**2, classes)
        self.config = TaskConfig(kind="toy", in_channels=1, classes=self.config.classes)
        self.hidden = hidden

    def build(self) -> nn.Module:
        layers, size = list[nn.Module]([nn.Flatten()]), self.size
        for wide in self.hidden:
            layers += [nn.Linear(size, wide), nn.ReLU()]
            size = wide
        return nn.Sequential(*layers, nn.Linear(size, self.classes))

    def to_device(self, batch: Mapping[str, Any], device: torch.device) -> Any:
        label = torch.from_numpy(np.asarray(batch["label"], np.int64))
        return {"image": network_input(np.asarray(batch["image"]), device), "targets": label.to(device)}

    def logits(self, network: nn.Module, batch: Any) -> Tensor:
        found: Tensor = network(batch["image"])
        return found

    def supervised(self, logits: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(logits, batch["targets"])

    def right(self, network: nn.Module, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Any:
        """Which images [n] the network names rightly."""
        batch = self.to_device({"image": images, "label": labels}, torch.device("cpu"))
        with torch.no_grad():
            return self.logits(network, batch).argmax(dim=1).numpy() == labels


def smooth(rng: np.random.Generator, edge: int) -> npt.NDArray[np.float32]:
    """A picture [1, edge, edge] of waves with some noise, at mean 0 and variance 1."""
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, edge)] * 2, indexing="ij")
    slopes = 3 * rng.normal(size=2)
    found = np.sin(slopes[0] * rows + slopes[1] * columns) + 0.2 * rng.normal(size=(edge, edge))
    found = (found - found.mean()) / found.std()
    return found[None].astype(np.float32)
