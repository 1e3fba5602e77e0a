"""Personalised top-k sparsification: every site sends as many values as its own update needs, within one byte budget.
No public paper defines it; this is medfl's definition, after the idea of FedSCR (Wu et al., "FedSCR: Structure-Based
Communication Reduction for Federated Learning", IEEE TPDS 2021), which sets thresholds by client.

    k_i = the fewest values of largest magnitude that hold the share rho_i of the update's energy |v|^2,
          within [k/4, 2k],  k = ceil(density * d)
    rho_i <- rho_i * 1.002                        while the payload's bytes are within the budget,
             rho_i * min(0.99, sqrt(budget/bytes)) when they are over it;        within [s, 0.999]

rho_i starts at the share that k values hold, and s is 0.3, or the share that k/4 values hold where that is less: in
an update as flat as noise 1 % of the values hold 0.09 of the energy, and a bound of 0.3 would keep the site at twice
its budget.

The budget is what k values at evenly spread positions take: k values and d H(density) bits, H the binary entropy; it
is compared with the bytes that really travel. A site whose change lies in few values sends less, one whose change is
spread sends up to twice as much. Biased: it needs error_feedback. At the default density of 0.01, 25.6 million values
travel in about 0.77 MB on average with fp16 values in place of 102 MB. State at the site: rho, one number.
"""

import math
from collections.abc import MutableMapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import RememberingCodec
from medfl.update.codecs.indices import Indices
from medfl.update.codecs.selection import largest
from medfl.update.codecs.sparse import Precision, SparseCodec, SparseConfig, travelling, width
from medfl.update.codecs.topk import pack_kept, unpack_kept
from medfl.update.vector import FloatVector, Layout

_RHO = "codec.rho"
_LOWEST, _HIGHEST = 0.3, 0.999


class PersonalTopKConfig(SparseConfig):
    kind: Literal["personal_topk"] = "personal_topk"
    values: Precision = Field("fp16", description="how the kept values travel; int8 has a scale a block of 256")
    floor: float = Field(0.0, ge=0, le=1, description="share of every tensor's values that travels at least")

    def traits(self) -> frozenset[str]:
        return super().traits() | ({"by-tensor"} if self.floor else set())


class PersonalTopK(RememberingCodec, SparseCodec):
    Config = PersonalTopKConfig
    config: PersonalTopKConfig

    def __init__(self, config: PersonalTopKConfig) -> None:
        super().__init__(config)
        self._bounds: Indices | None = None

    def bind(self, layout: Layout) -> None:
        self._bounds = np.array([slot.offset for slot in layout.slots] + [layout.size])

    def encode_with(
        self, update: Update, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]
    ) -> Payload:
        values = travelling(update)
        candidates = largest(values, min(values.size, 2 * self.count(values.size)))
        shares = self._shares(values, candidates)
        usual, least = self.count(values.size), self._least(values.size)
        rho = float(state[_RHO][0]) if _RHO in state else min(_HIGHEST, shares[:usual].max(initial=0))
        wanted = max(least, int(np.searchsorted(shares, rho)) + 1)
        chosen = candidates[largest(values[candidates], wanted)]
        if self.config.floor:
            chosen = self._with_floor(update, values, chosen)
        payload = pack_kept("personal_topk", update, values, chosen, self.config.values)
        excess = sum(len(buffer) for buffer in payload.buffers) / self.budget(values.size) if values.size else 0.0
        rho *= 1.002 if excess <= 1 else min(0.99, excess**-0.5)
        lowest = min(_LOWEST, shares[:least].max(initial=0))
        state[_RHO] = np.array([min(_HIGHEST, max(lowest, rho))])
        return payload

    def decode(self, payload: Payload, size: int) -> Update:
        return unpack_kept(self, payload, size, self.config.values)

    def omega(self, size: int) -> float:
        """d/k_i - 1 for the fewest values that a site may send."""
        return size / self._least(size) - 1 if size else 0.0

    def budget(self, size: int) -> float:
        """Bytes that a payload of `size` values may take on average."""
        count = self.count(size)
        share = count / size if size else 1.0
        entropy = 0.0 if share == 1 else -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        return count * width(self.config.values) + size * entropy / 8

    def _least(self, size: int) -> int:
        return math.ceil(self.count(size) / 4)

    def _shares(self, values: FloatVector, candidates: Indices) -> npt.NDArray[np.float64]:
        """What share of the energy the largest, the two largest ... candidates hold; all of it when there is none, or
        when it is not finite."""
        energy = Update(values, values.size).norm() ** 2
        if not (math.isfinite(energy) and energy):
            return np.ones(candidates.size)
        return np.sort(values[candidates].astype(np.float64) ** 2)[::-1].cumsum() / energy

    def _with_floor(self, update: Update, values: FloatVector, chosen: Indices) -> Indices:
        """The chosen values, and more of every tensor of which too few were chosen."""
        if self._bounds is None:
            raise RunError.at("codec personal_topk", "has a floor and does not know the tensors", "bind it to a layout")
        bounds = self._bounds if update.indices is None else np.searchsorted(update.indices, self._bounds)
        least = np.ceil(self.config.floor * np.diff(bounds)).astype(np.int64)
        starved = np.flatnonzero(np.diff(np.searchsorted(chosen, bounds)) < least)
        more = [bounds[slot] + largest(values[bounds[slot] : bounds[slot + 1]], least[slot]) for slot in starved]
        return np.unique(np.concatenate([chosen, *more]))
