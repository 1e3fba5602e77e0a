"""Engines that show the network many patients at once and still get each one's gradient.

They hold for networks that treat the samples of a batch apart, and losses that are the mean of the samples' losses; a
patient's gradient is then the mean of the gradients of the patient's samples. `medfl.learning.patients.choice` checks
both before an engine is used.

CPU milliseconds a patient with one image, one thread (size of the image, parameters):

    network                              loop    vmap  opacus
    SE-ResNet, 28 x 28, 78 000            5.5     2.5     2.6
    SE-ResNet, 96 x 96, 78 000             20      29      37
    SE-ResNet-18, 64 x 64, 11 million     138     209     216
    U-Net, 32 x 32, 480 000                21      16      18
    U-Net, 128 x 128, 480 000              78      95     136
    U-Net, 32 x 32 x 32, 85 000           302     104     335
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from medfl.errors import RunError, StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients.base import PatientBatch, PatientEngine
from medfl.learning.patients.loop import Loop

MOST_IMAGES = 64
GRADIENT_BYTES = 256 * 2**20
"""Gradients of a chunk's samples together."""
IMAGE_VALUES = 2**18
"""Values of a chunk's images together; activations take some hundred times as much."""


class Vectorised(PatientEngine):
    """Splits patients into chunks that fit in memory. Patients whose samples differ in shape, or are more than a
    chunk, go through the loop."""

    @abstractmethod
    def per_sample(self, module: nn.Module, batch: Any) -> list[Tensor]:
        """Gradients [B, *shape] of the samples' own losses, one tensor a parameter in order. The module is afterwards
        as it was. RunError or torch's own errors when this cannot be done."""

    def gradients(self, network: FlatNetwork, batches: Iterable[PatientBatch]) -> Iterator[Tensor]:
        loop = Loop(self.task, self.device)
        for chunk in _chunks(batches, network.layout.size):
            if stackable(chunk[0]) is None or len(chunk) == 1:
                yield from loop.gradients(network, chunk)
            else:
                yield self.rows(network.module, chunk)

    def rows(self, module: nn.Module, chunk: Sequence[PatientBatch]) -> Tensor:
        """The gradients [p, size] of patients whose samples have one shape."""
        batch = self.task.to_device(merged(chunk).arrays, self.device)
        samples = torch.cat([found.flatten(1) for found in self.per_sample(module, batch)], dim=1)
        counts = [_count(patient) for patient in chunk]
        if max(counts) == 1:
            return samples
        return torch.stack([part.mean(dim=0) for part in torch.split(samples, counts)])


class Vmap(Vectorised):
    """torch.func: backward through one sample, vectorised over the batch. Needs nothing but torch."""

    name = "vmap"

    def per_sample(self, module: nn.Module, batch: Any) -> list[Tensor]:
        tap = _Tap(module)
        loss = self.task.loss(tap, batch)
        images, logits = tap.seen()
        (cotangents,) = torch.autograd.grad(loss * len(images), logits)
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

        def backward(image: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda given: functional_call(module, given, (image[None],)), parameters)[1]
            found: dict[str, Tensor] = pull(cotangent[None])[0]
            return found

        return list(vmap(backward)(images, cotangents).values())


class Opacus(Vectorised):
    """Opacus' per-sample gradient hooks (Yousefpour et al. 2021, arXiv 2109.12298), without its wrapper, optimiser or
    accountant. Needs the extra `dp`."""

    name = "opacus"

    def __init__(self, task: Any, device: torch.device) -> None:
        super().__init__(task, device)
        try:
            from opacus.grad_sample.grad_sample_module import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
                GradSampleHooks,
            )
        except ImportError as error:
            raise StudyError.at("privacy.engine", "opacus is not installed", "pip install 'medfl[dp]'") from error
        self._hooks = GradSampleHooks

    def per_sample(self, module: nn.Module, batch: Any) -> list[Tensor]:
        known = {part: set(part.__dict__) for part in module.modules()}
        hooks = self._hooks(module, loss_reduction="mean")
        try:
            with warnings.catch_warnings():
                # the first layer's input, an image, needs no gradient
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                self.task.loss(_Cast(module), batch).backward()  # type: ignore[no-untyped-call]
            return [_hooked(name, parameter) for name, parameter in module.named_parameters()]
        finally:
            hooks.cleanup()
            for part, names in known.items():
                for name in set(part.__dict__) - names:
                    delattr(part, name)


def _hooked(name: str, parameter: nn.Parameter) -> Tensor:
    found: Any = getattr(parameter, "grad_sample", None)
    if not isinstance(found, Tensor):
        raise RunError.at(name, "got no per-sample gradient")
    return found


class _Cast(nn.Module):
    """The network, for images of any float type."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.dtype = next(module.parameters()).dtype

    def forward(self, images: Tensor) -> Any:
        return self.module(images.to(self.dtype))


class _Tap(_Cast):
    """The network without gradient of its own; remembers what it saw and what it said."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            logits = super().forward(images)
        if not isinstance(logits, Tensor):
            raise RunError.at("network", "gives more than one tensor")
        self._seen.append((images.to(self.dtype), logits.requires_grad_()))
        return logits

    def seen(self) -> tuple[Tensor, Tensor]:
        """Images [B, ..] and logits [B, ..] of the only call."""
        if len(self._seen) != 1:
            raise RunError.at("loss", f"calls the network {len(self._seen)} times")
        return self._seen[0]


def stackable(batch: PatientBatch) -> tuple[Any, ...] | None:
    """What two batches must have in common to be merged; None when a batch has arrays of different shapes."""
    if not all(isinstance(values, np.ndarray) for values in batch.arrays.values()):
        return None
    return tuple((name, values.dtype, values.shape[1:]) for name, values in sorted(batch.arrays.items()))


def merged(batches: Sequence[PatientBatch]) -> PatientBatch:
    """The samples of several batches as those of one; what does not stack becomes a list."""
    found: dict[str, Any] = {}
    for name in batches[0].arrays:
        parts = [batch.arrays[name] for batch in batches]
        shapes = {array.shape for part in parts for array in part if isinstance(array, np.ndarray)}
        whole = all(isinstance(part, np.ndarray) for part in parts) and len(shapes) <= 1
        found[name] = np.concatenate(parts) if whole else [array for part in parts for array in part]
    return PatientBatch(found)


def _count(batch: PatientBatch) -> int:
    return len(next(iter(batch.arrays.values())))


def _chunks(batches: Iterable[PatientBatch], size: int) -> Iterator[list[PatientBatch]]:
    """Neighbours of one shape, as many as fit; each unstackable or very large patient alone."""
    chunk: list[PatientBatch] = []
    shape: tuple[Any, ...] | None = None
    images = most = 0
    for batch in batches:
        found, count = stackable(batch), _count(batch)
        if chunk and (found is None or found != shape or images + count > most):
            yield chunk
            chunk, images = [], 0
        if not chunk:
            shape, most = found, 1 if found is None else chunk_images(batch, size)
        chunk.append(batch)
        images += count
    if chunk:
        yield chunk


def chunk_images(batch: PatientBatch, size: int) -> int:
    """Samples like these that may go through a network of `size` parameters at once."""
    return max(1, min(MOST_IMAGES, GRADIENT_BYTES // (4 * size), IMAGE_VALUES // values(batch)))


def values(batch: PatientBatch) -> int:
    """Values of one image."""
    found: int = max(math.prod(np.shape(array)[1:]) for array in batch.arrays.values())
    return max(1, found)
