"""ResNet with squeeze-and-excitation and GroupNorm, 2D and 3D, as classifier and as feature extractor.

He et al. 2016 (arXiv 1512.03385), SE inside the residual branch before the addition (Hu et al. 2018, arXiv
1709.01507), ResNet-D shortcut (average pool, then 1x1 convolution of stride 1; He et al. 2019, arXiv 1812.01187).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medfl.tasks.networks.blocks import ConvUnit, SqueezeExcitation, conv, initialise, norm
from medfl.tasks.networks.config import Stem

_AVERAGE_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Residual(nn.Module):
    """relu(shortcut(x) + SE(branch(x))); basic (two 3x3) or bottleneck (1x1, 3x3, 1x1 to four times the width)."""

    def __init__(self, dims: int, inputs: int, width: int, *, stride: int, bottleneck: bool, se: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        units: list[nn.Module]
        if bottleneck:
            units = [ConvUnit(dims, inputs, width, 1), ConvUnit(dims, width, width, 3, stride=stride)]
        else:
            units = [ConvUnit(dims, inputs, width, 3, stride=stride)]
        units += [conv(dims, width, outputs, 1 if bottleneck else 3), norm(dims, outputs)]
        if se:
            units.append(SqueezeExcitation(dims, outputs))
        self.branch = nn.Sequential(*units)
        self.shortcut = _shortcut(dims, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


def _shortcut(dims: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    project = [conv(dims, inputs, outputs, 1), norm(dims, outputs)]
    if stride == 1:
        return nn.Sequential(*project)
    pool = _AVERAGE_POOL[dims](stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, *project)


class SEResNet(nn.Module):
    """SE-ResNet with GroupNorm; nothing in place, no buffers.

    layers: blocks a stage; stage i has width `width * 2**i` (four times that with `bottleneck`).
    stem: "large" is a 7x7 convolution of stride 2, "small" a 3x3 of stride 1 for images of some 32 pixels.
    stem_pool: a 3x3 max-pool of stride 2 after the stem. num_classes: None for a feature extractor.

    feature_channels, feature_strides: channels and stride of each map that `features` returns; stage i has stride
    2**i, doubled by the large stem and doubled again by the pool.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        layers: Sequence[int],
        width: int,
        bottleneck: bool = False,
        se: bool = True,
        stem: Stem = "large",
        stem_pool: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if stem == "large" else (3, 1)
        units: list[nn.Module] = [ConvUnit(spatial_dims, in_channels, width, kernel, stride=stride)]
        if stem_pool:
            units.append(_MAX_POOL[spatial_dims](3, 2, padding=1))
        self.stem = nn.Sequential(*units)
        widths = [width * 2**i for i in range(len(layers))]
        self.feature_channels = tuple(4 * w if bottleneck else w for w in widths)
        self.feature_strides = tuple(stride * (2 if stem_pool else 1) * 2**i for i in range(len(layers)))
        self.stages = nn.ModuleList()
        inputs = width
        for stage, blocks in enumerate(layers):
            units = []
            for block in range(blocks):
                down = 2 if stage and not block else 1
                units.append(Residual(spatial_dims, inputs, widths[stage], stride=down, bottleneck=bottleneck, se=se))
                inputs = self.feature_channels[stage]
            self.stages.append(nn.Sequential(*units))
        self.head = nn.Identity() if num_classes is None else nn.Linear(inputs, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """One map a stage, fine to coarse: [B, C, *space] -> [B, feature_channels[i], *ceil(space / stride_i)]."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *space] -> logits [B, num_classes]; the pooled features [B, channels] without `num_classes`."""
        out: Tensor = self.head(self.features(x)[-1].flatten(2).mean(dim=2))
        return out
