"""The units of a network: which filters it can do without, and where their values lie in the flat vector.

Channels are followed through one forward pass (`medfl.learning.provenance`). A unit is a smallest set of channels that
can go together: residual additions tie the filters of all layers that are added into a stream, a GroupNorm ties the
channels of a group (without them the statistics of the other groups stay as they are), a concatenation keeps them
apart. The network's inputs and outputs, and every layer that is not understood, stay whole.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from medfl.errors import StudyError
from medfl.learning.provenance import Follower
from medfl.update.submodels.units import WHOLE, UnitLayer, Units
from medfl.update.vector import Layout

if TYPE_CHECKING:
    from medfl.tasks.base import Task

log = logging.getLogger(__name__)

_SIDE = 256
"""Pixels a side of the image that is never made, for tasks that take any size: the deepest U-Net halves it 7 times."""
_BATCH = 2


def task_units(task: "Task", module: nn.Module, size: Sequence[int] | None = None) -> Units:
    """The units of a task's network `module`. size: of its images, where the study says it. StudyError as
    `network_units`."""
    space = tuple(size) if size is not None else (_SIDE,) * task.config.spatial_dims
    return network_units(module, (task.config.in_channels, *space))


def network_units(module: nn.Module, shape: Sequence[int]) -> Units:
    """The units of a network that takes an image of `shape` [channels, ..]. They depend on the network alone, not on
    its weights nor on the extent of the image.

    StudyError when the network cannot be followed at all.
    """
    named = list(module.named_parameters())
    layout = Layout.of((name, tuple(parameter.shape)) for name, parameter in named)
    follower = _follow(module, shape)
    units = _units(follower, layout)
    for name, why in units.kept_whole.items():
        log.info("%s is kept whole: %s", name, why)
    return units


def _follow(module: nn.Module, shape: Sequence[int]) -> Follower:
    parameters = {name: torch.empty(parameter.shape, device="meta") for name, parameter in module.named_parameters()}
    buffers = {name: torch.empty_like(buffer, device="meta") for name, buffer in module.named_buffers()}
    image = torch.empty((_BATCH, *shape), device="meta")
    follower = Follower(parameters)
    follower.source(image, "it reads the network's input")
    try:
        with torch.no_grad(), torch.device("meta"), follower:
            result = functional_call(module, {**parameters, **buffers}, (image,))
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise StudyError.at(
            "task.network",
            f"its filters cannot be followed with an image of shape {list(shape)}: {error}",
            "choose another update.submodel, or a network whose forward pass does not depend on values",
        ) from error
    follower.sink((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), "it makes the network's output")
    return follower


def _units(follower: Follower, layout: Layout) -> Units:
    """Number the sets of channels that may be dropped, layer by layer in the layout's order."""
    pinned = follower.ties.pinned()
    made: dict[int, list[str]] = defaultdict(list)
    for slot in layout.slots:
        for root in _roots(follower, follower.producers.get(slot.name, np.zeros(0, np.int64))):
            made[root].append(slot.name)
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for root, names in made.items():
        if root not in pinned:
            alike[tuple(names)].append(root)
    numbers: dict[int, int] = {}
    layers: list[UnitLayer] = []
    kept_whole: dict[str, str] = {}
    for together, roots in alike.items():
        if len(roots) > 1:
            layers.append(UnitLayer(together[0], len(numbers), len(numbers) + len(roots)))
            numbers |= {root: len(numbers) + place for place, root in enumerate(roots)}
        else:
            kept_whole |= dict.fromkeys(together, "all its filters go together")
    for root, names in made.items():
        if root in pinned:
            kept_whole |= dict.fromkeys(names, pinned[root])
    followed = {name for name, _ in follower.axes}
    for slot in layout.slots:
        if len(slot.shape) > 1 and slot.name not in followed:
            kept_whole[slot.name] = follower.opaque.get(slot.name, "no layer that is understood uses it")
    axes = {}
    for (name, axis), ids in follower.axes.items():
        units = np.array([numbers.get(follower.ties.root(label), WHOLE) for label in ids.tolist()], np.int64)
        if (units != WHOLE).any():
            axes[name, axis] = units
    partly = {name for root in numbers for name in made[root]}
    whole = {name: why for name, why in kept_whole.items() if name not in partly}
    return Units(layout, tuple(layers), axes, whole)


def _roots(follower: Follower, ids: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[int]:
    """The sets of these labels, each once, in their order."""
    return list(dict.fromkeys(follower.ties.root(label) for label in ids.tolist()))
