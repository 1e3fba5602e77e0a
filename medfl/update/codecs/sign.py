"""Signs: 1 bit a value, and with `scale: mean` 4 bytes a block; a 32nd of float32.

Q(v) = mean|v| of the block * sign(v), zero counting as positive (Seide et al. 2014; Karimireddy et al. 2019, arXiv
1901.09847). It is biased: without the memory `error_feedback` training stalls where sites differ; with it, what was not
sent follows later. With `scale: none` only the signs travel, and Q(v) = +-1: signSGD (Bernstein et al. 2018, arXiv
1802.04434), for the aggregator `majority_vote` and a small server rate. No state.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.codecs.blocks import BlockCodec, Quantiser
from medfl.update.codecs.packing import Codes
from medfl.update.codecs.rotation import Rows


class SignConfig(PluginConfig):
    kind: Literal["sign"] = "sign"
    block: int = Field(4096, ge=8, le=65536, multiple_of=8, description="values that share a mean magnitude")
    scale: Literal["mean", "none"] = Field("mean", description="none sends +-1")

    def traits(self) -> frozenset[str]:
        found = {"lossy", "support-dense"}
        # sums of signs are signs of nothing, but they are what a vote needs
        return frozenset(found | ({"scale-adaptive"} if self.scale == "mean" else {"scale-static", "additive"}))


class _Signs(Quantiser):
    bits = 1

    def __init__(self, block: int, scaled: bool) -> None:
        self.block = block
        self.numbers = 1 if scaled else 0

    def omega(self, count: int, rotated: bool) -> float:
        # what is kept of |v|^2 is |v|_1^2 / n, which is least when one value is all
        return count - 1.0 if self.numbers else math.inf

    def measure(self, rows: Rows, work: Rows) -> Rows:
        mean: Rows = np.abs(rows, out=work).sum(axis=1, keepdims=True)
        mean /= rows.shape[1]
        return mean

    def quantise(self, rows: Rows, numbers: Rows, codes: Codes, work: Rows, rng: np.random.Generator) -> None:
        np.greater_equal(rows, 0, out=codes.view(np.bool_))

    def restore(self, codes: Codes, numbers: Rows, out: Rows) -> None:
        magnitude = numbers if self.numbers else np.float32(1)
        np.multiply(codes, 2 * magnitude, out=out)
        out -= magnitude


class Sign(BlockCodec):
    Config = SignConfig
    config: SignConfig

    def __init__(self, config: SignConfig) -> None:
        super().__init__(config)
        self.quantiser = _Signs(config.block, config.scale == "mean")
