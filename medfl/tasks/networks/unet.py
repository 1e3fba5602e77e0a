"""U-Net with GroupNorm or InstanceNorm, 2D and 3D (Ronneberger et al. 2015, arXiv 1505.04597; Cicek et al. 2016,
arXiv 1606.06650): two units a level, max-pool down, 2x2 transposed convolution up, concatenation, 1x1 output."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfl.tasks.networks.blocks import ConvUnit, initialise
from medfl.tasks.networks.config import NormName

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_UP: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

FOREGROUND_BIAS = -2.0
"""Where the logits of the foreground classes start (class 0 at 0). Foreground is rare: networks that first have to
learn that often give up one class for hundreds of steps (compare the class prior in Lin et al. 2017, section 4.1)."""


class UNet(nn.Module):
    """[B, in_channels, *space] -> logits [B, num_classes, *space], for any size of space above 2**depth.

    Sizes that 2**depth does not divide are padded with zeros at the far end and the output is cropped back.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        width: int,
        depth: int,
        norm_name: NormName = "instance",
    ) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth + 1)]

        def level(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                ConvUnit(spatial_dims, inputs, outputs, norm_name=norm_name),
                ConvUnit(spatial_dims, outputs, outputs, norm_name=norm_name),
            )

        self.multiple = 2**depth
        self.pool = _MAX_POOL[spatial_dims](2)
        self.down = nn.ModuleList(level(i, o) for i, o in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_UP[spatial_dims](2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(level(2 * w, w) for w in reversed(widths[:-1]))
        self.output = _CONV[spatial_dims](width, num_classes, 1)
        initialise(self)
        if self.output.bias is not None:
            nn.init.constant_(self.output.bias[1:], FOREGROUND_BIAS)

    def forward(self, x: Tensor) -> Tensor:
        space = x.shape[2:]
        x = F.pad(x, [p for size in reversed(space) for p in (0, -size % self.multiple)])
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(self.pool(x) if number else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.output(x)
        for axis, size in enumerate(space, start=2):
            logits = logits.narrow(axis, 0, size)
        return logits
