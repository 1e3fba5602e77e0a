"""What GLFC's proxy server does with networks: it rebuilds images from gradients, and scores models on them.

    image    argmin over x of |g(x, label) - g|^2 / |g|^2 from x ~ N(0, 1), by L-BFGS (rate 0.1); g: `prototypes`
    score    mean over the classes of the share of their images that the model gets right

This is the attack of Zhu et al. ("Deep Leakage from Gradients", NeurIPS 2019), run on purpose. On the CPU and in one
thread, so that every coordinator finds the same bits.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.prototypes import Shape, encoder, gradient, label_of, one_thread
from medfl.learning.randomness import generator
from medfl.tasks.base import Task
from medfl.update.vector import FloatVector

_RATE = 0.1
_BATCH = 64
_MATCHED = 1e-8
"""Of the squared gradient: what is left when an image is found."""


class Rebuilder:
    """See `medfl.federation.proxy.Workshop`. edge: pixels of the rebuilt images. size: those of the images that the
    task's network is trained on, None for any."""

    def __init__(self, task: Task, seed: int, edge: int, iterations: int, size: Sequence[int] | None) -> None:
        self._task, self._seed, self._iterations = task, seed, iterations
        self._shape = Shape.of(task.config, edge)
        self._size = [edge] * self._shape.axes if size is None else list(size)
        self._encoder = encoder(self._shape, seed)
        self._network = FlatNetwork(seeded(task.build, seed), torch.device("cpu"))
        self.length = sum(parameter.numel() for parameter in self._encoder.parameters())

    def label(self, values: FloatVector) -> int:
        return label_of(values, self._shape)

    def rebuild(self, values: FloatVector, label: int, start: int) -> npt.NDArray[np.float32] | None:
        wanted = torch.from_numpy(np.array(values, np.float32))
        drawn = generator(self._seed, "glfc-rebuild", label, start).normal(size=(1, *self._shape.image))
        image = torch.from_numpy(drawn.astype(np.float32)).requires_grad_()
        # in units of the first slope: L-BFGS learns nothing from steps whose slopes are tiny
        unit = 1.0
        optimizer = torch.optim.LBFGS([image], lr=_RATE, max_iter=1, tolerance_grad=0, tolerance_change=0)

        def closure() -> Tensor:
            apart = (gradient(self._encoder, image, label, graph=True) - wanted).square().sum() / unit
            image.grad = torch.autograd.grad(apart, image)[0]
            return apart.detach()

        with one_thread():
            closure()
            unit = float(image.grad.abs().mean()) if image.grad is not None else 0.0
            if not 0 < unit < math.inf:
                return None
            least = _MATCHED * float(wanted.double().square().sum()) / unit
            for _ in range(self._iterations):
                if float(optimizer.step(closure)) <= least:  # type: ignore[no-untyped-call]
                    break
        found: npt.NDArray[np.float32] = image.detach().numpy()[0]
        return found if np.isfinite(found).all() else None

    def score(self, model: FloatVector, images: npt.NDArray[np.float32], labels: Sequence[int]) -> float:
        from medfl.tasks.networks.inference import evaluating

        self._network.load(model)
        known, said = np.array(labels, np.int64), list[npt.NDArray[np.int64]]()
        with one_thread(), evaluating(self._network.module):
            for start in range(0, len(known), _BATCH):
                part = torch.from_numpy(images[start : start + _BATCH])
                seen = F.interpolate(part, size=self._size, mode="bilinear" if part.ndim == 4 else "trilinear")
                batch = {"image": seen.numpy(), "label": known[start : start + _BATCH]}
                logits = self._task.logits(self._network.module, self._task.to_device(batch, torch.device("cpu")))
                said.append(logits.argmax(dim=1).numpy())
        right = np.concatenate(said) == known
        return float(np.mean([right[known == label].mean() for label in np.unique(known)]))
