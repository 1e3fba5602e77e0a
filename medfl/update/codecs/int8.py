"""8-bit integers: 1 byte a value and 4 bytes a block, which is a quarter of float32.

q = round(v / s), Q(v) = s q, with s = max|v| / 127 in each block of 4096 values (`scale: adaptive`), or s = bound / 127
everywhere (`scale: static`), where larger values are clipped and the codes of several sites may be summed, as a channel
that opens only sums needs. `rounding: stochastic` makes Q unbiased, with twice the variance. `compress` adds zstd:
about a quarter less for the updates of networks. No state (Dettmers 2016, arXiv 1511.04561;
Dettmers et al. 2022, arXiv 2110.02861).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from medfl.plugins import PluginConfig
from medfl.update.codecs.blocks import BlockCodec
from medfl.update.codecs.symmetric import Rounding, Symmetric

_LEVELS = 127


class Int8Config(PluginConfig):
    kind: Literal["int8"] = "int8"
    block: int = Field(4096, ge=8, le=65536, multiple_of=8, description="values that share a scale")
    rounding: Rounding = Field("nearest", description="stochastic is unbiased, with twice the variance")
    scale: Literal["adaptive", "static"] = Field("adaptive", description="of each block, or the same for all sites")
    bound: float | None = Field(None, gt=1e-30, lt=1e30, description="largest magnitude that a static scale holds")
    compress: bool = Field(False, description="zstd after the quantiser")

    @model_validator(mode="after")
    def _bound_fits_scale(self) -> Self:
        if (self.scale == "static") != (self.bound is not None):
            raise ValueError("bound is needed for scale: static, and for nothing else")
        return self

    def traits(self) -> frozenset[str]:
        found = {"lossy", "support-dense", f"scale-{self.scale}"}
        if self.scale == "static":
            found.add("additive")
        elif self.rounding == "stochastic":
            found.add("unbiased")
        return frozenset(found)


class Int8(BlockCodec):
    Config = Int8Config
    config: Int8Config

    def __init__(self, config: Int8Config) -> None:
        super().__init__(config)
        scale = None if config.bound is None else config.bound / _LEVELS
        self.quantiser = Symmetric(_LEVELS, config.block, config.rounding, scale=scale)
        self.compress = config.compress
