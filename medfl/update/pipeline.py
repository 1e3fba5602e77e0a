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
        wanted = self.memory.before(self.gate.before(_trained(delta, upload), upload, state), state)
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

    def ahead(self, delta: FloatVector, upload: Upload, state: SiteState) -> FloatVector:
        """What would be wanted [size] if the same change came once more. `state` is left as it is."""
        return self.memory.before(_trained(delta, upload), dict(state)).dense()


def _trained(delta: FloatVector, upload: Upload) -> Update:
    """The change of what trained."""
    update = Update(delta, delta.size)
    if upload.trains is None or upload.sends is None:
        return update
    # where nothing trained, a change is what the site was not sent: there is nothing to remember
    values = upload.sends.take(update)
    return upload.sends.put(Update(values, values.size), delta.size)
