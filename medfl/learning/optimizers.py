"""The local optimisers. Their state lasts for one round."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medfl.learning.flat_optimizers import FlatOptimizer


class _Optimizer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight_decay: float = Field(0.0, ge=0)


class SgdOptimizer(_Optimizer):
    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False

    def build(self, parameters: "nn.Parameter", learning_rate: float) -> "FlatOptimizer":
        from medfl.learning.flat_optimizers import FlatSgd

        return FlatSgd(parameters, learning_rate, self.momentum, self.nesterov, self.weight_decay)


class AdamOptimizer(_Optimizer):
    """Adam with decoupled weight decay (AdamW)."""

    kind: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)

    def build(self, parameters: "nn.Parameter", learning_rate: float) -> "FlatOptimizer":
        from medfl.learning.flat_optimizers import FlatAdam

        return FlatAdam(parameters, learning_rate, (self.beta1, self.beta2), self.weight_decay)


OptimizerConfig = Annotated[SgdOptimizer | AdamOptimizer, Field(discriminator="kind")]


def clip_gradient(gradient: "Tensor", limit: float) -> None:
    """Scale the flat gradient in place to at most `limit` in Euclidean norm, without leaving the device."""
    scale = limit / (gradient.norm() + 1e-6)
    gradient.mul_(scale.clamp(max=1.0))
