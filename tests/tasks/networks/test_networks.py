"""Networks: shapes, strides, nothing but parameters, no dependence on the batch, nothing in place."""

from itertools import product
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medfl.tasks.networks import blocks
from medfl.tasks.networks.blocks import groups_of, parameter_count
from medfl.tasks.networks.config import ResNetConfig, UNetConfig
from medfl.tasks.networks.inference import evaluating
from medfl.tasks.networks.seresnet import SEResNet
from medfl.tasks.networks.unet import UNet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def resnet(dims: int, **changes: object) -> SEResNet:
    settings = {"spatial_dims": dims, "in_channels": 2, "layers": (1, 1), "width": 8, "num_classes": 3}
    return SEResNet(**(settings | changes))  # type: ignore[arg-type]


def unet(dims: int, **changes: object) -> UNet:
    settings = {"spatial_dims": dims, "in_channels": 2, "num_classes": 3, "width": 4, "depth": 2}
    return UNet(**(settings | changes))  # type: ignore[arg-type]


NETWORKS = {
    "resnet-2d": lambda: resnet(2),
    "resnet-3d": lambda: resnet(3),
    "resnet-bottleneck": lambda: resnet(2, bottleneck=True, stem_pool=True),
    "resnet-plain-small": lambda: resnet(2, se=False, stem="small"),
    "unet-2d": lambda: unet(2),
    "unet-3d": lambda: unet(3),
    "unet-group": lambda: unet(2, norm_name="group"),
}


def dims_of(network: nn.Module) -> int:
    return next(m.weight.ndim - 2 for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


def images(network: nn.Module, count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 2, *[size] * dims_of(network), generator=torch.Generator().manual_seed(3))


def batch_dependence(network: nn.Module) -> float:
    """Largest change of an image's output when other images come with it."""
    network.double().train()
    x = images(network).double()
    return float((network(x)[:1] - network(x[:1])).detach().abs().max())


class BatchNormUNet(UNet):
    """The fake: a U-Net whose normalisation was replaced by BatchNorm."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=2, num_classes=3, width=4, depth=2)
        for unit in [m for m in self.modules() if isinstance(m, blocks.ConvUnit)]:
            unit[1] = nn.BatchNorm2d(unit[1].num_features)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_depends_on_the_image_alone_and_parameters_are_all_there_is(name: str) -> None:
    network = NETWORKS[name]()
    assert batch_dependence(network) < 1e-9
    assert not list(network.buffers())


def test_batch_norm_fails_both_properties() -> None:
    fake = BatchNormUNet()
    assert batch_dependence(fake) > 1e-2
    assert list(fake.buffers())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient_also_after_moving_into_one_vector(name: str) -> None:
    network = NETWORKS[name]()
    x = images(network)
    before = network(x).detach()
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    offset = 0
    for p in network.parameters():
        p.data = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    torch.testing.assert_close(network(x), before)
    out = network(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    flat.zero_()
    assert network(x).detach().abs().max() == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_per_sample_gradients_can_be_taken(name: str) -> None:
    network = NETWORKS[name]()
    x = images(network, count=2)
    parameters = {n: p.detach() for n, p in network.named_parameters()}

    def loss(values: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(network, values, (image[None],)).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    alone = torch.func.grad(loss)(parameters, x[1])
    for key, gradient in alone.items():
        torch.testing.assert_close(each[key][1], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("dims", "stem", "pool", "strides"),
    [(2, "large", False, (2, 4, 8)), (2, "small", False, (1, 2, 4)), (3, "large", True, (4, 8, 16))],
)
def test_resnet_maps_have_the_strides_and_channels_it_says(
    dims: int, stem: str, pool: bool, strides: tuple[int, ...]
) -> None:
    network = resnet(dims, layers=(1, 2, 1), stem=stem, stem_pool=pool, bottleneck=True)
    size = 19
    maps = network.features(torch.randn(1, 2, *[size] * dims))
    assert network.feature_strides == strides
    assert network.feature_channels == (32, 64, 128)
    for found, channels, stride in zip(maps, network.feature_channels, strides, strict=True):
        assert found.shape == (1, channels, *[-(-size // stride)] * dims)
    assert network(torch.randn(1, 2, *[size] * dims)).shape == (1, 3)


def test_resnet_without_classes_gives_pooled_features() -> None:
    network = resnet(2, num_classes=None)
    x = images(network)
    torch.testing.assert_close(network(x), network.features(x)[-1].mean(dim=(2, 3)))


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.3), (34, 21.5), (50, 26.0)])
def test_presets_have_the_size_of_their_paper(depth: int, millions: float) -> None:
    layers, bottleneck = ResNetConfig(depth=depth).blocks()  # type: ignore[arg-type]
    network = SEResNet(spatial_dims=2, in_channels=3, layers=layers, width=64, bottleneck=bottleneck, num_classes=1000)
    backbone = parameter_count(network) - parameter_count(network.head)
    assert backbone / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (12, 2), (16, 4), (20, 4), (32, 8), (64, 8), (6, 1)])
def test_groups_keep_four_channels(channels: int, groups: int) -> None:
    assert groups_of(channels) == groups


@pytest.mark.parametrize("name", [n for n in NETWORKS if "resnet" in n or "group" in n])
def test_no_group_is_a_single_channel(name: str) -> None:
    norms = [m for m in NETWORKS[name]().modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(m.num_channels // m.num_groups >= 4 for m in norms)


def test_squeeze_excitation_scales_whole_channels() -> None:
    block = blocks.SqueezeExcitation(2, 8)
    x = torch.rand(2, 8, 5, 5) + 0.5
    scale = (block(x) / x).detach()
    torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale))
    assert 0 < float(scale.min()) < float(scale.max()) < 1


@pytest.mark.parametrize("space", [(16, 16), (17, 13), (5, 7), (9, 11, 6), (8, 8, 8)])
def test_unet_keeps_any_size(space: tuple[int, ...]) -> None:
    network = unet(len(space))
    assert network(torch.randn(1, 2, *space)).shape == (1, 3, *space)


@pytest.mark.parametrize(
    ("dims", "depth", "width", "norm"), list(product((2, 3), (1, 3), (4, 8), ("group", "instance")))
)
def test_unet_parameters_are_known_without_building(dims: int, depth: int, width: int, norm: str) -> None:
    network = UNet(spatial_dims=dims, in_channels=2, num_classes=3, width=width, depth=depth, norm_name=norm)  # type: ignore[arg-type]
    assert UNetConfig(width=width, depth=depth).parameters(dims, 2, 3) == parameter_count(network)


def test_unet_of_the_paper_is_sixteen_times_its_quarter() -> None:
    wide, narrow = (UNetConfig(width=w, depth=4).parameters(2, 1, 2) for w in (64, 16))
    assert wide == 31_036_546
    assert wide / narrow == pytest.approx(16, rel=0.01)


def test_evaluating_restores_the_mode_also_after_an_error() -> None:
    network = unet(2).train()
    with pytest.raises(ZeroDivisionError), evaluating(network):
        assert not network.training and torch.is_inference_mode_enabled()
        raise ZeroDivisionError
    assert network.training and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "settings", [{"depth": 19}, {"depth": 18, "layers": (1, 1)}, {"depth": 50, "bottleneck": True}, {"layers": ()}]
)
def test_resnet_settings_that_contradict_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResNetConfig.model_validate(settings)


@pytest.mark.parametrize("module", ["classification", "segmentation"])
def test_a_study_is_checked_without_torch(module: str) -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'monai', 'matplotlib', 'scipy'}"
    code = f"import sys, medfl.tasks.{module} as m; m.__all__; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
