"""Majority vote (Bernstein et al., "signSGD with Majority Vote", ICLR 2019): each coordinate moves by one step in the
direction that most say.

    w_j <- w_j + scale * sign(sum_k w_k sign(D_kj));   a tie moves nothing

w_k is a site's weight (cases times its verdict's factor), so a vote is as strong as its site. Fewer than half of the
weight cannot turn a coordinate that all others agree on, and no site moves one by more than `scale`. Meant with the
codec `sign`. Where sites differ it stops short of the optimum, since a vote does not say how much: a mean with error
feedback does not. State: one vector of votes; nothing more travels.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from medfl.federation.aggregation.base import Aggregator
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.vector import FloatVector

_BLOCK = 1 << 16


class MajorityVoteConfig(PluginConfig):
    kind: Literal["majority_vote"] = "majority_vote"
    scale: float = Field(0.001, gt=0, description="how far a coordinate moves in a round")

    def traits(self) -> frozenset[str]:
        return frozenset({"nonlinear"})


class MajorityVote(Aggregator):
    Config = MajorityVoteConfig
    config: MajorityVoteConfig

    def __init__(self, config: MajorityVoteConfig) -> None:
        super().__init__(config)
        self._votes = np.zeros(0, np.float32)
        self._cast = np.empty(_BLOCK, np.float32)
        self._any = False

    def start(self, size: int) -> None:
        if self._votes.size == size:
            self._votes.fill(0)
        else:
            self._votes = np.zeros(size, np.float32)
        self._any = False

    def add(self, update: Update, weight: float) -> None:
        if not weight:
            return
        self._any = True
        if update.indices is not None:
            self._votes[update.indices] += np.float32(weight) * np.sign(update.values)
            return
        for start in range(0, update.size, _BLOCK):
            block = update.values[start : start + _BLOCK]
            cast = np.sign(block, out=self._cast[: block.size])
            cast *= np.float32(weight)
            self._votes[start : start + _BLOCK] += cast

    def result(self) -> FloatVector | None:
        if not self._any:
            return None
        np.sign(self._votes, out=self._votes)
        self._votes *= np.float32(self.config.scale)
        return self._votes
