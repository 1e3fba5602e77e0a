"""Settings of the networks. Free of torch, so that a study can be checked without it."""

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

NormName = Literal["group", "instance"]
Stem = Literal["large", "small"]

PRESETS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}
"""depth -> (blocks a stage, bottleneck?), as in the ResNet paper, whose first width is 64."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ResNetConfig(_Settings):
    """An SE-ResNet: either one of the usual depths, or explicit `layers`; ResNet-18 when neither is given.

    layers: blocks a stage. width: channels of the first stage, doubled at each next one. bottleneck: for explicit
    layers only. se: squeeze-and-excitation. stem: "small" for images of some 32 pixels. stem_pool: a max-pool of
    stride 2 after the stem.
    """

    depth: Literal[18, 34, 50] | None = None
    layers: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)
    width: PositiveInt = 64
    bottleneck: bool = False
    se: bool = True
    stem: Stem = "large"
    stem_pool: bool = False

    @model_validator(mode="after")
    def _one_shape(self) -> "ResNetConfig":
        if self.depth is not None and (self.layers is not None or self.bottleneck):
            raise ValueError(
                f"depth {self.depth} already says layers and bottleneck; leave those out, or set depth to null"
            )
        return self

    def blocks(self) -> tuple[tuple[int, ...], bool]:
        """(blocks a stage, bottleneck?)."""
        if self.layers is not None:
            return self.layers, self.bottleneck
        return PRESETS[self.depth or 18]


class UNetConfig(_Settings):
    """A U-Net: `depth` times halved, level k has `width * 2**k` channels and two convolutions.

    norm: "instance" normalises each channel by itself, as nnU-Net does, "group" four channels or more together. Narrow
    networks learn rare classes far more slowly with "group".
    """

    width: PositiveInt
    depth: int = Field(default=3, ge=1, le=7)
    norm: NormName = "instance"

    def parameters(self, spatial_dims: int, in_channels: int, classes: int) -> int:
        """Number of parameters of the network, without building it."""
        taps, up = int(3**spatial_dims), int(2**spatial_dims)
        widths = [self.width << k for k in range(self.depth + 1)]

        def level(inputs: int, outputs: int) -> int:
            return taps * outputs * (inputs + outputs) + 4 * outputs

        total = sum(level(i, o) for i, o in zip([in_channels, *widths], widths, strict=False))
        for fine, coarse in pairwise(widths):
            total += up * coarse * fine + fine + level(2 * fine, fine)
        return total + (widths[0] + 1) * classes
