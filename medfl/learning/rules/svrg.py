"""Variance reduction of local steps (SVRG: Johnson & Zhang 2013), as FedCOMGATE-VR uses it.

    g  <-  g(y; B) - g(a; B) + grad f_k(a)        a: the global model as received

The corrected gradient is unbiased, and exact at the start of the round. One pass over all of a site's samples a round
and twice the work a step; nothing more travels. On its own it does not remove the drift between sites: list it before
`fedcomgate` (which is then FedCOMGATE-VR).
"""

from typing import Literal

from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig

_FULL = "svrg.full"


class SvrgConfig(PluginConfig):
    kind: Literal["svrg"] = "svrg"

    def traits(self) -> frozenset[str]:
        return frozenset({"extra-gradients"})


class Svrg(LocalRule):
    Config = SvrgConfig

    def begin(self, context: LocalContext) -> None:
        context.scratch[_FULL] = context.full_gradient()

    def direction(self, context: LocalContext) -> None:
        there = context.gradient_at(context.anchor)
        context.network.gradient.sub_(there).add_(context.scratch[_FULL])
