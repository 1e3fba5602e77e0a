"""Refuse an update whose model does worse on public images than those of the round's other sites.

    refused when  loss(w + D_k) > (1 + tolerance) * median over the round of loss(w + D_j) + slack

Unlike `validation`, which measures against the global model before the round, this notices a site that is harmful from
the first round on and large enough to have dragged the global model with it (U-FedDO screens by validation quality in
the same spirit). Compares sites, so the round holds all updates, and the rule is refused under differential privacy.
Needs three sites; a loss that is not finite is refused and takes no part in the median.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from pydantic import Field

from medfl.errors import StudyError
from medfl.federation.regulator.base import Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig


class ValidationMedianConfig(PluginConfig):
    kind: Literal["validation_median"] = "validation_median"
    tolerance: float = Field(0.2, ge=0, description="a model may be worse than the median by this share of its loss")
    slack: float = Field(0.02, ge=0, description="and by this much loss besides")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update", "needs-public-data", "compares-sites"})


class ValidationMedian(RegulatorRule):
    Config = ValidationMedianConfig
    config: ValidationMedianConfig

    def judge_cohort(self, arrivals: Sequence[Arrival], bench: Bench) -> Mapping[str, Verdict]:
        if bench.validate is None:
            raise StudyError.at(
                "regulator.validation_median", "the study has no public images", "name a site in evaluation.public"
            )
        losses = {arrival.site: bench.validate(bench.model + arrival.update.dense())["loss"] for arrival in arrivals}
        finite = [loss for loss in losses.values() if math.isfinite(loss)]
        limit = math.inf
        if len(finite) >= 3:
            limit = median(finite) * (1 + self.config.tolerance) + self.config.slack
        return {
            site: self.refuse(f"validation loss {loss:.3g} is above {limit:.3g}, by the median of the round")
            for site, loss in losses.items()
            if not loss <= limit or not math.isfinite(loss)
        }
