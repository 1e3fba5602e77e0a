"""Refuse an update that lies far from, or against, the coordinate-wise median of the round's updates.

Two guards, both must hold (U-FedDO, reconstruction):
    norm:       | |D_k| - median | <= norm_spread * 1.4826 * MAD + norm_slack * median
    direction:  cosine(D_k, median of D) > direction    (silent when the median update is zero)
Compares sites, so the round holds all updates, and the rule is refused under differential privacy. Needs three sites;
an update that is not finite is refused and takes no part in the medians.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.federation.regulator.base import Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig
from medfl.update.vector import FloatVector

_BLOCK = 1 << 16


class MedianDistanceConfig(PluginConfig):
    kind: Literal["median_distance"] = "median_distance"
    norm_spread: float = Field(3.0, ge=0)
    norm_slack: float = Field(0.5, ge=0)
    direction: float = Field(0.0, ge=-1, lt=1, description="smallest cosine to the median update")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update", "compares-sites"})


class MedianDistance(RegulatorRule):
    Config = MedianDistanceConfig
    config: MedianDistanceConfig

    def judge_cohort(self, arrivals: Sequence[Arrival], bench: Bench) -> Mapping[str, Verdict]:
        verdicts = {
            arrival.site: self.refuse("the update holds values that are not finite")
            for arrival in arrivals
            if not np.isfinite(arrival.norm)
        }
        arrivals = [arrival for arrival in arrivals if arrival.site not in verdicts]
        if len(arrivals) < 3:
            return verdicts
        norms = np.array([arrival.norm for arrival in arrivals])
        median = float(np.median(norms))
        spread = 1.4826 * float(np.median(np.abs(norms - median)))
        allowed = self.config.norm_spread * spread + self.config.norm_slack * median
        cosines = _cosines_to_median([arrival.update.dense() for arrival in arrivals], norms)
        for arrival, cosine in zip(arrivals, cosines, strict=True):
            if abs(arrival.norm - median) > allowed:
                verdicts[arrival.site] = self.refuse(f"norm {arrival.norm:.3g} is far from the median {median:.3g}")
            elif cosine is not None and not cosine > self.config.direction:
                verdicts[arrival.site] = self.refuse(f"cosine {cosine:.2f} to the median update")
        return verdicts


def _cosines_to_median(updates: Sequence[FloatVector], norms: npt.NDArray[np.float64]) -> list[float | None]:
    """Cosine of each update [size] to the coordinate-wise median, block by block in bounded memory, in float64; None
    where one of the two is zero and has no direction."""
    dots, squared = np.zeros(len(updates)), 0.0
    for start in range(0, updates[0].size, _BLOCK):
        block = np.stack([update[start : start + _BLOCK] for update in updates]).astype(np.float64)
        middle = np.median(block, axis=0)
        dots += block @ middle
        squared += float(middle @ middle)
    lengths = norms * np.sqrt(squared)
    return [float(dot / length) if length else None for dot, length in zip(dots, lengths, strict=True)]
