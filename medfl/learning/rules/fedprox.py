"""FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020).

The local objective is f(y) + mu/2 ||y - x||^2 with x the global model as received: its gradient is g + mu (y - x). The
norm is squared; without the square it would not be the proximal point.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import field_validator

from medfl.hyperparameters.base import HYPERPARAMETERS, HyperparameterConfig, at_least
from medfl.hyperparameters.constant import ConstantConfig
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig

if TYPE_CHECKING:
    from torch import Tensor


class FedProxConfig(PluginConfig):
    kind: Literal["fedprox"] = "fedprox"
    mu: Annotated[HyperparameterConfig, HYPERPARAMETERS] = ConstantConfig(value=0.01)

    @field_validator("mu")
    @classmethod
    def _not_negative(cls, mu: HyperparameterConfig) -> HyperparameterConfig:
        return at_least(mu, 0)


class FedProx(LocalRule):
    Config = FedProxConfig

    def __init__(self, config: FedProxConfig) -> None:
        super().__init__(config)
        # memory for a whole vector: to ask the system for it in every step takes longer than to fill it
        self._drift: Tensor | None = None

    def direction(self, context: LocalContext) -> None:
        import torch

        mu = context.values["fedprox.mu"]
        if mu:
            here = context.network.parameters.detach()
            if self._drift is None or self._drift.shape != here.shape:
                self._drift = torch.empty_like(here)
            torch.sub(here, context.anchor, out=self._drift)
            context.network.gradient.add_(self._drift, alpha=mu)
