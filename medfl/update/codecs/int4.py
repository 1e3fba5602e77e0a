"""4-bit integers: two codes a byte and 2 bytes a block, 4.25 bits a value with blocks of 64.

q = round(v / s) in -7 ... 7, with s = max|v| / 7 in each block. Updates of networks have heavy tails, so blocks are
small: with 4096 values a block the largest one drowns the others. `rotate` is the other remedy: random signs and a
Walsh-Hadamard transform over each block of 1024 values make them alike first (Suresh et al. 2017, arXiv 1611.00429),
for 4.02 bits a value and half the speed. The scale travels as bfloat16, rounded up, as half precision would lose small
updates. `rounding: stochastic` is unbiased, with twice the variance. `compress` adds zstd. No state. Small blocks as in
QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from medfl.plugins import PluginConfig
from medfl.update.codecs.blocks import BlockCodec
from medfl.update.codecs.rotation import refuse_block
from medfl.update.codecs.symmetric import Rounding, Symmetric

_LEVELS = 7


class Int4Config(PluginConfig):
    kind: Literal["int4"] = "int4"
    block: int | None = Field(
        None, ge=8, le=65536, multiple_of=8, description="values that share a scale: 64, or 1024 when rotated"
    )
    rotate: bool = Field(False, description="rotate each block first, by random signs and a Hadamard transform")
    rounding: Rounding = Field("nearest", description="stochastic is unbiased, with twice the variance")
    compress: bool = Field(False, description="zstd after the quantiser")

    @model_validator(mode="after")
    def _block_can_be_rotated(self) -> Self:
        if self.rotate:
            refuse_block(self.values)
        return self

    @property
    def values(self) -> int:
        """Values a block."""
        return self.block or (1024 if self.rotate else 64)

    def traits(self) -> frozenset[str]:
        found = {"lossy", "support-dense", "scale-adaptive"}
        return frozenset(found | {"unbiased"} if self.rounding == "stochastic" else found)


class Int4(BlockCodec):
    Config = Int4Config
    config: Int4Config

    def __init__(self, config: Int4Config) -> None:
        super().__init__(config)
        self.quantiser = Symmetric(_LEVELS, config.values, config.rounding, short=True)
        self.rotate, self.compress = config.rotate, config.compress
