"""FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020).

The local objective is f(y) + mu/2 ||y - x||^2 with x the global model as received: its gradient is g + mu (y - x). The
norm is squared; without the square it would not be the proximal point.
"""

from typing import Annotated, Literal

from pydantic import field_validator

from medfl.hyperparameters.base import HYPERPARAMETERS, HyperparameterConfig, at_least
from medfl.hyperparameters.constant import ConstantConfig
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig


class FedProxConfig(PluginConfig):
    kind: Literal["fedprox"] = "fedprox"
    mu: Annotated[HyperparameterConfig, HYPERPARAMETERS] = ConstantConfig(value=0.01)

    @field_validator("mu")
    @classmethod
    def _not_negative(cls, mu: HyperparameterConfig) -> HyperparameterConfig:
        return at_least(mu, 0)


class FedProx(LocalRule):
    Config = FedProxConfig

    def direction(self, context: LocalContext) -> None:
        mu = context.values["fedprox.mu"]
        if mu:
            drift = context.network.parameters.detach() - context.anchor
            context.network.gradient.add_(drift, alpha=mu)
