"""LAQ, lazily aggregated quantised gradients (Sun et al., NeurIPS 2019): a site is silent while its update says little
that its last one did not say.

    skip if |q|^2 <= sum_{d=1..D} xi_d |x_{k+1-d} - x_{k-d}|^2 + 3 (e_k + e_last)   and it was silent for < t_max rounds

q is the coded difference to the last update that counted, e_k and e_last the squared errors of coding now and then, x_k
the global model. Distances are in units of the update (learning rate times gradient), so that neither the rate nor the
number of sites appears. A silent site's last update stands in. Meant for one local step on all of a site's samples and
a quantiser (codec `shrinking_grid` or `int8`); costs 1 bit in a silent round, two vectors of state at the site, and one
at the coordinator.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.base import Update, Upload
from medfl.update.gates.mirror import MirroredGate, SumOfMirrors
from medfl.update.memories.base import SiteState

_MODEL, _MOVES = "gate.model", "gate.moves"
_ERROR, _SENT, _SILENT = "gate.error", "gate.sent", "gate.silent"


class LaqConfig(PluginConfig):
    kind: Literal["laq"] = "laq"
    history: int = Field(10, ge=1, description="D: rounds whose movements of the model are looked at")
    weight: float = Field(0.8, gt=0, le=1, description="sum of the xi_d, which are equal")
    longest: int = Field(100, ge=1, description="t_max: rounds after which a site sends in any case")

    def traits(self) -> frozenset[str]:
        return frozenset({"depends-on-update", "mirrors-site"})


class Laq(MirroredGate):
    Config = LaqConfig
    config: LaqConfig

    def allow(self, news: Update, sent: Callable[[], Update], upload: Upload, state: SiteState) -> bool:
        moves = self._moves(upload, state)
        coded = sent()
        error = float(Update(news.dense() - coded.dense(), news.size).norm()) ** 2
        limit = self.config.weight / self.config.history * float(moves.sum())
        limit += 3 * (error + float(state.get(_ERROR, np.zeros(1))[0]))
        silent = int(state.get(_SILENT, np.zeros(1))[0])
        # what is not finite must reach the coordinator, who refuses it
        first = upload.counted == 0
        if not first and coded.norm() ** 2 <= limit and silent < self.config.longest:
            state[_SILENT] = np.array([silent + 1.0])
            return False
        state[_SENT] = np.array([error])
        return True

    def settled(self, counted: bool, state: SiteState) -> None:
        error = state.pop(_SENT, np.zeros(1))
        if counted:
            state[_SILENT], state[_ERROR] = np.zeros(1), error
        else:
            # the coordinator has an older picture than it was meant to have
            state[_SILENT] = np.array([float(self.config.longest)])

    def _moves(self, upload: Upload, state: SiteState) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Squared movements of the model [history], the newest first."""
        moves = np.array(state.get(_MOVES, np.zeros(self.config.history)))
        before = state.get(_MODEL)
        if before is not None:
            moves = np.roll(moves, 1)
            moves[0] = Update(upload.model - before, before.size).norm() ** 2
        state[_MODEL], state[_MOVES] = np.array(upload.model), moves
        return moves

    def stand_in(self) -> SumOfMirrors:
        return SumOfMirrors()
