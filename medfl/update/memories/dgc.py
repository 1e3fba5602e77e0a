"""Deep Gradient Compression (Lin et al., "Deep Gradient Compression: Reducing the Communication Bandwidth for
Distributed Training", ICLR 2018): momentum that takes the delay of sparse updates into account. For codecs such as
topk.

    g  <- g * min(1, C N^(-1/2) / |g|)               local clipping, with N sites
    u  <- m u + g;             v <- v + u            momentum correction
    u  <- m (u + g);           v <- v + u + g        ... in Nesterov's form
    send Q(v);                 v <- v - Q(v)
    u_i <- 0 where i was sent                        momentum factor masking

g is the site's update of a round. What the codec rounds off stays in v. When a codec sends every coordinate nothing
is masked: it is then momentum SGD, where masking would leave none. Costs no bytes; state at the site: u and v, 8
bytes a parameter. It is the momentum of the whole training: the coordinator's step should have none. The paper raises
the sparsity step by step over the first epochs: give the codec's density the kind `warmup`.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.memories.base import Memory, SiteState

_MOMENTUM = "memory.momentum"
_RESIDUAL = "memory.residual"


class DgcConfig(PluginConfig):
    kind: Literal["dgc"] = "dgc"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    masking: bool = Field(True, description="momentum factor masking: a coordinate that was sent starts anew")
    clip: float | None = Field(
        None, gt=0, description="largest norm of the sum over the sites of their updates, where they are independent"
    )
    sites: int = Field(1, ge=1, description="N: a site's update is clipped to clip / sqrt(N)")

    def traits(self) -> frozenset[str]:
        return frozenset({"client-momentum"})


class Dgc(Memory):
    Config = DgcConfig
    config: DgcConfig

    def before(self, update: Update, state: SiteState) -> Update:
        gradient = self._clipped(update)
        momentum, residual = state.get(_MOMENTUM), state.get(_RESIDUAL)
        # arrays of the state are replaced, never changed: a round that fails leaves them as they were
        velocity = np.zeros_like(gradient) if momentum is None else momentum * gradient.dtype.type(self.config.momentum)
        velocity += gradient * gradient.dtype.type(self.config.momentum) if self.config.nesterov else gradient
        wanted = velocity + gradient if self.config.nesterov else velocity.copy()
        if residual is not None:
            wanted += residual
        # both at once: what a gate keeps back is in v and goes with a later round
        state[_MOMENTUM], state[_RESIDUAL] = velocity, wanted
        return Update(wanted, update.size)

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        gone = sent()
        # a copy: the payload may be a view of what was wanted
        state[_RESIDUAL] = residual = wanted.values.copy()
        if gone.indices is None or gone.indices.size == wanted.size:
            residual -= gone.dense()
            return
        residual[gone.indices] -= gone.values
        if self.config.masking:
            state[_MOMENTUM][gone.indices] = 0

    def _clipped(self, update: Update) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The update as a vector, no longer than its share of the clip."""
        if self.config.clip is None:
            return update.dense()
        limit, norm = self.config.clip / self.config.sites**0.5, update.norm()
        return update.dense() * update.values.dtype.type(limit / norm) if norm > limit else update.dense()
