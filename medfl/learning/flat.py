"""A network over one flat tensor: parameters and gradients are views of two contiguous float32 tensors.

Loading a model, clipping, FedProx and the optimiser's step are then each one operation on one tensor.
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medfl.errors import RunError, StudyError
from medfl.update.vector import FloatVector, Layout, rough_square

if TYPE_CHECKING:
    from medfl.tasks.base import Task

_BLOCK = 1 << 18

M = TypeVar("M", bound=nn.Module)


class FlatNetwork:
    """`module` with its parameters moved into `parameters` [size] and its gradients into `parameters.grad` [size].

    StudyError when the module has buffers: running statistics must not be averaged, so medfl's networks have none.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise StudyError.at(
                "task.network",
                f"has buffers that cannot be averaged: {', '.join(buffers[:5])}",
                "use GroupNorm or InstanceNorm",
            )
        self.module = module.to(device)
        named = list(self.module.named_parameters())
        self.layout = Layout.of((name, tuple(parameter.shape)) for name, parameter in named)
        self.parameters = nn.Parameter(torch.empty(self.layout.size, dtype=torch.float32, device=device))
        self._gradient = torch.zeros_like(self.parameters, requires_grad=False)
        self.parameters.grad = self._gradient
        _move(named, self.layout, self.parameters.data, self._gradient)

    @property
    def gradient(self) -> Tensor:
        """The flat gradient [size], which the parameters' gradients are views of."""
        # an optimiser's zero_grad drops the attribute, never the memory
        self.parameters.grad = self._gradient
        return self._gradient

    def load(self, vector: FloatVector) -> None:
        """Copy `vector` [size] into the network; RunError when it is of another size."""
        if vector.shape != (self.layout.size,):
            raise RunError.at("model", f"has shape {vector.shape}, the network holds {self.layout.size} values")
        with torch.no_grad():
            self.parameters.copy_(_tensor(vector))

    def change(self, model: FloatVector, out: FloatVector) -> bool:
        """Write the parameters minus `model` [size] to `out` [size] on the CPU; whether all of it is finite."""
        parameters, squared = self.parameters.detach().cpu().numpy(), 0.0
        for start in range(0, out.size, _BLOCK):
            place = slice(start, start + _BLOCK)
            block = np.subtract(parameters[place], model[place], out=out[place])
            # while the block is in the cache; squares of finite values may still pass the range
            squared += rough_square(block)
        return math.isfinite(squared) or bool(np.isfinite(out).all())

    def store(self) -> FloatVector:
        """A copy of the parameters [size] on the CPU."""
        return self.parameters.detach().to("cpu", copy=True).numpy()


def _move(named: Iterable[tuple[str, nn.Parameter]], layout: Layout, values: Tensor, gradients: Tensor) -> None:
    for (_, parameter), slot in zip(named, layout.slots, strict=True):
        place = slice(slot.offset, slot.offset + slot.size)
        view = values[place].view(slot.shape)
        view.copy_(parameter.data)
        parameter.data = view
        parameter.grad = gradients[place].view(slot.shape)


def _tensor(vector: FloatVector) -> Tensor:
    # torch warns about read-only memory although nothing here writes to it
    return torch.from_numpy(vector if vector.flags.writeable else np.array(vector))


def seeded(build: Callable[[], M], seed: int) -> M:
    """The module that `build` makes with torch's generator at `seed`; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def initial_vector(task: "Task", seed: int) -> tuple[FloatVector, Layout]:
    """The vector of a freshly initialised network, on the CPU."""
    flat = FlatNetwork(seeded(task.build, seed), torch.device("cpu"))
    return flat.store(), flat.layout
