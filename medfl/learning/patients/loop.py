"""The reference engine: one patient after another. Right by construction for every network and every loss."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from medfl.errors import RunError
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients.base import PatientBatch, PatientEngine


class Loop(PatientEngine):
    """One forward and one backward pass a patient, straight into the network's flat gradient."""

    name = "loop"

    def gradients(self, network: FlatNetwork, batches: Iterable[PatientBatch]) -> Iterator[Tensor]:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for batch in batches:
                yield self.gradient(network, batch)[None]

    def gradient(self, network: FlatNetwork, batch: PatientBatch) -> Tensor:
        """The patient's gradient [size], a view of the network's; NaN when the task refuses to give a loss.
        Moves torch's generator."""
        gradient = network.gradient
        gradient.zero_()
        torch.manual_seed(batch.seed)
        arrays = self.task.to_device(batch.arrays, self.device)
        try:
            loss = self.task.loss(network.module, arrays)
        except RunError:
            # how a task says that the network's output is not finite
            return gradient.fill_(torch.nan)
        loss.backward()  # type: ignore[no-untyped-call]
        return gradient
