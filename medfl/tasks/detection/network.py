"""RetinaNet's network: SE-ResNet, feature pyramid with context and attention, MONAI's heads. 2D and 3D.

Feature pyramid: Lin et al. 2017, arXiv 1612.03144. Both additions have their flag:
- context: dilated convolutions of several rates see the surroundings of a lesion (Multi-Scale Booster, Shao et al.
  2019, arXiv 1907.03958);
- attention: the deeper, more semantic level weighs the channels and places of the shallower one.
"""

from collections.abc import Sequence

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from torch import Tensor, nn
from torch.nn import functional as F

from medfl.tasks.detection.config import DetectionConfig
from medfl.tasks.networks.blocks import conv, initialise, norm
from medfl.tasks.networks.seresnet import SEResNet

DILATIONS = (1, 2, 3)


class Context(nn.Module):
    """y = relu(x + GN(W [conv_d(x) for d in DILATIONS])), [B, C, *s] -> [B, C, *s]."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        narrow = max(8, channels // len(DILATIONS) // 8 * 8)
        self.branches = nn.ModuleList(conv(spatial_dims, channels, narrow, 3, dilation=d) for d in DILATIONS)
        self.fuse = nn.Sequential(
            conv(spatial_dims, narrow * len(DILATIONS), channels, 1), norm(spatial_dims, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.fuse(torch.cat([branch(x) for branch in self.branches], dim=1)))


class BackwardAttention(nn.Module):
    """x * (1 + A) with A = sigmoid(MLP(mean(u))) * sigmoid(conv(u)), u the deeper level brought to the size of x."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            conv(spatial_dims, channels, channels // 4, 1, bias=True),
            nn.ReLU(),
            conv(spatial_dims, channels // 4, channels, 1, bias=True),
            nn.Sigmoid(),
        )
        self.place = nn.Sequential(conv(spatial_dims, channels, 1, 3, bias=True), nn.Sigmoid())
        self.space = tuple(range(2, 2 + spatial_dims))

    def forward(self, x: Tensor, deeper: Tensor) -> Tensor:
        gate: Tensor = self.channel(deeper.mean(dim=self.space, keepdim=True)) * self.place(deeper)
        return x * (1 + gate)


class Pyramid(nn.Module):
    """Maps of a backbone, fine to coarse, -> as many maps of `channels` channels plus `extra` of stride 2 each.

    Top down: P_l = GN(conv(gate(lateral(C_l), U) + U)), U = P_{l+1} brought to the size of C_l by nearest neighbours.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        channels: int,
        *,
        extra: int = 0,
        context: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()

        def unit(inputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            return [conv(spatial_dims, inputs, channels, kernel, stride=stride), norm(spatial_dims, channels)]

        self.laterals = nn.ModuleList(nn.Sequential(*unit(inputs, 1)) for inputs in in_channels)
        self.contexts = nn.ModuleList(
            Context(spatial_dims, channels) if context else nn.Identity() for _ in in_channels
        )
        self.gates = nn.ModuleList(BackwardAttention(spatial_dims, channels) for _ in in_channels[1:] if attention)
        self.outputs = nn.ModuleList(nn.Sequential(*unit(channels, 3)) for _ in in_channels)
        self.extra = nn.ModuleList(nn.Sequential(*unit(channels, 3, stride=2)) for _ in range(extra))
        initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        for level in reversed(range(len(maps))):
            x = self.contexts[level](self.laterals[level](maps[level]))
            if levels:
                deeper = F.interpolate(levels[0], size=x.shape[2:], mode="nearest")
                x = (self.gates[level](x, deeper) if self.gates else x) + deeper
            levels.insert(0, self.outputs[level](x))
        for down in self.extra:
            levels.append(down(levels[-1]))
        return levels


class FeatureExtractor(nn.Module):
    """Backbone and pyramid: image [B, C, *s] -> maps [B, out_channels, *ceil(s / stride)], fine to coarse."""

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        shape = config.backbone
        layers, bottleneck = shape.blocks()
        self.first = shape.first_stage
        self.backbone = SEResNet(
            spatial_dims=config.spatial_dims,
            in_channels=config.in_channels,
            layers=layers,
            width=shape.width,
            bottleneck=bottleneck,
            se=shape.se,
            stem=shape.stem,
            stem_pool=shape.stem_pool,
        )
        self.pyramid = Pyramid(
            config.spatial_dims,
            self.backbone.feature_channels[self.first :],
            config.pyramid_channels,
            extra=config.extra_levels,
            context=config.context,
            attention=config.attention,
        )
        self.out_channels = config.pyramid_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.pyramid(self.backbone.features(images)[self.first :])
        return maps


def build_network(config: DetectionConfig) -> nn.Module:
    """The RetinaNet of a configuration: images [B, C, *s], s a multiple of the coarsest stride, -> a dictionary of
    "classification" and "box_regression", a list of maps each. Initialised from torch's global generator."""
    network: nn.Module = RetinaNet(
        spatial_dims=config.spatial_dims,
        num_classes=len(config.classes),
        num_anchors=len(config.anchor_shapes),
        feature_extractor=FeatureExtractor(config),
        size_divisible=[config.strides[-1]] * config.spatial_dims,
    )
    return network
