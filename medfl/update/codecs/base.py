"""Codec contract: a vector in, bytes out, and back. One codec serves one direction of one study.

Traits: "unbiased", "additive", and one of "support-dense", "support-own", "support-shared"; `omega` is the relative
variance E|Q(v)-v|^2 / |v|^2 of an unbiased codec. A decoder meets bytes from a peer: it raises RunError for
anything that is not a whole payload of the expected size, before it allocates.
"""

from abc import ABC, abstractmethod

import numpy as np

from medfl.errors import RunError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector


class Codec(Plugin[PluginConfig], ABC):
    @abstractmethod
    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        """The bytes of an update. `rng` is the round's and site's generator, for stochastic rounding."""

    @abstractmethod
    def decode(self, payload: Payload, size: int) -> Update:
        """The update of a payload; RunError when it is not one of a vector of `size` values."""

    def check(self, payload: Payload, size: int, lengths: tuple[int, ...]) -> None:
        """RunError unless codec, vector size and buffer lengths are as expected."""
        if payload.codec != self.config.kind or payload.size != size:
            raise RunError.at(
                "update", f"is {payload.codec} of {payload.size} values, expected {self.config.kind} of {size}"
            )
        found = tuple(len(buffer) for buffer in payload.buffers)
        if found != lengths:
            raise RunError.at("update", f"has buffers of {found} bytes, expected {lengths}")


def dense_values(update: Update) -> FloatVector:
    return np.ascontiguousarray(update.dense())


CODECS = PluginPoint(
    "codec", "medfl.codecs", {"fp32": "medfl.update.codecs.fp32:Fp32", "fp16": "medfl.update.codecs.fp16:Fp16"}
)
