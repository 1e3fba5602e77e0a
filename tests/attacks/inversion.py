"""Gradient inversion: images from the gradient that a site sent.

J. Geiping, H. Bauermeister, H. Dröge, M. Moeller, "Inverting Gradients: How easy is it to break privacy in federated
learning?", NeurIPS 2020 (arXiv 2003.14053): the image whose gradient has the largest cosine similarity with what was
seen, less its total variation, by Adam on the sign of the gradient. The setting is the worst for the site: one image,
one step, its label known, a wide first layer without pooling. Only the direction of what was seen plays a part, so
that a scale (learning rate, clip, denominator) does not matter.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from toys.tasks import Rows, ToyTask, site

from medfl.data.base import SiteData
from medfl.data.synthetic.base import SITE_SHIFTS, scan
from medfl.data.synthetic.chest import chest

Images = npt.NDArray[np.float32]

SIDE = 16
STEPS = 200
SUM_STEPS = 800
TOTAL_VARIATION = 2e-2
_RATE = 0.1


class Pictures(ToyTask):
    """Two classes of 16-pixel images; two convolutions with GroupNorm."""

    def __init__(self) -> None:
        super().__init__(SIDE)

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2),
            nn.GroupNorm(4, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * SIDE**2, 2),
        )

    def supervised(self, logits: Tensor, batch: object) -> Tensor:
        return F.cross_entropy(logits, batch["targets"])  # type: ignore[index]


@cache
def chests(count: int, seed: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """Synthetic chest images [count, 1, 16, 16] in 0..1 of five hospitals' scanners and of bodies of all sizes, half of
    them with pneumonia, and their labels."""
    rng, shifts = np.random.default_rng(seed), list(SITE_SHIFTS.values())
    images, labels = [], []
    for number in range(count):
        body = {"zoom": float(rng.uniform(0.8, 1.3)), "gain": float(rng.uniform(0.7, 1.2)), "prevalence": number % 2}
        shift = shifts[number % len(shifts)].model_copy(update=body)
        phantom = chest(rng, (SIDE, SIDE), shift)
        images.append(np.clip(scan(phantom.clean, shift, rng), 0, 1)[None])
        labels.append(phantom.label)
    return np.stack(images), np.array(labels)


def mean_image() -> Images:
    """What everybody knows without seeing anything [1, 1, 16, 16]: the mean of public chests."""
    return chests(200, 1)[0].mean(axis=0, keepdims=True)


def hospitals(images: Images, labels: npt.NDArray[np.int64]) -> list[SiteData]:
    """A site for each image."""
    return [site(f"s{n:02d}", Rows(images[n : n + 1], labels[n : n + 1])) for n in range(len(labels))]


def psnr(found: Images, truth: Images) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio [N] in dB of images [N, 1, h, w] in 0..1."""
    return -10 * np.log10(((found.astype(np.float64) - truth) ** 2).mean(axis=(1, 2, 3)))


def matched(found: Images, truth: Images) -> npt.NDArray[np.float64]:
    """PSNR [N] of the best pairing, for images that are found in no known order."""
    table = np.stack([psnr(np.broadcast_to(image[None], truth.shape), truth) for image in found])
    return table[linear_sum_assignment(table, maximize=True)]


def invert(
    network: nn.Module, seen: Sequence[npt.NDArray[np.float32]], labels: npt.NDArray[np.int64], seed: int = 0
) -> Images:
    """For each vector [size] that was seen the image [N, 1, 16, 16] that it is the gradient of, as far as that goes."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, weights, (image[None],)), label[None])

    def cost(image: Tensor, target: Tensor, label: Tensor) -> Tensor:
        found = grad(loss)(parameters, image, label)
        flat = torch.cat([found[name].flatten() for name in parameters])
        return _distance(flat, target) + TOTAL_VARIATION * _variation(image)

    targets, wanted = torch.from_numpy(np.stack(seen)), torch.from_numpy(labels)
    images = torch.rand(len(labels), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return _descend(images, lambda x: vmap(cost)(x, targets, wanted).sum(), STEPS)


def invert_sum(
    network: nn.Module, seen: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0
) -> Images:
    """All images [N, 1, 16, 16] at once from the sum [size] of their gradients."""
    parameters, wanted, target = list(network.parameters()), torch.from_numpy(labels), torch.from_numpy(seen)

    def cost(images: Tensor) -> Tensor:
        loss = F.cross_entropy(network(images), wanted, reduction="sum")
        found = torch.autograd.grad(loss, parameters, create_graph=True)
        return _distance(torch.cat([part.flatten() for part in found]), target) + TOTAL_VARIATION * _variation(images)

    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(mean_image()) + 0.05 * torch.randn(len(labels), 1, SIDE, SIDE, generator=generator)
    return _descend(start, cost, SUM_STEPS)


def _distance(found: Tensor, target: Tensor) -> Tensor:
    return 1 - (found * target).sum() / (found.norm() * target.norm() + 1e-12)


def _variation(images: Tensor) -> Tensor:
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def _descend(start: Tensor, cost: object, steps: int) -> Images:
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=_RATE)
    falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * n // 8 for n in (3, 5, 7)], 0.1)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(cost(images), images)  # type: ignore[operator]
        images.grad = gradient.sign()
        optimizer.step()
        falling.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    found: Images = images.detach().numpy()
    return found
