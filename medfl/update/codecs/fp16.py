"""Half precision: 2 bytes a value. Finite values beyond +-65504 are sent as the largest half; infinity stays infinity,
so that the coordinator sees it."""

from typing import Literal

import numpy as np

from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec, as_halves, dense_values
from medfl.update.wire import as_bytes


class Fp16Config(PluginConfig):
    kind: Literal["fp16"] = "fp16"

    def traits(self) -> frozenset[str]:
        return frozenset({"support-dense"})


class Fp16(Codec):
    Config = Fp16Config

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return Payload("fp16", update.size, (as_bytes(as_halves(dense_values(update))),))

    def decode(self, payload: Payload, size: int) -> Update:
        self.check(payload, size, (2 * size,))
        return Update(np.frombuffer(payload.buffers[0], np.float16).astype(np.float32), size)
