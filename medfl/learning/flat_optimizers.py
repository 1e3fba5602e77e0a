"""torch's optimisers on one flat parameter, by their functional forms: its classes load the compiler with them, more
than a second and 75 MB for each process that trains.

Fused: one pass over parameters, gradient and moments, where torch's default makes a vector for every operation, which
for Adam takes ten times as long.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class FlatOptimizer(ABC):
    """Steps of `parameters` [size] against their gradient. state: the moments by torch's names, none before the first
    step; in the form of torch's optimisers where it is kept and loaded again."""

    def __init__(self, parameters: nn.Parameter, learning_rate: float, weight_decay: float) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.state: dict[str, Tensor] = {}

    def step(self) -> None:
        """One step, in place. Nothing without a gradient."""
        if self.parameters.grad is not None:
            with torch.no_grad():
                self._step(self.parameters.grad)

    @abstractmethod
    def _step(self, gradient: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"state": {0: self.state}}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """The moments are not copied where they lie on the parameters' device."""
        moments = kept["state"].get(0, {})
        self.state = {name: value.to(self.parameters.device) for name, value in moments.items()}


class FlatSgd(FlatOptimizer):
    def __init__(
        self,
        parameters: nn.Parameter,
        learning_rate: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay)
        self.momentum = momentum
        self.nesterov = nesterov

    def _step(self, gradient: Tensor) -> None:
        buffers = [self.state.get("momentum_buffer")]
        sgd(
            [self.parameters],
            [gradient],
            buffers,
            fused=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=0,
            nesterov=self.nesterov,
            maximize=False,
        )
        if buffers[0] is not None:
            self.state["momentum_buffer"] = buffers[0]


class FlatAdam(FlatOptimizer):
    """decoupled: weight decay beside the step (AdamW) and not as a part of the gradient."""

    def __init__(
        self,
        parameters: nn.Parameter,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        decoupled: bool = True,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay)
        self.betas = betas
        self.decoupled = decoupled

    def _step(self, gradient: Tensor) -> None:
        if not self.state:
            self.state = {
                "step": torch.zeros((), dtype=torch.float32, device=gradient.device),
                "exp_avg": torch.zeros_like(self.parameters),
                "exp_avg_sq": torch.zeros_like(self.parameters),
            }
        adam(
            [self.parameters],
            [gradient],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state["step"]],
            fused=True,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
