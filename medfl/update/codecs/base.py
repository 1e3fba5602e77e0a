"""Codec contract: a vector in, bytes out, and back. One codec serves one direction of one study.

Traits: "lossy" (what comes out is not what went in; no other codec may draw random numbers), "unbiased" (it is on
average), "additive" (codes of equal settings may be summed), "scaled-up" (what is kept is made larger for what is not),
"by-tensor" (codes whole tensors of the network), "scale-adaptive" or "scale-static" for quantisers, and one of
"support-dense", "support-own", "support-shared". A decoder meets bytes from a peer: it raises RunError for anything
that is not a whole payload of the expected size, before it allocates.

Moving settings (DGC's density) are configuration fields of type `HyperparameterConfig`; their values of the round are
in the mapping that `at` takes, as "<kind>.<field>".
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector, Layout

_HALF = np.float32(np.finfo(np.float16).max)


class Codec(Plugin[PluginConfig], ABC):
    def bind(self, layout: Layout) -> None:
        """Told once where each tensor lies, before the first vector. Default: of no interest."""

    def at(self, values: Mapping[str, float]) -> Self:
        """The codec with the round's moving settings. Default: nothing moves."""
        return self

    def omega(self, size: int) -> float:
        """What the codec loses of a vector of `size` values: E|Q(v)-v|^2 / |v|^2 of an unbiased codec; 1/delta - 1 of
        a contraction E|Q(v)-v|^2 <= (1-delta) |v|^2. Trackers damp their step by 1 / (1 + omega). Default: nothing."""
        return 0.0

    def encode_with(
        self, update: Update, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]
    ) -> Payload:
        """`encode` for codecs that remember: `state` holds the sender's private arrays by dotted name ("codec.scale"),
        and is updated in place. Default: there is nothing to remember."""
        return self.encode(update, rng)

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


class RememberingCodec(Codec):
    """A codec that remembers: `encode_with` says how, and `encode` is its first vector."""

    @abstractmethod
    def encode_with(
        self, update: Update, rng: np.random.Generator, state: MutableMapping[str, npt.NDArray[Any]]
    ) -> Payload: ...

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return self.encode_with(update, rng, {})


def dense_values(update: Update) -> FloatVector:
    return np.ascontiguousarray(update.dense())


def as_halves(values: FloatVector) -> npt.NDArray[np.float16]:
    """The values [k] in half precision: finite ones beyond +-65504 as the largest half; infinity and NaN stay so."""
    halves = np.clip(values, -_HALF, _HALF).astype(np.float16)
    np.copyto(halves, values, where=np.isinf(values), casting="same_kind")
    return halves


CODECS = PluginPoint(
    "codec",
    "medfl.codecs",
    {
        "fp32": "medfl.update.codecs.fp32:Fp32",
        "fp16": "medfl.update.codecs.fp16:Fp16",
        "int8": "medfl.update.codecs.int8:Int8",
        "int4": "medfl.update.codecs.int4:Int4",
        "sign": "medfl.update.codecs.sign:Sign",
        "qsgd": "medfl.update.codecs.qsgd:Qsgd",
        "sketch": "medfl.update.codecs.sketch:Sketch",
        "shrinking_grid": "medfl.update.codecs.shrinking_grid:ShrinkingGrid",
        "topk": "medfl.update.codecs.topk:TopK",
        "personal_topk": "medfl.update.codecs.personal_topk:PersonalTopK",
        "random_k": "medfl.update.codecs.random_k:RandomK",
        "stc": "medfl.update.codecs.stc:Stc",
        "sparse_binary": "medfl.update.codecs.sparse_binary:SparseBinary",
        "powersgd": "medfl.update.codecs.powersgd:PowerSgd",
    },
)
