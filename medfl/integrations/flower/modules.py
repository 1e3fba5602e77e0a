"""Any torch module as ONE flat vector: Flower makes a request for each tensor, which ruins models of many."""

from typing import TYPE_CHECKING

from medfl.errors import RunError
from medfl.update.vector import FloatVector, Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


def layout_of(module: "nn.Module") -> Layout:
    """Where each floating-point tensor of the module's state lies in its vector. Integers, such as counters, stay."""
    return Layout.of((name, tuple(tensor.shape)) for name, tensor in _state(module).items())


def pack(module: "nn.Module") -> FloatVector:
    """The module's state as a vector of its own, as float32."""
    return layout_of(module).pack({name: tensor.float().numpy() for name, tensor in _state(module).items()})


def unpack(module: "nn.Module", vector: FloatVector) -> None:
    """Copy a vector into the module; RunError when it is of another size."""
    import torch

    views = layout_of(module).views(vector)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in views:
                tensor.copy_(torch.tensor(views[name]))


def _state(module: "nn.Module") -> "dict[str, Tensor]":
    found = {n: t.detach().cpu() for n, t in module.state_dict().items() if t.is_floating_point()}
    if not found:
        raise RunError.at("model", "has no floating-point state", "give a module with parameters")
    return found
