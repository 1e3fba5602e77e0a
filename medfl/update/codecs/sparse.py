"""What the sparse codecs share: a density that may move, and the kept values as bytes.

Kept values travel as fp32 (exact), fp16 (2 bytes, finite values beyond +-65504 as the largest half) or int8 (1 byte
and a float32 scale a block of 256, the block's largest magnitude / 127; the code -128 stands for a value that is not
finite).
"""

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from medfl.errors import RunError
from medfl.hyperparameters.base import HYPERPARAMETERS, HyperparameterConfig
from medfl.hyperparameters.constant import ConstantConfig
from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec, as_halves
from medfl.update.codecs.indices import Indices
from medfl.update.vector import FloatVector
from medfl.update.wire import Buffer, as_bytes

Precision = Literal["fp32", "fp16", "int8"]

_WIDTH = {"fp32": 4, "fp16": 2, "int8": 1}
_BLOCK = 256
_NOT_FINITE = -128
# the largest scale: 127 times it is still a float32
_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))


class SparseConfig(PluginConfig):
    density: Annotated[HyperparameterConfig, HYPERPARAMETERS] = Field(
        ConstantConfig(value=0.01), description="share of the values that travels, above 0 and at most 1; may move"
    )

    @field_validator("density")
    @classmethod
    def _is_share(cls, density: HyperparameterConfig) -> HyperparameterConfig:
        lowest, first = density.lowest(), HYPERPARAMETERS.build(density).value()
        if (lowest is not None and lowest <= 0) or not 0 < first <= 1:
            raise ValueError("must be above 0 and at most 1 in every round")
        return density

    def traits(self) -> frozenset[str]:
        return frozenset({"lossy", "support-own"})


class SparseCodec(Codec):
    """A codec that keeps a share of the values. density: this round's."""

    config: SparseConfig

    def __init__(self, config: SparseConfig) -> None:
        super().__init__(config)
        self.density = float(HYPERPARAMETERS.build(config.density).value())

    def at(self, values: Mapping[str, float]) -> Self:
        """The codec with the round's density; RunError when it is none."""
        name = f"{self.config.kind}.density"
        if name not in values:
            return self
        density = float(values[name])
        if not 0 < density <= 1:
            raise RunError.at(name, f"is {density}, which is no share of the values", "set it above 0 and at most 1")
        moved = copy.copy(self)
        moved.density = density
        return moved

    def omega(self, size: int) -> float:
        """d/k - 1: the k of d values that are kept hold at least k/d of the energy (exactly so on average when they are
        chosen at random). The rounding of kept values is not counted."""
        return size / self.count(size) - 1 if size else 0.0

    def count(self, size: int) -> int:
        """How many of `size` values the density means: at least one, if there is any."""
        return min(size, max(1, math.ceil(self.density * size)))

    def announced(self, payload: Payload, size: int, buffers: int) -> int:
        """How many kept values a payload announces; RunError when codec, size, or number of buffers are not as
        expected, or when they would be more than `size`."""
        kind, count = self.config.kind, payload.meta.get("k")
        if payload.codec != kind or payload.size != size:
            raise RunError.at("update", f"is {payload.codec} of {payload.size} values, expected {kind} of {size}")
        if len(payload.buffers) != buffers or type(count) is not int or not 0 <= count <= size:
            raise RunError.at("update", f"does not announce 0 to {size} kept values in {buffers} buffers")
        return count


def travelling(update: Update) -> FloatVector:
    """The values that a codec may choose among: those of the update's own coordinates."""
    return np.ascontiguousarray(update.values, np.float32)


def in_vector(update: Update, chosen: Indices) -> Indices:
    """Where values chosen among `travelling(update)` lie in the whole vector."""
    return chosen if update.indices is None else update.indices[chosen]


def width(precision: Precision) -> float:
    """Bytes of a kept value."""
    return _WIDTH[precision] + (4 / _BLOCK if precision == "int8" else 0)


def value_buffers(precision: Precision) -> int:
    return 2 if precision == "int8" else 1


def pack_values(values: FloatVector, precision: Precision) -> tuple[Buffer, ...]:
    """The buffers of kept values [k]; values that are not finite stay so."""
    if precision == "fp32":
        return (as_bytes(values),)
    if precision == "fp16":
        return (as_bytes(as_halves(values)),)
    finite = np.isfinite(values)
    blocks = _in_blocks(np.where(finite, values, np.float32(0)))
    scales = np.minimum(np.abs(blocks).max(axis=1, initial=0) / np.float32(127), _SCALE)
    blocks /= np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(blocks, out=blocks), -127, 127).astype(np.int8).reshape(-1)[: values.size]
    codes[~finite] = _NOT_FINITE
    return as_bytes(codes), as_bytes(scales)


def unpack_values(buffers: tuple[Buffer, ...], count: int, precision: Precision) -> FloatVector:
    """The kept values [count]; RunError when the buffers do not hold so many, or a scale is not finite."""
    expected = [_WIDTH[precision] * count] + [4 * -(-count // _BLOCK)] * (len(buffers) - 1)
    found = [len(buffer) for buffer in buffers]
    if found != expected:
        raise RunError.at("update", f"has buffers of {found} bytes for {count} values, expected {expected}")
    if precision == "fp32":
        return np.frombuffer(buffers[0], np.float32)
    if precision == "fp16":
        return np.frombuffer(buffers[0], np.float16).astype(np.float32)
    codes, scales = np.frombuffer(buffers[0], np.int8), np.frombuffer(buffers[1], np.float32)
    if not ((scales >= 0) & (scales <= _SCALE)).all():
        raise RunError.at("update", "has scales that are no finite magnitudes")
    values = codes.astype(np.float32)
    values[codes == _NOT_FINITE] = np.nan
    blocks = _in_blocks(values)
    blocks *= scales[:, None]
    return blocks.reshape(-1)[:count]


def pack_bits(bits: npt.NDArray[np.bool_]) -> memoryview:
    """Eight flags a byte."""
    return as_bytes(np.packbits(bits))


def unpack_bits(packed: Buffer, count: int) -> npt.NDArray[np.bool_]:
    """The first `count` flags; RunError when the buffer holds more or fewer bytes than they take."""
    if len(packed) != (count + 7) // 8:
        raise RunError.at("update", f"has {len(packed)} bytes for {count} flags")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).view(np.bool_)


def mean_of(payload: Payload) -> np.float32:
    """The one magnitude of a payload whose values share it: NaN when it says that the update was not finite (null);
    RunError when it is no finite float32."""
    mean: Any = payload.meta.get("mean", False)
    if mean is None:
        return np.float32(np.nan)
    if type(mean) not in (int, float) or not abs(mean) <= float(np.finfo(np.float32).max):
        raise RunError.at("update", "has a mean that is no finite number")
    return np.float32(mean)


def shared_mean(values: FloatVector) -> float | None:
    """The mean magnitude of kept values [k] as float32; None when one is not finite."""
    mean = float(np.float32(np.abs(values).mean(dtype=np.float64))) if values.size else 0.0
    return mean if math.isfinite(mean) else None


def _in_blocks(values: FloatVector) -> FloatVector:
    """The values as rows of 256, the last filled up with zeros."""
    rows = -(-values.size // _BLOCK)
    blocks = np.zeros((rows, _BLOCK), np.float32)
    blocks.reshape(-1)[: values.size] = values
    return blocks
