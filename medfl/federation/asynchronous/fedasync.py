"""FedAsync (C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", OPT 2020, arXiv 1903.03934).

x <- (1 - a) x + a y with a = alpha s(t - v), for every arriving y = x_v + change that started from version v. The
paper pairs it with the proximal term of the rule `fedprox` (rho; 0.005).
"""

from typing import Literal

from pydantic import Field

from medfl.federation.asynchronous.base import Asynchronous, AsynchronousConfig


class FedAsyncConfig(AsynchronousConfig):
    kind: Literal["fedasync"] = "fedasync"
    alpha: float = Field(0.6, gt=0, le=1, description="mixing weight of an update that is not stale")

    def traits(self) -> frozenset[str]:
        return super().traits() | {"mixes"}


class FedAsync(Asynchronous):
    Config = FedAsyncConfig
    config: FedAsyncConfig
    mixes = True

    def share(self, staleness: int) -> float:
        return self.config.alpha * self.config.staleness.of(staleness)
