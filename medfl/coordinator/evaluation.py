"""The sites of a run as they are when it starts, and the global model's metrics on their images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.coordinator import records
from medfl.coordinator.observer import Observer
from medfl.errors import RunError, StudyError
from medfl.learning.messages import SiteInfo
from medfl.study.model import Study
from medfl.tasks.base import Metric, Task, add, fits
from medfl.transport.base import Transport
from medfl.update.base import Payload
from medfl.update.vector import FloatVector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """The sites as they are when a run starts."""

    sites: tuple[SiteInfo, ...]
    unseen: frozenset[str]

    @property
    def training(self) -> dict[str, int]:
        return {info.name: info.cases["train"] for info in self.sites if info.trains}

    def holding(self, split: str) -> list[str]:
        return [info.name for info in self.sites if info.cases.get(split, 0) > 0]


@dataclass(frozen=True)
class Evaluation:
    """Has the sites evaluate a model. code: a model as it is sent."""

    study: Study
    task: Task
    transport: Transport
    observer: Observer
    code: Callable[[FloatVector], Payload]

    def metrics(self, opened: Opened, model: FloatVector, split: str, traffic: dict[str, Any]) -> dict[str, Any]:
        """Metrics on a split: of all sites together, of each site, of each unseen site. Adds its bytes to traffic."""
        total, sites, unseen = self.task.empty(), dict[str, Any](), dict[str, Any]()
        holding = opened.holding(split)
        if self.study.privacy is not None and self.study.privacy.site_metrics == "withheld":
            holding = [site for site in holding if site in opened.unseen]
        there, own = [], {site for site in holding if site not in opened.unseen}
        for found in self.transport.evaluate([(site, split) for site in holding], self.code(model)):
            if not fits(found.statistics, self.task.empty()):
                log.warning("site %s sent statistics that are none of the task, and is left out", found.site)
                continue
            self.observer.evaluating(split, found.site)
            traffic["evaluation_up_bytes"] = traffic.get("evaluation_up_bytes", 0) + found.up_bytes
            traffic["evaluation_down_bytes"] = traffic.get("evaluation_down_bytes", 0) + found.down_bytes
            metrics = self.task.metrics(found.statistics)
            (unseen if found.site in opened.unseen else sites)[found.site] = records.metrics_json(metrics)
            there.append(found.site)
            if found.site in own or not own:
                add(total, found.statistics)
        return {
            "split": split,
            "over": [site for site in there if site in own or not own],
            "global": records.metrics_json(self.task.metrics(total)),
            "sites": sites,
            "unseen": unseen,
        }

    def losses(self, model: FloatVector, sites: Sequence[str], traffic: dict[str, Any]) -> dict[str, float]:
        """The mean training loss of a model at each of these sites that says it. Adds its bytes to traffic: they belong
        to the algorithm."""
        found = {}
        for said in self.transport.evaluate([(site, "train") for site in sites], self.code(model)):
            traffic["up_bytes"] += said.up_bytes
            traffic["down_bytes"] += said.down_bytes
            if fits(said.statistics, self.task.empty()) and said.statistics["loss"][1] > 0:
                total, count = said.statistics["loss"]
                found[said.site] = float(total / count)
            else:
                log.warning("site %s sent no loss, and is left out of the probe", said.site)
        return found

    def on_public(self, model: FloatVector) -> dict[str, float]:
        """Metrics of a candidate model on the public images, for the regulator."""
        public = self.study.evaluation.public
        if public is None:
            raise StudyError.at("evaluation.public", "is not set", "name the site whose images are public")
        found = next(iter(self.transport.evaluate([(public, "val")], self.code(model))), None)
        if found is None or not fits(found.statistics, self.task.empty()):
            raise RunError.at(f"site {public}", "holds the public images and did not validate the update")
        metrics: list[Metric] = self.task.metrics(found.statistics)
        return {metric.name: metric.value for metric in metrics if not metric.class_name}
