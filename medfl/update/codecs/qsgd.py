"""QSGD: random rounding to s levels of the block's norm. Unbiased; ceil(log2(2s + 1)) bits a value, 4 bytes a block.

q = sign(v) * (s |v| / |block| rounded up or down at random, so that the mean is right); Q(v) = |block| q / s;
E|Q(v) - v|^2 <= min(n / s^2, sqrt(n) / s) |v|^2 in a block of n values (Alistarh et al. 2017, arXiv 1610.02132). With
s = 1, 3, 7, 15, 31, 63 or 127 no code is wasted; the default 15 takes 5 bits. `compress` sends a byte a level through
zstd, whose entropy coder stands in for the paper's Elias code: most levels of a large block are 0. No state.
"""

from typing import Literal

from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.codecs.blocks import BlockCodec
from medfl.update.codecs.symmetric import Symmetric


class QsgdConfig(PluginConfig):
    kind: Literal["qsgd"] = "qsgd"
    levels: int = Field(15, ge=1, le=127, description="s: steps between zero and the block's norm")
    block: int = Field(512, ge=8, le=65536, multiple_of=8, description="values that share a norm")
    compress: bool = Field(False, description="zstd after the quantiser")

    def traits(self) -> frozenset[str]:
        return frozenset({"lossy", "unbiased", "support-dense", "scale-adaptive"})


class Qsgd(BlockCodec):
    Config = QsgdConfig
    config: QsgdConfig

    def __init__(self, config: QsgdConfig) -> None:
        super().__init__(config)
        self.quantiser = Symmetric(config.levels, config.block, "stochastic", by_norm=True)
        self.compress = config.compress
