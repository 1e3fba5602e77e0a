"""Refuse an update whose norm leaves its site's own history by far; in the first rounds, the scale of the model itself.

The history is the admitted norms of the site's last `window` rounds. With m its median, u the median of the norms that
the other sites offered last, and r the refusals of the site in a row:

    no history, or one of zeros:   |D| <= first |x|, x the global model
    usual:                         |D| <= factor m
    or, before three norms:        |D| <= factor u
    or, after refusals:            |D| <= factor^(1 + r) m,  and no more than factor u
    with two others or more:       |D| <= factor max(factor, s) u  in any case

A training round moves weights by a fraction of their size, a scaled upload by many times. The way back is for honest
sites whose history is not what it should be: a tiny first update makes a tiny median, and all norms rise at once when
classes or the learning rate change. It leads no further than what the others show, so that a hundredfold update stays
out however often it is sent; a site that comes back begins its history anew. The last line bounds a site that grows
slowly: s is how many times u its first norm was, which a large site may keep. Of several norms u is the upper median,
offered norms count whether they were admitted or not, and a site has one voice: while most sites are honest the others
can neither raise u at will nor lock a site out by lowering it.

Under differential privacy an unreleased norm of another site must not decide (`Bench.alone`): u is left out, and a site
comes back within its clip, which bounds what it sends in any case. Where updates are private before they are sent, u is
taken from what was released. Alone in a federation there is no way back. A site that is honest, sends more than
`factor` times what the others do and did not begin so may stay out: raise `factor`, or use norm_limit. State: at most
`window` norms a site.
"""

import math
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from pydantic import Field

from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig
from medfl.update.base import Update

_YOUNG = 3
"""Norms that make a median which one of them does not decide."""


class NormHistoryConfig(PluginConfig):
    kind: Literal["norm_history"] = "norm_history"
    factor: float = Field(4.0, gt=1, description="largest norm, in medians of the site's own last norms")
    window: int = Field(10, ge=1, description="rounds that make the history")
    first: float = Field(3.0, gt=0, description="largest norm before there is a history, in norms of the global vector")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update"})


class NormHistory(RegulatorRule):
    """Keeps by site the admitted norms, the number of refusals since with the last of their norms, and the shares s
    that are above `factor`."""

    Config = NormHistoryConfig
    config: NormHistoryConfig

    def __init__(self, config: NormHistoryConfig) -> None:
        super().__init__(config)
        self._norms: dict[str, list[float]] = {}
        self._refused: dict[str, tuple[int, float]] = {}
        self._shares: dict[str, float] = {}

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        limit, what = self._limit(arrival.site, bench)
        if arrival.norm <= limit:
            return ADMIT
        return self.refuse(f"norm {arrival.norm:.3g} is above {limit:.3g}, {what}")

    def _limit(self, site: str, bench: Bench) -> tuple[float, str]:
        """The largest norm that is admitted, and what makes it."""
        factor, known = self.config.factor, self._norms.get(site, [])
        limit, what = factor * _median(known), f"{factor:g} times its own median"
        if not limit:
            # no history, or one of updates that changed nothing
            scale = Update(bench.model, bench.model.size).norm()
            limit, what = self.config.first * scale, f"{self.config.first:g} times the norm of the model"
        refusals = self._refused.get(site, (0, 0.0))[0]
        wider, why = _times(limit, factor, refusals), f"{what}, widened after {refusals} refusals"
        others = [] if bench.alone else self._others(site)
        if not others:
            return (wider, why) if bench.alone and refusals else (limit, what)
        usual, beside = others[len(others) // 2], "times the median of the other sites"
        most = factor * max(factor, self._shares.get(site, 0.0))
        if known and len(others) > 1 and limit > most * usual:
            limit, what = most * usual, f"{most:.3g} {beside}"
        if len(known) < min(_YOUNG, self.config.window) or wider > factor * usual:
            wider, why = factor * usual, f"{factor:g} {beside}"
        return (wider, why) if wider > limit else (limit, what)

    def _others(self, site: str) -> list[float]:
        """What each other site offered last, in order; updates that change nothing are no measure."""
        offered = {other: norms[-1] for other, norms in self._norms.items()}
        offered |= {other: norm for other, (_, norm) in self._refused.items()}
        return sorted(norm for other, norm in offered.items() if other != site and norm)

    def learn(self, admitted: Sequence[tuple[str, float]], refused: Sequence[tuple[str, float]] = ()) -> None:
        new = [site for site, _ in admitted if site not in self._norms]
        for site, norm in admitted:
            known = self._norms.get(site, [])
            # what its history would not have admitted begins another
            if norm > self.config.factor * _median(known):
                known = []
            self._norms[site] = [*known, norm][-self.config.window :]
            self._refused.pop(site, None)
        for site, norm in refused:
            if math.isfinite(norm):
                self._refused[site] = self._refused.get(site, (0, 0.0))[0] + 1, norm
        for site in new:
            others = self._others(site)
            share = self._norms[site][-1] / others[len(others) // 2] if others else 0.0
            if share > self.config.factor:
                self._shares[site] = share

    def state(self) -> dict[str, Any]:
        refused = {site: list(since) for site, since in self._refused.items()}
        found = {"norms": _copied(self._norms), "refused": refused, "shares": dict(self._shares)}
        return {name: kept for name, kept in found.items() if kept or name == "norms"}

    def restore(self, state: dict[str, Any]) -> None:
        self._norms, self._shares = _copied(state["norms"]), dict(state.get("shares", {}))
        self._refused = {site: (times, norm) for site, (times, norm) in state.get("refused", {}).items()}


def _median(norms: Sequence[float]) -> float:
    """0 without any."""
    return median(norms) if norms else 0.0


def _times(limit: float, factor: float, power: int) -> float:
    """limit * factor^power, finite."""
    if not limit or not power:
        return limit
    return math.exp(min(math.log(sys.float_info.max) - 1, math.log(limit) + power * math.log(factor)))


def _copied(norms: dict[str, list[float]]) -> dict[str, list[float]]:
    return {site: list(own) for site, own in norms.items()}
