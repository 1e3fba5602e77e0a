"""The way up: delta -> SubModel -> UploadGate -> Memory -> Codec (which clips first where sums are bounded) ->
Channel.seal, in this order and no other."""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np

from medfl.update.base import Payload, Update, Upload
from medfl.update.codecs.base import Codec
from medfl.update.gates.base import UploadGate
from medfl.update.memories.base import Memory, SiteState
from medfl.update.submodels.base import Coordinates, embedded, taken
from medfl.update.vector import FloatVector


@dataclass(frozen=True)
class UploadPipeline:
    """The parts that an update passes at the site."""

    gate: UploadGate
    memory: Memory
    codec: Codec

    def run(self, delta: FloatVector, upload: Upload, state: SiteState, rng: np.random.Generator) -> Payload | None:
        """The payload of `delta` [size], or None when the gate keeps it back. `state` is updated in place.

        What is coded is a vector of its own: the values at `upload.sends`. A memory keeps what trained elsewhere."""
        if upload.trains is None:
            update = Update(delta, delta.size)
        else:
            # where nothing trained, a change is what the site was not sent: there is nothing to remember
            update = Update(taken(delta, upload.sends), delta.size, upload.sends)
        wanted = self.memory.before(self.gate.before(update, upload, state), state)
        # what the codec remembers counts only if its payload is sent
        remembered: SiteState = {}
        part = _part(wanted, upload.sends)
        payload = self.codec.encode_with(part, rng, ChainMap(remembered, state))

        def sent() -> Update:
            return embedded(self.codec.decode(payload, part.size), upload.sends, delta.size)

        if not self.gate.allow(wanted, sent, upload, state):
            return None
        state.update(remembered)
        self.memory.after(wanted, sent, state)
        self.gate.after(sent, upload, state)
        return payload


def _part(update: Update, sends: Coordinates | None) -> Update:
    """The values of an update that are sent, as a vector of its own."""
    if sends is None:
        return update
    values = update.values if update.indices is sends else taken(update.dense(), sends)
    return Update(values, sends.size)
