"""U-FedDO's coordinator: screen each update on public validation images and weight it by how well its model does.

An update is refused when the model it makes, w + delta, is worse than the global model before the round by more
than `tolerance` (share of the global model's own loss, plus `slack`), or when the loss is not finite. Admitted
updates are weighted by quality q = max(metric, floor) when `metric` is named: w += sum n_k q_k delta_k / sum n_k
q_k. Uses one site's update and public data only.
"""

import math
from typing import Any, Literal

from pydantic import Field

from medfl.errors import StudyError
from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Score, Verdict
from medfl.plugins import PluginConfig
from medfl.update.vector import FloatVector


class ValidationConfig(PluginConfig):
    kind: Literal["validation"] = "validation"
    tolerance: float = Field(
        0.5, ge=0, description="a model may be worse than the global one by this share of its loss"
    )
    slack: float = Field(0.05, ge=0, description="and by this much loss besides")
    metric: str | None = Field(None, description="weight admitted updates by this metric of their model")
    floor: float = Field(0.05, gt=0, le=1, description="smallest quality weight")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update", "needs-public-data"})


class Validation(RegulatorRule):
    Config = ValidationConfig
    config: ValidationConfig

    def __init__(self, config: ValidationConfig) -> None:
        super().__init__(config)
        self._base: tuple[int, Score] | None = None

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        if bench.validate is None:
            raise StudyError.at(
                "regulator.validation", "the study has no public images", "name a site in evaluation.public"
            )
        base = self._baseline(arrival.round, bench)["loss"]
        score = bench.validate(_moved(bench.model, arrival))
        # any finite loss is better than that of a global model whose own is not finite
        limit = base * (1 + self.config.tolerance) + self.config.slack if math.isfinite(base) else math.inf
        if not math.isfinite(score["loss"]) or score["loss"] > limit:
            return self.refuse(f"validation loss {score['loss']:.3g} is above {limit:.3g}")
        if self.config.metric is None:
            return ADMIT
        if self.config.metric not in score:
            known = ", ".join(sorted(score))
            raise StudyError.at(
                "regulator.validation.metric", f"there is no metric {self.config.metric!r}", f"use one of: {known}"
            )
        # in this order: a metric without support is NaN, and counts as the floor
        quality = min(1.0, max(self.config.floor, score[self.config.metric]))
        return Verdict("down-weight", "validation", f"{self.config.metric} {quality:.3f}", quality)

    def _baseline(self, round_: int, bench: Bench) -> Score:
        if bench.validate is None:
            raise StudyError.at(
                "regulator.validation", "the study has no public images", "name a site in evaluation.public"
            )
        if self._base is None or self._base[0] != round_:
            self._base = round_, bench.validate(bench.model)
        return self._base[1]

    def restore(self, state: dict[str, Any]) -> None:
        self._base = None


def _moved(model: FloatVector, arrival: Arrival) -> FloatVector:
    return model + arrival.update.dense()
