"""The way up: delta -> SubModel -> UploadGate -> Memory -> Codec (which clips first where sums are bounded) ->
Channel.seal, in this order and no other."""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np

from medfl.update.base import Payload, Update, Upload
from medfl.update.codecs.base import Codec
from medfl.update.gates.base import UploadGate
from medfl.update.memories.base import Memory, SiteState
from medfl.update.parts import embedded
from medfl.update.vector import FloatVector


@dataclass(frozen=True)
class UploadPipeline:
    """The parts that an update passes at the site."""

    gate: UploadGate
    memory: Memory
    codec: Codec

    def run(self, delta: FloatVector, upload: Upload, state: SiteState, rng: np.random.Generator) -> Payload | None:
        """The payload of `delta` [size], or None when the gate keeps it back. `state` is updated in place.

        What is coded is a vector of its own: the values of `upload.sends`. A memory keeps what trained elsewhere."""
        update = Update(delta, delta.size)
        if upload.trains is not None and upload.sends is not None:
            # where nothing trained, a change is what the site was not sent: there is nothing to remember
            values = upload.sends.take(update)
            update = upload.sends.put(Update(values, values.size), delta.size)
        wanted = self.memory.before(self.gate.before(update, upload, state), state)
        # what the codec remembers counts only if its payload is sent
        remembered: SiteState = {}
        part = wanted
        if upload.sends is not None:
            part = Update(upload.sends.take(wanted), upload.sends.size)
        payload = self.codec.encode_with(part, rng, ChainMap(remembered, state))

        def sent() -> Update:
            return embedded(self.codec.decode(payload, part.size), upload.sends, delta.size)

        if not self.gate.allow(wanted, sent, upload, state):
            return None
        state.update(remembered)
        self.memory.after(wanted, sent, state)
        self.gate.after(sent, upload, state)
        return payload
