"""Training over sparse updates (algorithms' tests t04 and t13): STC beats FedAvg with fewer bytes, a tenth of the
traffic costs no accuracy, and neither works with a memory that is dropped or a selection that does not look."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import Federated, configured, federation_parts, plugin
from toys.problems import gaussian_classes
from toys.tasks import Classifier, Rows, site

from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.codecs.topk import TopK
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES, Memory
from medfl.update.pipeline import UploadPipeline

Array = npt.NDArray[np.float64]
# what a mean magnitude in a payload's meta would take as a float32
MEAN_BYTES = 4


@dataclass
class End:
    """A sender with its memory: a site, or the coordinator towards all sites."""

    codec: Codec
    memory: Memory
    state: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0

    def send(self, update: Array, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        wanted = self.memory.before(Update(update.astype(np.float32), update.size), self.state)
        payload = self.codec.encode_with(wanted, rng, self.state)
        sent = self.codec.decode(payload, update.size)
        self.memory.after(wanted, lambda: sent, self.state)
        self.bytes += sum(len(buffer) for buffer in payload.buffers) + MEAN_BYTES * ("mean" in payload.meta)
        return sent.dense()


@dataclass
class Softmax:
    """Multinomial logistic regression at sites with equally many rows: features [sites, rows, size + 1]."""

    features: Array
    labels: npt.NDArray[np.int64]
    test: tuple[Array, npt.NDArray[np.int64]]
    classes: int

    @classmethod
    def make(cls, classes: int, size: int, spread: float, shares: Array, rows: int, seed: int) -> "Softmax":
        """shares: of the classes at each site [sites, classes]."""
        rng = np.random.default_rng(seed)
        means = spread * rng.normal(size=(classes, size))

        def drawn(labels: npt.NDArray[np.int64]) -> Array:
            rows = means[labels] + rng.normal(size=(*labels.shape, size))
            return np.concatenate([rows, np.ones((*labels.shape, 1))], axis=-1)

        labels = np.stack([rng.choice(classes, rows, p=share) for share in shares])
        tested = np.arange(4000) % classes
        return cls(drawn(labels), labels, (drawn(tested), tested), classes)

    @property
    def size(self) -> int:
        return int(self.features.shape[-1]) * self.classes

    def local(
        self, x: Array, which: Any, steps: int, rate: float, batch: int | None, rng: np.random.Generator
    ) -> Array:
        """The changes [sites, size] that local steps make of the model [size] at the sites `which`."""
        features, labels = self.features[which], self.labels[which]
        weights = np.repeat(x.reshape(1, -1, self.classes), len(labels), axis=0)
        for _ in range(steps):
            rows, wanted = features, labels
            if batch is not None:
                chosen = rng.integers(labels.shape[1], size=(len(labels), batch))
                rows = np.take_along_axis(features, chosen[..., None], axis=1)
                wanted = np.take_along_axis(labels, chosen, axis=1)
            logits = rows @ weights
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            np.put_along_axis(shares, wanted[..., None], np.take_along_axis(shares, wanted[..., None], -1) - 1, -1)
            gradient = rows.transpose(0, 2, 1) @ shares / rows.shape[1] + 1e-4 * weights
            weights = weights - rate * gradient
        return weights.reshape(len(labels), -1) - x

    def accuracy(self, x: Array) -> float:
        features, labels = self.test
        return float(((features @ x.reshape(-1, self.classes)).argmax(-1) == labels).mean())

    def loss(self, x: Array) -> float:
        logits = self.features @ x.reshape(-1, self.classes)
        logits -= logits.max(-1, keepdims=True)
        wanted = np.take_along_axis(logits, self.labels[..., None], -1)[..., 0]
        return float((np.log(np.exp(logits).sum(-1)) - wanted).mean())


@dataclass(frozen=True)
class Outcome:
    accuracy: float
    loss: float
    up: int
    down: int


def train(
    problem: Softmax,
    rounds: int,
    steps: int,
    rate: float,
    end: Callable[[], End],
    drawn: int | None = None,
    batch: int | None = None,
    down: End | None = None,
) -> Outcome:
    """FedAvg over sparse updates. drawn: sites a round (None: all). down: how the mean travels (None: as it is)."""
    rng = np.random.default_rng(0)
    sites = len(problem.labels)
    ends = [end() for _ in range(sites)]
    x, downlink = np.zeros(problem.size), 0
    for _ in range(rounds):
        which = np.arange(sites) if drawn is None else np.sort(rng.choice(sites, drawn, replace=False))
        changes = problem.local(x, which, steps, rate, batch, rng)
        mean = np.mean([ends[one].send(change, rng) for one, change in zip(which, changes, strict=True)], axis=0)
        downlink += len(which) * (4 * problem.size if down is None else 0)
        x = x + (mean if down is None else down.send(mean, rng))
    return Outcome(problem.accuracy(x), problem.loss(x), sum(one.bytes for one in ends), downlink)


def ends(
    kind: str, memory: str = "error_feedback", codec: type[Codec] | None = None, **settings: Any
) -> Callable[[], End]:
    built = plugin(CODECS, kind, **settings) if codec is None else codec(configured(CODECS, kind, **settings))
    return lambda: End(built, plugin(MEMORIES, memory))


# STC: 20 sites with two classes each, a quarter of them in a round


def two_classes_each() -> Softmax:
    shares = np.zeros((20, 10))
    for number in range(20):
        shares[number, [number % 10, (number * 3 + 1 + number // 10) % 10]] = 0.5
    return Softmax.make(10, 30, 0.38, shares / shares.sum(1, keepdims=True), 150, 0)


def stc_run(memory: str) -> Outcome:
    settings: dict[str, Any] = {"density": 0.02, "coding": "golomb"}
    down = ends("stc", memory, **settings)()
    return train(two_classes_each(), 800, 1, 0.3, ends("stc", memory, **settings), 5, 20, down)


def test_stc_beats_fedavg_with_fewer_bytes() -> None:
    stc, dropped = stc_run("error_feedback"), stc_run("none")
    fedavg = train(two_classes_each(), 16, 50, 0.3, ends("fp32", "none"), drawn=5, batch=20)
    assert stc.up < 0.6 * fedavg.up
    assert stc.accuracy > fedavg.accuracy + 0.02
    assert stc.loss < fedavg.loss - 0.03
    assert not dropped.loss < stc.loss + 0.03


# a tenth of the traffic: 16 skewed sites


def skewed() -> Softmax:
    shares = np.full((16, 8), 0.1 / 6)
    for number in range(16):
        shares[number, number % 8], shares[number, (number + 1) % 8] = 0.7, 0.2
    return Softmax.make(8, 60, 0.45, shares, 120, 0)


class FirstK(TopK):
    """The fake: the first k in place of the largest."""

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        first = np.arange(self.count(update.size))
        kept = Update(np.where(np.arange(update.size) < first.size, update.values, 0), update.size)
        return super().encode(kept, rng)


def test_a_tenth_of_the_traffic_costs_no_accuracy() -> None:
    problem = skewed()

    def run(*arguments: Any, **settings: Any) -> Outcome:
        return train(problem, 120, 5, 0.2, ends(*arguments, **settings))

    dense = run("fp32", "none")
    topk = run("topk", density=0.077, values="fp32")
    personal = run("personal_topk", density=0.1)
    random = run("random_k", density=0.1, values="fp32", scaled=False)
    first = run("topk", density=0.1, codec=FirstK)
    assert topk.accuracy > dense.accuracy - 0.01 and topk.up < 0.11 * dense.up
    assert personal.accuracy > dense.accuracy - 0.01 and personal.up < 0.08 * dense.up
    assert random.accuracy > dense.accuracy - 0.02
    assert not first.accuracy > dense.accuracy - 0.2


@pytest.mark.parametrize(("kind", "memory"), [("topk", "error_feedback"), ("stc", "error_feedback"), ("topk", "dgc")])
def test_a_federation_learns_over_sparse_updates(kind: str, memory: str) -> None:
    """Through the real round, with executor, pipeline, wire format and aggregator."""
    codec = plugin(CODECS, kind, density=0.05)
    sites = [
        site(f"s{number}", Rows(rows.features, rows.targets))
        for number, rows in enumerate(gaussian_classes([60] * 4, 4, 10, 1.0))
    ]
    pipeline = UploadPipeline(plugin(GATES, "always"), plugin(MEMORIES, memory), codec)
    made = Federated(Classifier(10, 4), sites, federation_parts(0.2, 1, codec=codec), pipeline=pipeline)
    outcomes = made.run(30)
    assert outcomes[-1].loss_start < 0.75 * outcomes[0].loss_start
    assert all(mine.counts for outcome in outcomes for mine in outcome.sites.values())
    assert set(made.states["s0"]) >= {"memory.residual"}
