"""FedCOMGATE, gradient tracking over compressed updates (Haddadpour et al., AISTATS 2021).

    step    y  <-  y - eta (g - delta_k)
    round   delta_k  <-  delta_k + (alpha / (tau eta)) (mean D - D_k)        D_k: site k's own update as it was coded

With x <- x + mean D, every site's delta_k goes to grad f_k(x*), so that all sites stand still at the optimum of the
mean objective, however different their data: FedAvg and FedCOM stop where the sites' drifts balance. delta_k follows
the coded update and not the exact one, or the deltas' sum drifts away from zero. A step alpha above 1 / (1 + omega),
omega being what the codec loses, diverges; null takes just that (1 without loss).

The mean is read off two global models in a row, so nothing more travels: the server step must be plain, the model come
down without loss and every site take part. A site that misses a round leaves its delta as it was. All sites must take
the same number of steps tau (`local.steps`), with plain SGD. State at a site: two vectors.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig
from medfl.update.base import Update

_DELTA, _EXPECTED, _ROUND, _SCALE = "fedcomgate.delta", "fedcomgate.expected", "fedcomgate.round", "fedcomgate.scale"


class FedComGateConfig(PluginConfig):
    kind: Literal["fedcomgate"] = "fedcomgate"
    alpha: float | None = Field(None, gt=0, le=1, description="damping of the tracker; null: 1 / (1 + omega)")

    def traits(self) -> frozenset[str]:
        return frozenset({"sync-only", "reads-mean", "common-steps", "plain-sgd", "tracks"})


class FedComGate(LocalRule):
    Config = FedComGateConfig
    config: FedComGateConfig

    def begin(self, context: LocalContext) -> None:
        import torch

        anchor = context.anchor
        state, of = context.state, context.state.pop(_ROUND, np.zeros(1))
        expected = state.pop(_EXPECTED, None)
        delta = torch.from_numpy(state[_DELTA].copy()).to(anchor) if _DELTA in state else torch.zeros_like(anchor)
        if expected is not None and context.counted == int(of[0]) == context.round - 1:
            # what the model would be had all sites sent what this one did
            moved = anchor - torch.from_numpy(expected.copy()).to(anchor)
            delta.add_(moved, alpha=float(state[_SCALE][0]))
            state[_DELTA] = delta.to("cpu", copy=True).numpy()
        context.scratch[_DELTA] = delta

    def direction(self, context: LocalContext) -> None:
        context.network.gradient.sub_(context.scratch[_DELTA])

    def sent(self, context: LocalContext, update: Callable[[], Update]) -> None:
        rate = context.values["local.learning_rate"]
        if not rate:
            return  # a schedule that has come down to zero: nobody moved, and there is nothing to learn from that
        alpha = 1 / (1 + context.omega) if self.config.alpha is None else self.config.alpha
        own: Any = update().dense()
        state = context.state
        state[_EXPECTED] = context.anchor.detach().cpu().numpy() + own
        state[_ROUND] = np.array([float(context.round)])
        state[_SCALE] = np.array([alpha / (context.steps * rate)])
