"""How much each site has moved the model lately, and the factor that makes up for it.

Weights that fall with staleness punish the slow site, and a fast site also sends more updates. Both are seen in a
site's influence: the sum of its updates' staleness weights over the last arrivals. The site that falls short the most
is on average given the weight of an update that is not stale, and the others are held back to match: no correction
makes an update count more than a fresh one, so none makes the model jump.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Correction = Literal["none", "staleness", "influence"]

WINDOW = 20
"""Arrivals a site that the influence is measured over. A site that is slower by more than this is not waited for: it
would hold all others back for longer than it is remembered."""


@dataclass(slots=True)
class _Tally:
    """weights, updates: of the site, with older ones forgotten at a constant rate. last: number of its last arrival."""

    cases: int = 0
    weights: float = 0.0
    updates: float = 0.0
    last: int = 0


class Influence:
    """State in, state out."""

    def __init__(self, correction: Correction) -> None:
        self._correction = correction
        self._sites: dict[str, _Tally] = {}
        self._arrivals = 0

    def factor(self, site: str, cases: int, weight: float) -> float:
        """Take in an admitted update of this staleness weight, in (0, 1]; what the weight is to be multiplied by, which
        gives 1 at most."""
        tally = self._sites.setdefault(site, _Tally())
        window = WINDOW * len(self._sites)
        self._arrivals += 1
        for each in self._sites.values():
            each.weights *= 1 - 1 / window
            each.updates *= 1 - 1 / window
        tally.cases, tally.last = cases, self._arrivals
        tally.weights += weight
        tally.updates += 1.0
        if self._correction == "none":
            return 1.0
        recent = [each for each in self._sites.values() if self._arrivals - each.last < window]
        # in these units, the mean weight that each site would need for all to pull as they should
        most = max(self._lack(each) * each.weights / each.updates for each in recent)
        return min(self._lack(tally) / most, 1 / weight)

    def _lack(self, tally: _Tally) -> float:
        """How far a site falls short, in a unit that is common to all sites."""
        if self._correction == "staleness":
            return tally.updates / tally.weights
        return tally.cases / tally.weights

    def state(self) -> dict[str, Any]:
        return {"arrivals": self._arrivals, "sites": {site: asdict(tally) for site, tally in self._sites.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._arrivals = state["arrivals"]
        self._sites = {site: _Tally(**tally) for site, tally in state["sites"].items()}
