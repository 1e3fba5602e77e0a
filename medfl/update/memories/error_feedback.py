"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): a = u + e; send Q(a); e = decay * (a - Q(a))."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.memories.base import Memory, SiteState

_RESIDUAL = "memory.residual"


class ErrorFeedbackConfig(PluginConfig):
    kind: Literal["error_feedback"] = "error_feedback"
    decay: float = Field(1.0, ge=0, le=1, description="below 1 forgets stale residuals at low participation")


class ErrorFeedback(Memory):
    Config = ErrorFeedbackConfig
    config: ErrorFeedbackConfig

    def before(self, update: Update, state: SiteState) -> Update:
        residual = state.get(_RESIDUAL)
        if residual is None:
            return Update(update.dense(), update.size)
        return Update(update.dense() + residual, update.size)

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        state[_RESIDUAL] = np.float32(self.config.decay) * (wanted.dense() - sent().dense())
