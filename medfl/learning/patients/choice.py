"""Which engine a study may use, found out by trying: an accelerator must give the loop's gradients.

The trial runs on a few of the site's own patients, in double precision, where a wrong gradient cannot hide behind
rounding: in single precision a ReLU at its kink alone moves the gradient of a U-Net by a part in a thousand. The
answer and its reason stay at the site.
"""

import copy
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from medfl.errors import MedflError, StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients.base import PatientBatch, PatientEngine
from medfl.learning.patients.loop import Loop
from medfl.learning.patients.vectorised import Opacus, Vectorised, Vmap, _Cast, chunk_images, merged, stackable, values
from medfl.tasks.base import Task

EngineName = Literal["auto", "loop", "vmap", "opacus"]

LARGEST = 2_000_000
"""Parameters up to which `auto` tries an accelerator: beyond, moving per-sample gradients through memory takes longer
than the loop."""
LARGEST_PICTURE = 4000
"""Values of a 2D image up to which `auto` tries an accelerator on a CPU: beyond, arithmetic takes the time, and not
the calls to small layers that an accelerator saves."""
SMALLEST_CHUNK = 4
TOLERANCE = 1e-6
SEPARABLE = 1e-4
"""Relative difference of losses in single precision."""

_ACCELERATORS: dict[str, type[Vectorised]] = {"vmap": Vmap, "opacus": Opacus}
_CPU = torch.device("cpu")


def choose(
    engine: EngineName, network: FlatNetwork, task: Task, examples: Sequence[PatientBatch]
) -> tuple[PatientEngine, str]:
    """The engine for this network and loss, and why, in words.

    auto: vmap where it is valid and pays, else the loop. An accelerator that is named is used or refused: StudyError
    says why it is not valid. examples: two or more patients of the site (`PatientSampler.examples`).
    """
    device = network.parameters.device
    if engine == "loop":
        return Loop(task, device), "asked for"
    if engine == "auto":
        reason = _not_worth_it(network, task, examples) or fault(Vmap(task, _CPU), network, examples)
        if reason is None:
            return Vmap(task, device), "gives the same gradients as the loop, many patients at a time"
        return Loop(task, device), reason
    if reason := fault(_ACCELERATORS[engine](task, _CPU), network, examples):
        raise StudyError.at("privacy.engine", f"{engine} is not valid here: {reason}", "use auto or loop")
    return _ACCELERATORS[engine](task, device), "asked for; gives the same gradients as the loop"


def _not_worth_it(network: FlatNetwork, task: Task, examples: Sequence[PatientBatch]) -> str | None:
    """Why an accelerator would not be faster, from sizes alone, so that every run of a study decides alike."""
    size = network.layout.size
    if size > LARGEST:
        return f"with {size} parameters an accelerator is no faster"
    if any(stackable(example) is None for example in examples):
        return "images of one patient differ in shape"
    on_cpu = network.parameters.device.type == "cpu"
    if on_cpu and task.config.spatial_dims == 2 and any(values(example) > LARGEST_PICTURE for example in examples):
        return "on a CPU an accelerator is no faster for pictures of this size"
    if any(chunk_images(example, size) < SMALLEST_CHUNK for example in examples):
        return "images are so large that few fit in memory together"
    return None


def fault(engine: Vectorised, network: FlatNetwork, examples: Sequence[PatientBatch]) -> str | None:
    """Why the engine (on the CPU) is not valid for this network and its task's loss; None when it is."""
    if len(examples) < 2:
        return "it cannot be checked: it takes two patients"
    pair = _alike(examples) or examples[:2]
    module = copy.deepcopy(network.module).to(_CPU)
    if reason := _not_separable(engine.task, module, pair):
        return reason
    if stackable(pair[0]) is None or stackable(pair[0]) != stackable(pair[1]):
        return "it cannot be checked: there are no two patients whose images have one shape"
    return _differs(engine, module.double(), pair)


def _alike(examples: Sequence[PatientBatch]) -> Sequence[PatientBatch] | None:
    """Two patients whose images have one shape."""
    shapes = [stackable(example) for example in examples]
    pairs = combinations(range(len(examples)), 2)
    found = next(((i, j) for i, j in pairs if shapes[i] is not None and shapes[i] == shapes[j]), None)
    return None if found is None else [examples[place] for place in found]


def _not_separable(task: Task, module: nn.Module, pair: Sequence[PatientBatch]) -> str | None:
    """Whether the loss of two patients' images is other than the mean of the images' losses."""
    both = merged(pair)
    count = len(next(iter(both.arrays.values())))
    images = [PatientBatch({name: v[n : n + 1] for name, v in both.arrays.items()}) for n in range(count)]
    with torch.no_grad(), torch.random.fork_rng([]):
        try:
            together, *alone = (_loss(task, module, batch).item() for batch in (both, *images))
        except MedflError as error:
            return f"its loss could not be tried: {error}"
    mean = sum(alone) / count
    if abs(together - mean) <= SEPARABLE * abs(mean):
        return None
    return (
        "the loss is not separable, the network or the loss mixes images: "
        f"{together:.4g} for {count} images together, {mean:.4g} as the mean of their losses"
    )


def _differs(engine: Vectorised, module: nn.Module, pair: Sequence[PatientBatch]) -> str | None:
    """Whether the engine's gradients of the module in double precision are other than autograd's, one by one. The
    second patient gets the first one's images too, and so has several for sure."""
    trial = [pair[0], merged(pair)]
    with torch.random.fork_rng([]):
        wanted = [_gradient(engine.task, module, batch) for batch in trial]
        try:
            found = engine.rows(module, trial)
        except (MedflError, RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
            return _in_words(error)
    if not all(bool(row.isfinite().all()) and float(row.norm()) > 0 for row in wanted):
        return "it cannot be checked: an example has no finite gradient, or none at all"
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
    if worst <= TOLERANCE:
        return None
    return f"its gradients differ from the loop's by {worst:.1%}"


def _loss(task: Task, module: nn.Module, batch: PatientBatch) -> Tensor:
    torch.manual_seed(batch.seed)
    return task.loss(module, task.to_device(batch.arrays, _CPU))


def _gradient(task: Task, module: nn.Module, batch: PatientBatch) -> Tensor:
    loss = _loss(task, _Cast(module), batch)
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def _in_words(error: Exception) -> str:
    text = str(error)
    line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "inplace" in text.replace("-", ""):
        return f"a layer acts in place: {line}"
    return f"the network or its loss is not supported: {line}"
