"""Ornstein-Uhlenbeck client sampling (Ribero & Vikalo, 2020): a site sends only when its model is not where the
coordinator expects it.

    the coordinator expects  w^_k(t) = x_t + exp(-decay (t - s)) (w_k(s) - x_t)      s: the last round that counted
    send if |w_k - w^_k| >= threshold;   threshold *= exp(gain (sent - rate))

For a silent site the expectation stands in, so that all sites are in every mean; decay 0 repeats a site's last model.
Each site steers its threshold to the target rate. The policy is the paper's; the controller is medfl's. Costs 1 bit in
a silent round, two vectors of state at the site, and two at the coordinator for all sites together.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.base import Update, Upload
from medfl.update.gates.mirror import MirroredGate, SumOfMirrors
from medfl.update.memories.base import SiteState
from medfl.update.vector import FloatVector

_THRESHOLD = "gate.threshold"


class InnovationConfig(PluginConfig):
    kind: Literal["innovation"] = "innovation"
    rate: float = Field(0.2, gt=0, le=1, description="share of rounds in which a site sends, in the long run")
    decay: float = Field(0.0, ge=0, description="lambda: how fast a silent site is believed to return to the model")
    gain: float = Field(0.3, gt=0, le=1, description="how fast the threshold follows the rate")

    def traits(self) -> frozenset[str]:
        return frozenset({"depends-on-update", "mirrors-site"})


class Innovation(MirroredGate):
    Config = InnovationConfig
    config: InnovationConfig

    def believed(self, mirror: FloatVector, age: int, upload: Upload) -> FloatVector:
        expected: FloatVector = np.float32(math.exp(-self.config.decay * age)) * (mirror - upload.model)
        return expected

    def mirrored(self, update: FloatVector, upload: Upload) -> FloatVector:
        return upload.model + update

    def allow(self, news: Update, sent: Callable[[], Update], upload: Upload, state: SiteState) -> bool:
        norm = news.norm()
        threshold = float(state.get(_THRESHOLD, np.array([norm]))[0])
        # written so that a norm that is not a number is sent: the coordinator refuses it
        send = upload.counted == 0 or not norm < threshold
        if math.isfinite(norm) and threshold:
            state[_THRESHOLD] = np.array([threshold * math.exp(self.config.gain * (send - self.config.rate))])
        return send

    def stand_in(self) -> "Expectations":
        return Expectations(self.config.decay)


class Expectations(SumOfMirrors):
    """V = sum_k n_k exp(-decay age_k) (m_k - x), moved along as the model moves and the rounds go by."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._faded: dict[str, float] = {}
        self._round = 0
        self._model: FloatVector | None = None

    def advance(self, total: FloatVector, model: FloatVector, round_: int) -> None:
        fade = math.exp(-self._decay * (round_ - self._round))
        if self._model is not None:
            moved = model - self._model
            moved *= np.float32(sum(self.known[site] * faded for site, faded in self._faded.items()))
            total -= moved
            total *= np.float32(fade)
        self._faded = {site: faded * fade for site, faded in self._faded.items()}
        self._model, self._round = model.copy(), round_

    def complete(
        self, model: FloatVector, news: FloatVector | None, round_: int, senders: Mapping[str, float], total: float
    ) -> FloatVector | None:
        change = super().complete(model, news, round_, senders, total)
        self._faded |= dict.fromkeys(senders, 1.0)
        return change

    def forget(self) -> None:
        super().forget()
        self._faded, self._model = {}, None

    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        plain, arrays = super().state()
        plain |= {"faded": dict(self._faded), "round": self._round}
        return plain, arrays | ({} if self._model is None else {"model": self._model})

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        super().restore(plain, arrays)
        self._faded, self._round = dict(plain["faded"]), plain["round"]
        self._model = np.array(arrays["model"]) if "model" in arrays else None
