"""What a site tells the proxy server of its new classes (GLFC; Dong et al., "Federated Class-Incremental Learning",
CVPR 2022): the gradient of a small common network for one image of each class.

    prototype   of a class: the image whose features are nearest to their mean over the class; in a run always the same
    perturbed   x <- x - rate * dCE(head(phi(x) + noise * s * N(0, 1)), y)/dx, a few times    s: the class's deviation
    encoder     four convolutions with sigmoids and one linear layer; drawn from the study's seed, and never trained
    gradient    dCE(encoder(x), y)/dparameters, float32 [length], the last layer's weight and bias at the end

The gradient gives the label away by construction: of its last layer, the row of the label alone sums to less than zero.
It also gives the image away, which is what the proxy server uses it for: so an order for a round that was answered
before, whatever model comes with it, gets no other image of a class ("lasting.glfc.shown.<class>" in the site's private
arrays, the SHA-256 of the image's key). The noise follows the study's seed, which the coordinator knows, for a round
that is trained again must give the same bits: it protects nobody.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfl.learning.exemplars import features, given, last_layer
from medfl.learning.flat import seeded
from medfl.learning.randomness import generator, torch_seed
from medfl.learning.rules.base import LocalContext
from medfl.tasks.images import network_input
from medfl.update.memories.base import LASTING
from medfl.update.vector import FloatVector

if TYPE_CHECKING:
    from medfl.tasks.base import TaskConfig

SHOWN = f"{LASTING}glfc.shown"
"""Private arrays by class: the digest uint8 [32] of the image whose gradient was made to be sent."""

log = logging.getLogger(__name__)

_FILTERS, _KERNEL = 12, 5
_STEPS, _RATE = 50, 0.2
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the images that the encoder sees: channels, number of axes, pixels of each; and the classes that it knows."""

    channels: int
    axes: int
    edge: int
    classes: int

    @classmethod
    def of(cls, task: "TaskConfig", edge: int) -> "Shape":
        return cls(task.in_channels, task.spatial_dims, edge, len(task.classes))

    @property
    def image(self) -> tuple[int, ...]:
        """[C, *space]."""
        return (self.channels, *[self.edge] * self.axes)

    @property
    def last(self) -> int:
        """What goes into the last layer."""
        return int(_FILTERS * (-(-self.edge // 4)) ** self.axes)


class Encoder(nn.Module):
    """Logits [B, classes] of images [B, C, *space]. The weights are uniform in -0.5..0.5: wide enough for an image to
    be found from a gradient."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        kind: Any = nn.Conv2d if shape.axes == 2 else nn.Conv3d
        channels = [shape.channels, *[_FILTERS] * 4]
        layers = list[nn.Module]()
        for number, stride in enumerate((2, 2, 1, 1)):
            layers += [
                kind(channels[number], channels[number + 1], _KERNEL, stride=stride, padding=_KERNEL // 2),
                nn.Sigmoid(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(shape.last, shape.classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits


def encoder(shape: Shape, seed: int) -> Encoder:
    """The study's, on the CPU: the same wherever it is made."""
    return seeded(lambda: Encoder(shape), torch_seed(seed, "glfc-encoder"))


def gradient(network: Encoder, images: Tensor, label: int, graph: bool = False) -> Tensor:
    """Of the cross entropy of images [1, C, *space], by the encoder's parameters [length]. graph: to differentiate it
    once more."""
    loss = F.cross_entropy(network(images), torch.tensor([label]))
    found = torch.autograd.grad(loss, list(network.parameters()), create_graph=graph)
    return torch.cat([part.reshape(-1) for part in found])


def label_of(values: FloatVector, shape: Shape) -> int:
    """The class of the image that a gradient [length] is of: the last layer's row with the least sum."""
    rows = values[-shape.classes * (shape.last + 1) : -shape.classes].reshape(shape.classes, shape.last)
    return int(rows.astype(np.float64).sum(axis=1).argmin())


def prototypes(
    context: LocalContext, classes: Sequence[int], edge: int, noise: float
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """The gradients [k, length], on the CPU, of one perturbed image of each of these classes that the site has fresh
    samples of; and which samples they are [k]. Nothing of a class whose image of before is gone. The network and
    torch's generator are as before afterwards."""
    feed, shape = given(context), Shape.of(context.task.config, edge)
    network, rng = encoder(shape, context.seed), generator(context.seed, "glfc-prototype", context.round, context.site)
    found, chosen = list[Tensor](), list[int]()
    with one_thread():
        for label in classes:
            own = feed.indices[feed.labels[feed.indices] == label]
            if not len(own):
                continue
            rows = features(context, own)
            index = _chosen(context, int(label), own, rows)
            if index is None:
                log.warning("site %s: the image it showed of class %d is gone; it shows no other", context.site, label)
                continue
            image = perturbed(context, index, int(label), noise * rows.std(axis=0), rng)
            seen = F.interpolate(image.cpu(), size=[edge] * shape.axes, mode="area")
            found.append(gradient(network, seen, int(label)))
            chosen.append(index)
    return torch.stack(found) if found else torch.zeros(0, 0), np.array(chosen, np.int64)


def _chosen(context: LocalContext, label: int, own: npt.NDArray[np.int64], rows: npt.NDArray[np.float64]) -> int | None:
    """Of a class's samples [n] with features [n, f] the nearest to the mean, among those of the image that was shown of
    it before, if one was; from now on that is the one. None when that image is not among them."""
    name, samples = f"{SHOWN}.{label}", given(context).samples
    images = np.stack([_digest(samples.info(int(index)).key) for index in own])
    may = (images == context.state.get(name, images)).all(axis=1)
    if not may.any():
        return None
    apart = ((rows - rows.mean(axis=0)) ** 2).sum(axis=1)
    best = int(np.where(may, apart, np.inf).argmin())
    context.state[name] = images[best].copy()
    return int(own[best])


def _digest(key: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(sha256(key.encode()).digest(), np.uint8)


def perturbed(
    context: LocalContext, index: int, label: int, spread: npt.NDArray[np.float64], rng: np.random.Generator
) -> Tensor:
    """One of the site's images as the network sees it [1, C, *space], moved down the cross entropy of its noisy
    features. spread: deviations [f] of the noise, for features of norm 1."""
    raw = given(context).samples.batch(np.array([index]))["image"]
    image = network_input(np.stack([np.asarray(raw[0])]), context.device)
    module, target = context.network.module, torch.tensor([label], device=context.device)

    def noisy(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        drawn = torch.from_numpy((spread * rng.normal(size=spread.shape)).astype(np.float32)).to(context.device)
        return (inputs[0] + inputs[0].detach().norm() * drawn,)

    training = module.training
    module.eval()
    hook = last_layer(module, len(context.task.config.classes)).register_forward_pre_hook(noisy)
    try:
        for _ in range(_STEPS):
            image = image.detach().requires_grad_()
            loss = F.cross_entropy(module(image), target)
            image = image - _RATE * torch.autograd.grad(loss, image)[0]
    finally:
        hook.remove()
        module.train(training)
    return image.detach()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever process this is; afterwards as many threads as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
