"""Units of a network: without a unit the others compute what the network with its tensors sliced away computes, and
nothing depends on what the unit's own filters hold."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from medfl.errors import StudyError
from medfl.learning import filters
from medfl.learning.channels import Call, Labels
from medfl.learning.filters import network_units, task_units
from medfl.learning.provenance import Follower, Found
from medfl.tasks.base import TASKS, Task
from medfl.tasks.networks.seresnet import SEResNet
from medfl.tasks.networks.unet import UNet
from medfl.update.submodels.units import WHOLE, Units

CONFIGS = Path(__file__).parents[2] / "configs"
UPWARD = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Kept = npt.NDArray[np.bool_]


def task(name: str, **changes: Any) -> Task:
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["task"] | changes
    built: Task = TASKS.build(TASKS.load(raw["kind"]).Config.model_validate(raw))
    return built


def resnet(dims: int = 2, **changes: Any) -> nn.Module:
    settings: dict[str, Any] = {"spatial_dims": dims, "in_channels": 2, "layers": (2, 1), "width": 16, "num_classes": 3}
    return SEResNet(**(settings | changes))


def unet(dims: int = 2, **changes: Any) -> nn.Module:
    settings: dict[str, Any] = {"spatial_dims": dims, "in_channels": 2, "num_classes": 3, "width": 8, "depth": 2}
    return UNet(**(settings | changes))


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._run = forward

    def forward(self, x: Tensor) -> Any:
        return self._run(self.layers, x)


def conv(inputs: int, outputs: int, **settings: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def separable() -> nn.Module:
    return nn.Sequential(
        conv(2, 8),
        nn.ReLU(),
        conv(8, 16, groups=8),
        nn.GroupNorm(8, 16),
        nn.SiLU(),
        conv(16, 6),
        nn.PReLU(6),
        conv(6, 2),
    )


def grouped() -> nn.Module:
    up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4)
    return nn.Sequential(conv(2, 8), conv(8, 16, groups=4), nn.Sigmoid(), up, nn.Softplus(), conv(8, 2))


def flat() -> nn.Module:
    return nn.Sequential(
        conv(2, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(8, 12),
        nn.Flatten(),
        nn.Linear(12 * 64, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    )


def gated() -> nn.Module:
    def forward(layers: Any, x: Tensor) -> Tensor:
        value, gate = layers["both"](layers["first"](x)).chunk(2, dim=1)
        y = value * torch.sigmoid(gate)
        return layers["last"](torch.cat([y, y.transpose(2, 3), F.avg_pool2d(F.pad(y, [1, 1, 1, 1]), 3, 1)], dim=1))

    return Net(forward, first=conv(2, 8), both=conv(8, 16), last=conv(24, 2))


def dense() -> nn.Module:
    def forward(layers: Any, x: Tensor) -> Tensor:
        for name in ("a", "b", "c"):
            x = torch.cat([x, torch.relu(layers[name](x))], 1)
        scale = layers["scale"](x.flatten(2).mean(dim=-1))
        return layers["last"](x * scale[:, :, None, None])

    return Net(forward, a=conv(2, 4), b=conv(6, 4), c=conv(10, 4), scale=nn.Linear(14, 14), last=conv(14, 2))


class Scaled(nn.Module):
    """A learned scale a channel, and one convolution run on two sizes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(2, 8), conv(8, 8), conv(8, 2)
        self.scale = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.shift = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x) * self.scale + self.shift
        fine, coarse = torch.relu(self.second(x)), self.second(F.max_pool2d(x, 2))
        return [self.last(fine), self.last(coarse + 1)]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet-2d": (resnet, (2, 16, 16)),
    "resnet-3d": (lambda: resnet(3), (2, 16, 16, 16)),
    "resnet-bottleneck": (lambda: resnet(bottleneck=True, stem_pool=True), (2, 32, 32)),
    "resnet-without-se": (lambda: resnet(se=False, stem="small"), (2, 16, 16)),
    "unet-2d": (unet, (2, 19, 22)),
    "unet-3d": (lambda: unet(3), (2, 12, 12, 12)),
    "unet-group": (lambda: unet(norm_name="group", width=16), (2, 16, 16)),
    "lesion": (lambda: task("lesion").build(), (1, 64, 64)),
    "lesion-3d": (
        lambda: task("lesion", spatial_dims=3, levels=4, backbone={"layers": [1, 1, 1], "width": 16}).build(),
        (1, 32, 32, 32),
    ),
    "lesion-plain": (lambda: task("lesion", context=False, attention=False).build(), (1, 64, 64)),
    "pneumonia": (lambda: task("pneumonia").build(), (1, 48, 48)),
    "segmentation": (lambda: task("segmentation").build(), (1, 64, 64)),
    "separable": (separable, (2, 8, 8)),
    "grouped": (grouped, (2, 8, 8)),
    "flat": (flat, (2, 16, 16)),
    "gated": (gated, (2, 8, 8)),
    "dense": (dense, (2, 8, 8)),
    "scaled": (Scaled, (2, 8, 8)),
}
TOYS = ("separable", "grouped", "flat", "gated", "dense", "scaled")


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    module = build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module, shape


def draw(units: Units, share: float = 0.3, seed: int = 0) -> Kept:
    """Some units of every layer, but never all of one."""
    rng, kept = np.random.default_rng(seed), np.ones(units.count, np.bool_)
    for layer in units.layers:
        gone = min(layer.units - 1, max(1, round(share * layer.units)))
        kept[rng.choice(np.arange(layer.start, layer.stop), gone, replace=False)] = False
    return kept


def indices(units: Units, kept: Kept, name: str, axis: int, extent: int) -> Tensor:
    """What is left of an axis."""
    found = units.axes.get((name, axis), np.full(extent, WHOLE))
    return torch.from_numpy(np.flatnonzero(np.append(kept, True)[found]))


def sliced(module: nn.Module, units: Units, kept: Kept) -> nn.Module:
    """The network with smaller tensors."""
    small = copy.deepcopy(module)
    for path, layer in small.named_modules():
        for own, parameter in list(layer.named_parameters(recurse=False)):
            name = f"{path}.{own}" if path else own
            values = parameter.data
            for axis in range(values.ndim):
                values = values.index_select(axis, indices(units, kept, name, axis, values.shape[axis]))
            if isinstance(layer, nn.GroupNorm):
                each = layer.num_channels // layer.num_groups
                layer.num_groups, layer.num_channels = len(values) // each, len(values)
            elif isinstance(layer, nn.InstanceNorm2d | nn.InstanceNorm3d):
                layer.num_features = len(values)
            elif own == "weight" and getattr(layer, "groups", 1) > 1:
                layer.groups = layer.groups * len(values) // len(parameter)
            setattr(layer, own, nn.Parameter(values.clone()))
    return small


def filled(module: nn.Module, units: Units, kept: Kept, garbage: bool = False) -> nn.Module:
    """The network with zeros in the units that are left out; or with garbage in their filters and norms, and zeros only
    where other filters read them."""
    full, mask = copy.deepcopy(module), units.mask(kept)
    places = {slot.name: mask[slot.offset : slot.offset + slot.size].reshape(slot.shape) for slot in units.layout.slots}
    for path, layer in full.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            gone = torch.from_numpy(~places[name])
            with torch.no_grad():
                parameter[gone] = 0
                if garbage:
                    reads = 0 if isinstance(layer, UPWARD) else 1
                    column = torch.zeros_like(gone)
                    if own == "weight" and parameter.ndim > 1 and (name, reads) in units.axes:
                        left = indices(units, kept, name, reads, parameter.shape[reads])
                        column = torch.ones_like(gone).index_fill(reads, left, False)
                    written = gone & ~column
                    parameter[written] = torch.randn(int(written.sum()), dtype=parameter.dtype)
    return full


def outputs(module: nn.Module, shape: Sequence[int]) -> list[Tensor]:
    image = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(module(image)) if isinstance(leaf, Tensor)]


def same(these: list[Tensor], those: list[Tensor], exact: bool = False) -> bool:
    if exact:
        return all(bool((a == b).all()) for a, b in zip(these, those, strict=True))
    return all(torch.allclose(a, b, rtol=1e-8, atol=1e-9) for a, b in zip(these, those, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sliced_network_computes_what_the_zeroed_one_does(name: str) -> None:
    module, shape = made(name)
    units = network_units(module, shape)
    kept = draw(units)
    small = sliced(module, units, kept)
    zeroed = outputs(filled(module, units, kept), shape)
    assert same(outputs(small, shape), zeroed)
    assert sum(p.numel() for p in small.parameters()) == units.coordinates(kept).size < units.layout.size
    assert not same(outputs(module, shape), zeroed)


def independent(name: str) -> bool:
    """Whether nothing depends on what filters hold that are left out, bit for bit."""
    module, shape = made(name)
    units = network_units(module, shape)
    kept = draw(units)
    garbage = outputs(filled(module, units, kept, garbage=True), shape)
    return same(garbage, outputs(filled(module, units, kept), shape), exact=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_dropped_filter_holds_does_not_matter(name: str) -> None:
    assert independent(name)


class Loose(Follower):
    """The fake: channels of a norm group are dropped one by one."""

    def _group_norm(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels = self._of(inputs[0])
        assert labels is not None
        self._affine(labels.ids, call.get(2, "weight", None), call.get(3, "bias", None))
        return [labels]


class Untied(Follower):
    """The fake: an addition ties nothing."""

    def _same(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        return super()._same(name, call, inputs[:1] if name == "add" else inputs, outputs)


class Swapped(Follower):
    """The fake: a concatenation's offsets are the wrong way round."""

    def _cat(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        found = super()._cat(name, call, inputs, outputs)[0]
        assert found is not None
        return [Labels(found.axis, np.roll(found.ids, len(found.ids) // 2))]


@pytest.mark.parametrize(("fake", "name"), [(Loose, "pneumonia"), (Untied, "pneumonia"), (Swapped, "segmentation")])
def test_a_wrong_map_is_found_out(fake: type[Follower], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "Follower", fake)
    assert not independent(name)


@pytest.mark.parametrize(
    "name", ["lesion", "pneumonia", "segmentation", "full/lesion", "full/pneumonia", "full/segmentation"]
)
def test_the_tasks_networks_are_understood(name: str) -> None:
    built = task(name)
    with torch.device("meta"):
        module = built.build()
    units = task_units(built, module)
    heads = {"head", "output", "cls_logits", "bbox_reg"}
    whole = {path for path in units.kept_whole if path.split(".")[-2] not in heads}
    # the attention's map of places is one channel that weighs all others
    assert all(".place." in path for path in whole)
    first = units.layout.slots[0]
    assert (first.name, 0) in units.axes and (first.name, 1) not in units.axes
    assert 0.55 < units.coordinates(draw(units, 0.25)).size / units.layout.size < 0.58


def test_units_depend_on_neither_weights_nor_extent() -> None:
    built = task("pneumonia")
    one, other = built.build(), built.build()
    assert task_units(built, one).digest == task_units(built, other, (48, 48)).digest
    assert task_units(built, one).digest != network_units(resnet(), (2, 64, 64)).digest


def test_a_unit_is_a_norm_group_and_everything_that_is_added_to_it() -> None:
    units = network_units(resnet(layers=(2,), num_classes=None), (2, 64, 64))
    assert ("stem.0.0.weight", 0) not in units.axes
    assert "output" in units.kept_whole["stem.0.0.weight"]
    units = network_units(resnet(layers=(2,)), (2, 64, 64))
    stream = units.axes["stem.0.0.weight", 0]
    assert len(set(stream)) == 4 and (np.diff(stream.reshape(4, 4)) == 0).all()
    for name, axis in [("stages.0.1.branch.1.weight", 0), ("stages.0.0.branch.0.0.weight", 1), ("head.weight", 1)]:
        assert (units.axes[name, axis] == stream).all()


def shuffled(layers: Any, x: Tensor) -> Tensor:
    y = layers["a"](x)
    return layers["c"](layers["b"](y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)))


def overwritten(layers: Any, x: Tensor) -> Tensor:
    y, z = layers["a"](x), layers["b"](x.repeat(1, 4, 1, 1))
    y = y.clone()
    y[:, :4] = z[:, 4:]
    return layers["c"](y)


def standardised(layers: Any, x: Tensor) -> Tensor:
    weight = layers["b"].weight
    return layers["c"](F.conv2d(layers["a"](x), weight - weight.mean((1, 2, 3), keepdim=True), padding=1))


@pytest.mark.parametrize(
    ("forward", "whole", "reason"),
    [
        (lambda layers, x: layers["c"](layers["b"](layers["a"](x).softmax(1))), {"a"}, "normalised together"),
        (lambda layers, x: layers["c"](layers["b"](layers["a"](x)).sort(1).values), {"b"}, "sort is not"),
        (
            lambda layers, x: layers["c"](layers["b"](layers["a"](x) * layers["a"](x).sum(1, keepdim=True))),
            {"a"},
            "reduced",
        ),
        (shuffled, {"a"}, "split"),
        (overwritten, {"a"}, "overwritten"),
        (standardised, {"a", "b"}, "computed|mean|sub"),
        (lambda layers, x: (layers["c"](layers["b"](layers["a"](x))), layers["a"](x)), {"a"}, "output"),
        (lambda layers, x: layers["c"](F.layer_norm(layers["b"](layers["a"](x)), (8, 8, 8))), {"b"}, "layer_norm"),
    ],
)
def test_what_is_not_understood_stays_whole(forward: Any, whole: set[str], reason: str) -> None:
    network = Net(forward, a=conv(2, 8), b=conv(8, 8), c=conv(8, 2)).double()
    units = network_units(network, (2, 8, 8))
    kept_whole = {path.split(".")[1]: why for path, why in units.kept_whole.items()}
    assert kept_whole.keys() == whole | {"c"}
    for name in whole:
        assert any(part in kept_whole[name] for part in reason.split("|")), kept_whole[name]
    dropped = {name.split(".")[1] for name, axis in units.axes if axis == 0}
    assert dropped == {"a", "b"} - whole
    if units.count:
        kept = draw(units)
        garbage = outputs(filled(network, units, kept, garbage=True), (2, 8, 8))
        assert same(garbage, outputs(filled(network, units, kept), (2, 8, 8)), exact=True)


def test_a_network_that_depends_on_values_is_refused() -> None:
    network = Net(lambda layers, x: layers["a"](x) if x.sum() > 0 else x, a=conv(2, 2))
    with pytest.raises(StudyError, match=r"task\.network"):
        network_units(network, (2, 8, 8))


def test_the_network_is_left_as_it_was() -> None:
    module, shape = made("separable")
    before = [(name, parameter.data_ptr(), parameter.device.type) for name, parameter in module.named_parameters()]
    network_units(module, shape)
    assert before == [(name, p.data_ptr(), p.device.type) for name, p in module.named_parameters()]
