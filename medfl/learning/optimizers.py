"""The local optimisers: torch's own, on the one flat parameter. Their state lasts for one round.

Fused: one pass over parameters, gradient and moments, where torch's default makes a vector for every operation, which
for Adam takes ten times as long.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class _Optimizer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight_decay: float = Field(0.0, ge=0)


class SgdOptimizer(_Optimizer):
    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False

    def build(self, parameters: "nn.Parameter", learning_rate: float) -> "torch.optim.Optimizer":
        import torch

        return torch.optim.SGD(
            [parameters],
            lr=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamOptimizer(_Optimizer):
    """Adam with decoupled weight decay (AdamW)."""

    kind: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)

    def build(self, parameters: "nn.Parameter", learning_rate: float) -> "torch.optim.Optimizer":
        import torch

        return torch.optim.AdamW(
            [parameters], lr=learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True
        )


OptimizerConfig = Annotated[SgdOptimizer | AdamOptimizer, Field(discriminator="kind")]


def clip_gradient(gradient: "Tensor", limit: float) -> None:
    """Scale the flat gradient in place to at most `limit` in Euclidean norm, without leaving the device."""
    scale = limit / (gradient.norm() + 1e-6)
    gradient.mul_(scale.clamp(max=1.0))
