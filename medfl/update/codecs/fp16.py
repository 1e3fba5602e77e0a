"""Half precision: 2 bytes a value. Finite values beyond +-65504 are sent as the largest half; infinity stays infinity,
so that the coordinator sees it."""

from typing import Literal

import numpy as np

from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec, dense_values
from medfl.update.wire import as_bytes

_LARGEST = np.float32(np.finfo(np.float16).max)


class Fp16Config(PluginConfig):
    kind: Literal["fp16"] = "fp16"

    def traits(self) -> frozenset[str]:
        return frozenset({"support-dense"})


class Fp16(Codec):
    Config = Fp16Config

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        values = dense_values(update)
        halves = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
        np.copyto(halves, values, where=np.isinf(values), casting="same_kind")
        return Payload("fp16", update.size, (as_bytes(halves),))

    def decode(self, payload: Payload, size: int) -> Update:
        self.check(payload, size, (2 * size,))
        return Update(np.frombuffer(payload.buffers[0], np.float16).astype(np.float32), size)
