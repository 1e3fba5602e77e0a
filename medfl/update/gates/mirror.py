"""What gates share whose coordinator keeps the sum of all mirrors.

site          d_k: what the coordinator believes of site k's update, news I_k = D_k - d_k
coordinator   V = sum_k share_k d_k;  after a round  V += sum over senders of share_k I_k;  the change is V
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.base import Update, Upload
from medfl.update.gates.base import StandIn, UploadGate
from medfl.update.memories.base import SiteState
from medfl.update.vector import FloatVector

_MIRROR, _ROUND = "gate.mirror", "gate.round"
_PENDING, _PENDING_ROUND = "gate.pending", "gate.pending_round"
_GONE = 3
"""Failed rounds in a row after which nothing stands in for a site any more."""


class MirroredGate(UploadGate):
    """Keeps at the site what the coordinator believes of it."""

    def believed(self, mirror: FloatVector, age: int, upload: Upload) -> FloatVector:
        """The site's update as the coordinator expects it, from the mirror of `age` rounds ago. Default: the mirror."""
        return mirror

    def mirrored(self, update: FloatVector, upload: Upload) -> FloatVector:
        """What to keep of an update that the coordinator now knows. Default: itself."""
        return update

    def settled(self, counted: bool, state: SiteState) -> None:
        """It is known whether the last news counted. Default: of no interest."""

    def before(self, update: Update, upload: Upload, state: SiteState) -> Update:
        self._settle(upload, state)
        expected = self._expected(upload, state)
        return Update(update.dense() - expected, update.size) if expected is not None else update

    def after(self, sent: Callable[[], Update], upload: Upload, state: SiteState) -> None:
        expected, news = self._expected(upload, state), sent().dense()
        known = news if expected is None else expected + news
        state[_PENDING] = np.array(self.mirrored(known, upload))
        state[_PENDING_ROUND] = _number(upload.round)

    def _settle(self, upload: Upload, state: SiteState) -> None:
        """Take over what was sent last, if it counted. RunError when the coordinator counts what is not known here."""
        pending, of = state.pop(_PENDING, None), state.pop(_PENDING_ROUND, None)
        if pending is not None and of is not None:
            counted = upload.counted == int(of[0])
            if counted:
                state[_MIRROR], state[_ROUND] = pending, of
            self.settled(counted, state)
        if upload.counted and (_ROUND not in state or int(state[_ROUND][0]) != upload.counted):
            raise RunError.at(
                f"site {upload.site}, round {upload.round}",
                f"does not know what it sent in round {upload.counted}, which the coordinator's mean still holds",
                "give the site its private state of this run back, or start the run anew",
            )
        if not upload.counted:
            state.pop(_MIRROR, None)
            state.pop(_ROUND, None)

    def _expected(self, upload: Upload, state: SiteState) -> FloatVector | None:
        if _MIRROR not in state:
            return None
        return self.believed(state[_MIRROR], upload.round - int(state[_ROUND][0]), upload)


class SumOfMirrors(StandIn):
    """V, and nothing for each site but its weight. Sub-classes say how beliefs move from round to round."""

    def __init__(self) -> None:
        self.sum: FloatVector | None = None
        self.known: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def advance(self, total: FloatVector, model: FloatVector, round_: int) -> None:
        """Move the sum of beliefs to this round, in place. Default: beliefs do not move."""

    def weight(self, site: str, cases: int) -> float:
        return self.known.get(site, float(cases))

    def complete(
        self, model: FloatVector, news: FloatVector | None, round_: int, senders: Mapping[str, float], total: float
    ) -> FloatVector | None:
        if self.sum is None:
            self.sum = np.zeros_like(model)
        self.advance(self.sum, model, round_)
        if news is not None:
            self.sum += news
        self.known |= senders
        return self.sum / np.float32(total) if self.known else None

    def lost(self, failed: Collection[str], asked: Collection[str]) -> bool:
        for site in asked:
            self._failures[site] = self._failures.get(site, 0) + 1 if site in failed else 0
        if not any(self._failures.get(site, 0) >= _GONE for site in self.known):
            return False
        self.forget()
        return True

    def forget(self) -> None:
        self.sum, self.known, self._failures = None, {}, {}

    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        plain = {"known": dict(self.known), "failures": dict(self._failures)}
        return plain, {} if self.sum is None else {"sum": self.sum}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        self.known, self._failures = dict(plain["known"]), dict(plain["failures"])
        self.sum = np.array(arrays["sum"]) if "sum" in arrays else None


def _number(value: float) -> npt.NDArray[np.float64]:
    return np.array([value])
