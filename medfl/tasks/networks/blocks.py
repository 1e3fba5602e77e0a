"""Building blocks of all networks: convolution + GroupNorm + ReLU, and squeeze-and-excitation, in 2D and 3D.

Two rules hold for every block. Nothing is a buffer, so parameters are all that travels (no running statistics:
GroupNorm, Wu & He 2018, arXiv 1803.08494). Nothing acts in place, so per-sample gradients can be taken.
"""

from math import gcd

from torch import Tensor, nn

from medfl.tasks.networks.config import NormName

MIN_CHANNELS_PER_GROUP = 4
"""With one channel a group GroupNorm is instance norm, which makes narrow networks train slowly."""

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_INSTANCE: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def conv(
    spatial_dims: int, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Module:
    """A convolution [B, inputs, *s] -> [B, outputs, *ceil(s / stride)] for an odd `kernel`."""
    return _CONV[spatial_dims](
        inputs, outputs, kernel, stride=stride, padding=dilation * (kernel // 2), dilation=dilation, bias=bias
    )


def groups_of(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of gcd(channels, 8) that leaves 4 channels a group, else 1."""
    groups = gcd(channels, 8)
    while groups > 1 and channels // groups < MIN_CHANNELS_PER_GROUP:
        groups //= 2
    return groups


def norm(spatial_dims: int, channels: int, name: NormName = "group") -> nn.Module:
    """A normalisation over `channels` with learned scale and shift and without running statistics."""
    if name == "instance":
        return _INSTANCE[spatial_dims](channels, affine=True)
    return nn.GroupNorm(groups_of(channels), channels)


class ConvUnit(nn.Sequential):
    """Bias-free convolution, normalisation, ReLU."""

    def __init__(
        self,
        spatial_dims: int,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm_name: NormName = "group",
    ) -> None:
        super().__init__(
            conv(spatial_dims, inputs, outputs, kernel, stride=stride, dilation=dilation),
            norm(spatial_dims, outputs, norm_name),
            nn.ReLU(),
        )


class SqueezeExcitation(nn.Module):
    """Channel re-calibration s = sigmoid(W2 relu(W1 mean(u))), returns s * u (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, spatial_dims: int, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(
            conv(spatial_dims, channels, hidden, 1, bias=True),
            nn.ReLU(),
            conv(spatial_dims, hidden, channels, 1, bias=True),
            nn.Sigmoid(),
        )
        self.space = tuple(range(2, 2 + spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(x.mean(dim=self.space, keepdim=True))
        return scale * x


def initialise(network: nn.Module) -> None:
    """Kaiming-normal weights and zero biases for every convolution (He et al. 2015), from torch's global generator."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
