"""The way up: delta -> SubModel -> UploadGate -> Memory -> Codec (which clips first where sums are bounded) ->
Channel.seal, in this order and no other."""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np

from medfl.update.base import Payload, Update, Upload
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

    def run(self, delta: FloatVector, upload: Upload, state: SiteState, rng: np.random.Generator) -> Payload | None:
        """The payload of `delta` [size], or None when the gate keeps it back. `state` is updated in place."""
        chosen = self.submodel.select(upload.site, upload.round, delta.size)
        update = Update(delta if chosen is None else delta[chosen], delta.size, chosen)
        wanted = self.memory.before(self.gate.before(update, upload, state), state)
        # what the codec remembers counts only if its payload is sent
        remembered: SiteState = {}
        payload = self.codec.encode_with(wanted, rng, ChainMap(remembered, state))

        def sent() -> Update:
            return self.codec.decode(payload, delta.size)

        if not self.gate.allow(wanted, sent, upload, state):
            return None
        state.update(remembered)
        self.memory.after(wanted, sent, state)
        self.gate.after(sent, upload, state)
        return payload
