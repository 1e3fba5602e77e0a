"""Sites that receive, train and send a part of a network, in the order of the sub-model contract."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from medfl.federation.aggregation.base import AGGREGATORS, Aggregator
from medfl.learning.filters import network_units
from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.partial import PartialTraining
from medfl.update.base import Update
from medfl.update.codecs.base import CODECS
from medfl.update.memories.base import SiteState
from medfl.update.parts import embedded, taken
from medfl.update.submodels.base import Choice, Setup, SubModel
from medfl.update.vector import FloatVector
from toys.parts import CPU, plugin

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Holding:
    """What a site has: images [N, ..] and labels [N] to train on, and others to validate on."""

    images: Images
    labels: Labels
    held_images: Images
    held_labels: Labels


@dataclass
class Partly:
    """A federation of holdings, all by themselves; `step` and `measure` are what a task would do."""

    build: Callable[[], nn.Module]
    holdings: list[Holding]
    submodel: SubModel
    drawn: int
    epochs: int
    batch: int
    rate: float
    seed: int = 0
    aggregator: Aggregator = field(default_factory=lambda: plugin(AGGREGATORS, "masked_mean"))
    up_bytes: int = 0
    down_bytes: int = 0
    trained: int = 0

    def __post_init__(self) -> None:
        self.network = FlatNetwork(seeded(self.build, self.seed), CPU)
        self.model = self.network.store()
        self.first = self.model.copy()
        shape = self.holdings[0].images.shape[1:]
        units = lambda: network_units(self.network.module, shape)  # noqa: E731
        self.submodel.bind(Setup(self.network.layout, self.seed, units, self.first.copy))
        self.chooser = self.submodel.chooser()
        self.states: list[SiteState] = [{} for _ in self.holdings]
        self.codec = plugin(CODECS, "fp32")
        self.done = 0

    @property
    def size(self) -> int:
        return self.network.layout.size

    def round(self) -> FloatVector | None:
        """The change of the model; None when nobody sent anything."""
        self.done += 1
        rng = np.random.default_rng([self.seed, self.done])
        cohort = sorted(rng.choice(len(self.holdings), self.drawn, replace=False))
        self.aggregator.start(self.size)
        losses = {}
        for number in cohort:
            update, loss = self.visit(int(number), rng)
            self.aggregator.add(update, len(self.holdings[number].labels))
            losses[f"s{number}"] = loss
        self.chooser.learn(self.done, losses)
        change = self.aggregator.result()
        if change is not None:
            self.model += change
        return change

    def visit(self, number: int, rng: np.random.Generator) -> tuple[Update, float]:
        """One site's round, both ends."""
        choice = self.chooser.choose(f"s{number}", self.done, rng)
        down = taken(self.model, self.chooser.down(choice)).tobytes()
        self.down_bytes += len(down) + len(json.dumps(dict(choice.content)))

        there, state = (
            Choice(choice.site, choice.round, json.loads(json.dumps(dict(choice.content)))),
            self.states[number],
        )
        values = np.frombuffer(bytearray(down), np.float32)
        received = embedded(Update(values, values.size), self.submodel.down(there, state), self.size).dense()
        start = self.submodel.begin(there, received, state, lambda model: self.accuracy(model, self.holdings[number]))
        self.network.load(start.values)
        loss = self.train(
            self.holdings[number], PartialTraining(self.network, torch.from_numpy(start.values), start.trains), rng
        )
        change = self.network.store() - received
        values = taken(change, start.sends)
        payload = self.codec.encode(Update(values, values.size), rng)

        self.up_bytes += sum(len(buffer) for buffer in payload.buffers) + len(start.notice)
        up = self.chooser.up(choice, start.notice)
        return embedded(self.codec.decode(payload, self.size if up is None else up.size), up, self.size), loss

    def train(self, holding: Holding, part: PartialTraining, rng: np.random.Generator) -> float:
        """Plain SGD; the mean loss of the last epoch."""
        images, labels = torch.from_numpy(holding.images), torch.from_numpy(holding.labels)
        optimizer = torch.optim.SGD([self.network.parameters], lr=self.rate)
        self.network.module.train()
        losses: list[float] = []
        for _ in range(self.epochs):
            losses = []
            for chosen in torch.from_numpy(rng.permutation(len(labels))).split(self.batch):
                self.network.gradient.zero_()
                loss = F.cross_entropy(self.network.module(images[chosen]), labels[chosen])
                loss.backward()
                part.direction()
                optimizer.step()
                part.hold()
                losses.append(float(loss.detach()))
        self.trained += 1
        return float(np.mean(losses))

    def accuracy(self, model: FloatVector, holding: Holding) -> float:
        self.network.load(model)
        with torch.no_grad():
            found = self.network.module(torch.from_numpy(holding.held_images)).argmax(1).numpy()
        return float((found == holding.held_labels).mean())

    def personal(self) -> float:
        """Mean over the sites of what each site's own model reaches on its own cases."""
        pairs = zip(self.holdings, self.states, strict=True)
        return float(np.mean([self.accuracy(self.submodel.personal(self.model, state), own) for own, state in pairs]))

    def overall(self) -> float:
        """What the global model reaches on the cases of all sites."""
        held = [(own.held_images, own.held_labels) for own in self.holdings]
        everything = Holding(*held[0], *(np.concatenate(part) for part in zip(*held, strict=True)))
        return self.accuracy(self.model, everything)


def few_classes(
    sites: int, classes: int, each: int, cases: int, shape: tuple[int, ...], spread: float, seed: int = 0
) -> list[Holding]:
    """Class means of `spread` with unit noise; every site has `cases` cases of `each` classes, and half as many to
    validate on."""
    rng = np.random.default_rng([seed, 99])
    means = spread * rng.normal(size=(classes, *shape))

    def cases_of(own: Any, count: int) -> tuple[Images, Labels]:
        labels = rng.choice(own, count)
        return (means[labels] + rng.normal(size=(count, *shape))).astype(np.float32), labels

    found = []
    for number in range(sites):
        own = (number + np.arange(each) * max(1, classes // each)) % classes
        found.append(Holding(*cases_of(own, cases), *cases_of(own, max(20, cases // 2))))
    return found
