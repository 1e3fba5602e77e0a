"""The vector as it is: 4 bytes a value, no loss, no copy."""

from typing import Literal

import numpy as np

from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec, dense_values
from medfl.update.wire import as_bytes


class Fp32Config(PluginConfig):
    kind: Literal["fp32"] = "fp32"

    def traits(self) -> frozenset[str]:
        return frozenset({"unbiased", "additive", "support-dense"})


class Fp32(Codec):
    Config = Fp32Config

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return Payload("fp32", update.size, (as_bytes(dense_values(update)),))

    def decode(self, payload: Payload, size: int) -> Update:
        self.check(payload, size, (4 * size,))
        return Update(np.frombuffer(payload.buffers[0], np.float32), size)
