"""The parts of a study around a toy task, put together by hand."""

from typing import Any

import numpy as np
import torch

from medfl.data.base import SiteData
from medfl.data.plans.base import PLANS
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.outcome import RoundOutcome
from medfl.federation.parts import FederationParts, Validate
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.round import Federation
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.hyperparameters.constant import ConstantConfig
from medfl.learning.executor import LocalParts, SiteExecutor
from medfl.learning.messages import OLD_MODELS, SINCE
from medfl.learning.optimizers import SgdOptimizer
from medfl.learning.rules.base import RULES
from medfl.plugins import PluginConfig, PluginPoint
from medfl.tasks.base import Task
from medfl.update.codecs.base import CODECS
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES, SiteState
from medfl.update.pipeline import UploadPipeline
from medfl.update.submodels.base import SUBMODELS

CPU = torch.device("cpu")


def configured(point: PluginPoint, kind: str, **settings: Any) -> PluginConfig:
    return point.load(kind).Config.model_validate({"kind": kind, **settings})


def plugin(point: PluginPoint, kind: str, **settings: Any) -> Any:
    return point.build(configured(point, kind, **settings))


def pipeline(codec: str = "fp32", memory: str = "none", gate: str = "always") -> UploadPipeline:
    return UploadPipeline(plugin(GATES, gate), plugin(MEMORIES, memory), plugin(CODECS, codec))


def local_parts(task: Task, **changes: Any) -> LocalParts:
    """Plain SGD on whole batches, without clipping, unless changed."""
    settings: dict[str, Any] = {
        "plan": plugin(PLANS, "shards"),
        "rules": [plugin(RULES, "sgd")],
        "optimizer": SgdOptimizer(),
        "submodel": plugin(SUBMODELS, "full"),
        "pipeline": pipeline(),
        "batch_size": 10**6,
        "gradient_clip": None,
        "max_steps": None,
        "seed": 0,
    }
    return LocalParts(task=task, **(settings | changes))


def values(rate: float, epochs: float = 1, **others: float) -> dict[str, float]:
    named = {name.replace("__", "."): value for name, value in others.items()}
    return {"local.epochs": epochs, "local.learning_rate": rate, **named}


def federation_parts(
    rate: float = 0.1, epochs: float = 1, moving: dict[str, PluginConfig] | None = None, **changes: Any
) -> FederationParts:
    """FedAvg over all sites with a regulator that refuses only what is not finite, unless changed."""
    numbers = {name: ConstantConfig(value=value) for name, value in values(rate, epochs).items()} | (moving or {})
    settings: dict[str, Any] = {
        "schedule": plugin(SCHEDULES, "all"),
        "codec": plugin(CODECS, "fp32"),
        "regulator": [plugin(REGULATORS, "finite")],
        "aggregator": plugin(AGGREGATORS, "weighted_mean"),
        "server": plugin(SERVER_STEPS, "sgd"),
        "values": {name: HYPERPARAMETERS.build(config) for name, config in numbers.items()},
    }
    return FederationParts(**(settings | changes))


class Federated:
    """Sites, one executor and a federation, round after round, as the in-process transport does it."""

    def __init__(self, task: Task, sites: list[SiteData], parts: FederationParts, **local: Any) -> None:
        self.executor = SiteExecutor(local_parts(task, **local), CPU)
        self.sites = {data.site: data for data in sites}
        self.states: dict[str, SiteState] = {name: {} for name in self.sites}
        self.federation = Federation(parts, 0, self.executor.network.store())
        self.validate: Validate | None = None

    @property
    def cases(self) -> dict[str, int]:
        return {name: data.splits["train"].cases for name, data in self.sites.items()}

    @property
    def model(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self.federation.model

    def round(self) -> RoundOutcome:
        before = self.federation.model.copy()
        plan = self.federation.plan(self.cases)
        open_ = self.federation.open(plan, self.validate)
        for order in plan.orders():
            data, state = self.sites[order.site], self.states[order.site]
            self._bring_old_models(order.site, state)
            open_.receive(self.executor.train(data, order, self.federation.model, state))
        outcome = self.federation.close(open_)
        asked = self.federation.probed(open_, before)
        if asked is not None:
            self.federation.learn(outcome, {site: self.loss(site, asked[0]) for site in asked[1]})
        return outcome

    def _bring_old_models(self, site: str, state: SiteState) -> None:
        proxy = self.federation.parts.proxy
        found = {} if proxy is None else proxy.old_models(site)
        if proxy is not None and found:
            state |= {f"{OLD_MODELS}.{name}": model.copy() for name, model in found.items()}
            state[f"{OLD_MODELS}.{SINCE}"] = np.array([proxy.since])

    def loss(self, site: str, model: np.ndarray[Any, np.dtype[np.float32]]) -> float:
        total, count = self.executor.evaluate(self.sites[site].splits["train"], model)["loss"]
        return float(total / count)

    def run(self, rounds: int) -> list[RoundOutcome]:
        return [self.round() for _ in range(rounds)]
