"""Labels of channels: which belong together, and where they are after values have been moved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]

# values of a tensor of labels that may be copied to see where the channels are after a reshape
_MAX_COPIED = 1 << 22


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a tensor's channels: ids [shape[axis]]."""

    axis: int
    ids: Ids


class Ties:
    """Sets of labels that belong together, and why some are pinned."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._why: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def tie(self, these: Ids, those: Ids) -> None:
        for one, other in zip(these.tolist(), those.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parent[high] = low

    def pin(self, ids: Ids, why: str) -> None:
        for label in ids.tolist():
            self._why.setdefault(label, why)

    def pinned(self) -> dict[int, str]:
        """Why, by root."""
        found: dict[int, str] = {}
        for label, why in self._why.items():
            found.setdefault(self.root(label), why)
        return found


class NotUnderstood(Exception):
    """A function was used in a way that the rules do not cover."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a torch function."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def get(self, place: int, name: str, *default: Any) -> Any:
        """An argument by its place or name; NotUnderstood when it is missing and has no default."""
        if place < len(self.args):
            return self.args[place]
        if name in self.kwargs:
            return self.kwargs[name]
        if default:
            return default[0]
        raise NotUnderstood(f"{name} is missing")


def reshaped(shadow: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of labels in another shape; NotUnderstood when it would take much memory."""
    try:
        return shadow.view(shape)
    except RuntimeError:
        if shadow.numel() > _MAX_COPIED:
            raise NotUnderstood("its channels are reshaped") from None
        return shadow.reshape(shape)


def read(shadow: Tensor) -> Labels:
    """The labels of a tensor of labels; NotUnderstood unless they differ along exactly one axis."""
    axes = [axis for axis in range(shadow.ndim) if shadow.shape[axis] > 1 and shadow.stride(axis)]
    varying = [axis for axis in axes if not bool((shadow == shadow.narrow(axis, 0, 1)).all())]
    if len(varying) != 1:
        raise NotUnderstood("its channels are split or picked apart")
    axis = varying[0]
    ids = shadow.movedim(axis, 0).flatten(1)[:, 0] if shadow.ndim > 1 else shadow
    return Labels(axis, ids.to(torch.int64).numpy().copy())
