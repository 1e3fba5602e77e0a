"""Local momentum that lives on between rounds (Huo et al. 2020, the local variant): m = beta m + g; the step follows m.

The buffer stays at the site: one vector of state, nothing more travels. For momentum that starts at zero in every round
use the optimiser's own (`local.optimizer: {kind: sgd, momentum: 0.9}`).
"""

from typing import Literal

from pydantic import Field

from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig

_BUFFER = "local_momentum.buffer"


class LocalMomentumConfig(PluginConfig):
    kind: Literal["local_momentum"] = "local_momentum"
    beta: float = Field(0.9, ge=0, lt=1)

    def traits(self) -> frozenset[str]:
        return frozenset({"client-momentum"})


class LocalMomentum(LocalRule):
    Config = LocalMomentumConfig
    config: LocalMomentumConfig

    def begin(self, context: LocalContext) -> None:
        import torch

        gradient = context.network.gradient
        kept = context.state.get(_BUFFER)
        buffer = torch.zeros_like(gradient) if kept is None else torch.from_numpy(kept.copy()).to(gradient)
        context.scratch[_BUFFER] = buffer

    def direction(self, context: LocalContext) -> None:
        gradient = context.network.gradient
        gradient.copy_(context.scratch[_BUFFER].mul_(self.config.beta).add_(gradient))

    def finish(self, context: LocalContext) -> None:
        context.state[_BUFFER] = context.scratch[_BUFFER].to("cpu", copy=True).numpy()
