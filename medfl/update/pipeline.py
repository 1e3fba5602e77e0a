"""The way up: delta -> SubModel -> UploadGate -> Memory -> Codec (which clips first where sums are bounded) ->
Channel.seal, in this order and no other."""

from dataclasses import dataclass

import numpy as np

from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec
from medfl.update.gates.base import UploadGate
from medfl.update.memories.base import Memory, SiteState
from medfl.update.submodels.base import SubModel
from medfl.update.vector import FloatVector


@dataclass(frozen=True)
class UploadPipeline:
    """The parts that an update passes at the site."""

    submodel: SubModel
    gate: UploadGate
    memory: Memory
    codec: Codec

    def run(
        self, delta: FloatVector, site: str, round_: int, state: SiteState, rng: np.random.Generator
    ) -> Payload | None:
        """The payload of `delta` [size], or None when the gate keeps it back. `state` is updated in place."""
        chosen = self.submodel.select(site, round_, delta.size)
        update = Update(delta if chosen is None else delta[chosen], delta.size, chosen)
        if not self.gate.allow(update, round_):
            return None
        wanted = self.memory.before(update, state)
        payload = self.codec.encode_with(wanted, rng, state)
        self.memory.after(wanted, lambda: self.codec.decode(payload, delta.size), state)
        return payload
