"""The network: shapes, flags, gradients, stable names, nothing but parameters."""

import hashlib

import pytest
import torch

from medfl.tasks.detection import Detection
from medfl.tasks.detection.config import DetectionConfig
from medfl.tasks.detection.network import BackwardAttention, Context, Pyramid, build_network
from medfl.tasks.networks.blocks import parameter_count

BACKBONE = {"layers": (1, 1, 1), "width": 8}


def config(**settings: object) -> DetectionConfig:
    return DetectionConfig(**{"classes": ("a", "b"), "backbone": BACKBONE, "pyramid_channels": 16, **settings})


@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("extra", [0, 1])
def test_one_map_a_level(nd: int, extra: int) -> None:
    settings = config(spatial_dims=nd, levels=3 + extra)
    size = (32,) * nd
    maps = build_network(settings)(torch.zeros(2, 1, *size))
    for stride, classes, boxes in zip(settings.strides, maps["classification"], maps["box_regression"], strict=True):
        assert classes.shape == (2, 3 * 2, *(s // stride for s in size))
        assert boxes.shape == (2, 3 * 2 * nd, *(s // stride for s in size))


def test_flags_change_the_network() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 32, 32)
    variants = {}
    for context in (False, True):
        for attention in (False, True):
            torch.manual_seed(1)
            network = build_network(config(context=context, attention=attention))
            variants[context, attention] = (parameter_count(network), network(image)["classification"][0].sum().item())
            kinds = {type(module) for module in network.modules()}
            assert (Context in kinds, BackwardAttention in kinds) == (context, attention)
    assert len({count for count, _ in variants.values()}) == 4
    assert len({value for _, value in variants.values()}) == 4


def test_the_deeper_level_decides_the_attention() -> None:
    torch.manual_seed(0)
    gate = BackwardAttention(2, 16)
    x, deeper = torch.rand(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    weight = gate(x, deeper) / x
    assert weight.min() > 1 and weight.max() < 2
    torch.testing.assert_close(gate(3 * x, deeper) / (3 * x), weight)
    assert not torch.allclose(gate(x, -deeper) / x, weight)


def test_context_sees_as_far_as_its_widest_dilation() -> None:
    torch.manual_seed(0)
    block = Context(2, 16)
    block.fuse = block.fuse[:1]  # GroupNorm looks at the whole map: without it the receptive field is the kernels'
    x = torch.rand(1, 16, 15, 15, requires_grad=True)
    block(x)[0, :, 7, 7].sum().backward()
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    assert seen[4, 4] and seen[7, 10] and not seen[7, 11] and not seen[3, 7]


def test_pyramid_takes_maps_of_odd_sizes() -> None:
    pyramid = Pyramid(3, [8, 16], 16, extra=1)
    levels = pyramid([torch.rand(1, 8, 9, 7, 5), torch.rand(1, 16, 5, 4, 3)])
    assert [tuple(level.shape[2:]) for level in levels] == [(9, 7, 5), (5, 4, 3), (3, 2, 2)]


@pytest.mark.parametrize("nd", [2, 3])
def test_gradient_reaches_every_parameter(nd: int) -> None:
    torch.manual_seed(0)
    wide = {"pyramid_channels": 32, "backbone": {"layers": (1, 1, 1), "width": 16}}
    task = Detection(config(spatial_dims=nd, levels=4, class_loss="focal", **wide))
    network = task.build()
    image = torch.rand(2, 1, *(32,) * nd)
    box = torch.tensor([[4.0] * nd + [14.0] * nd, [10.0] * nd + [30.0] * nd])
    batch = task.to_device(
        {"image": image.numpy(), "box": [box.numpy()] * 2, "label": [[0, 1]] * 2}, torch.device("cpu")
    )
    task.loss(network, batch).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_nothing_but_parameters_travels() -> None:
    network = build_network(config())
    assert list(network.buffers()) == []
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert len({p.data_ptr() for p in network.parameters()}) == len(list(network.parameters()))


def test_parameter_names_and_order_are_stable() -> None:
    """The layout of the flat vector follows from them: a change makes stored models unreadable."""
    names = [name for name, _ in build_network(config(levels=4)).named_parameters()]
    assert names[0] == "feature_extractor.backbone.stem.0.0.weight"
    assert "feature_extractor.pyramid.gates.1.channel.2.bias" in names
    assert names[-1] == "regression_head.bbox_reg.bias"
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "05eeba7bb04e38c4"


def test_parameters_may_be_views_into_one_vector() -> None:
    torch.manual_seed(0)
    network = build_network(config())
    image = torch.rand(1, 1, 32, 32)
    before = network(image)["classification"][0]
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    offset = 0
    for p in network.parameters():
        p.data = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    torch.testing.assert_close(network(image)["classification"][0], before)
    flat.mul_(0.5)
    assert not torch.allclose(network(image)["classification"][0], before)
