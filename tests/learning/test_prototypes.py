"""What leaves a site for the proxy server, and what can be read off it: the label always, and the image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import CPU, local_parts, plugin, values
from toys.pictures import Pictures, Reader, smooth
from toys.resuming import Dying, Training, same
from toys.tasks import site

from medfl.data.plans.base import PLANS
from medfl.learning import prototypes
from medfl.learning.checkpoint import FileEpochStore
from medfl.learning.executor import SiteExecutor
from medfl.learning.exemplars import features
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.prototypes import Shape, encoder, gradient, label_of
from medfl.learning.rebuilding import Rebuilder
from medfl.learning.rules.base import RULES, LocalContext
from medfl.learning.rules.glfc import Glfc, GlfcConfig
from medfl.tasks.base import TaskConfig
from medfl.tasks.images import network_input
from medfl.update.memories.base import SiteState

EDGE, CLASSES = 8, 12
Vector = npt.NDArray[np.float32]


def shape(classes: int = CLASSES, edge: int = EDGE, axes: int = 2, channels: int = 1) -> Shape:
    return Shape(channels, axes, edge, classes)


# the label


def greatest(found: Vector, of: Shape) -> int:
    """The fake: the row with the greatest sum."""
    return label_of(-found, of)


@pytest.mark.parametrize(("read", "right"), [(label_of, 200), (greatest, 0)])
def test_the_label_can_be_read_off_every_gradient(read: Callable[[Vector, Shape], int], right: int) -> None:
    rng, found = np.random.default_rng(0), 0
    for number in range(200):
        label = int(rng.integers(CLASSES))
        of = shape(edge=4 + number % 5)
        image = torch.from_numpy(rng.normal(size=(1, *of.image)).astype(np.float32))
        found += read(gradient(encoder(of, number), image, label).numpy(), of) == label
    assert found == right


@pytest.mark.parametrize("of", [shape(2, 32, 2, 3), shape(3, 9, 3), shape(100, 32)], ids=str)
def test_channels_axes_and_sizes_are_as_the_study_has_them(of: Shape) -> None:
    network = encoder(of, 3)
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, *of.image)).astype(np.float32))
    found = gradient(network, image, of.classes - 1)
    assert network(image).shape == (1, of.classes)
    assert found.numel() == sum(part.numel() for part in network.parameters())
    assert label_of(found.numpy(), of) == of.classes - 1


def test_the_encoder_follows_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = [part.clone() for part in encoder(shape(), 7).parameters()]
    torch.manual_seed(6)
    before = torch.get_rng_state()
    again = list(encoder(shape(), 7).parameters())
    assert all(map(torch.equal, one, again))
    assert torch.equal(torch.get_rng_state(), before)
    assert not all(map(torch.equal, one, encoder(shape(), 8).parameters()))


def test_the_size_is_as_the_rule_s_page_says() -> None:
    for classes in (2, 12):
        count = sum(part.numel() for part in encoder(shape(classes, 32), 0).parameters())
        assert count == pytest.approx(11_000 + 769 * classes, abs=200)


# the image


def like(found: Any, truth: Any) -> float:
    return float(np.corrcoef(np.ravel(found), np.ravel(truth))[0, 1])


@pytest.mark.parametrize(("iterations", "good"), [(250, True), (0, False)])
def test_the_image_can_be_rebuilt_from_the_gradient(iterations: int, good: bool) -> None:
    """The fake does not search."""
    rebuilder, rng = Rebuilder(Reader(CLASSES, EDGE), 0, EDGE, iterations, None), np.random.default_rng(3)
    for number in range(5):
        image = smooth(rng, EDGE)
        told = gradient(encoder(shape(), 0), torch.from_numpy(image[None]), number).numpy()
        found = rebuilder.rebuild(told, number, 0)
        assert found is not None and found.shape == image.shape
        assert (like(found, image) > 0.95) == good


def test_it_is_the_same_for_the_same_start_and_another_for_another_label() -> None:
    rebuilder, image = Rebuilder(Reader(CLASSES, EDGE), 0, EDGE, 20, None), smooth(np.random.default_rng(4), EDGE)
    told = gradient(encoder(shape(), 0), torch.from_numpy(image[None]), 2).numpy()
    found = rebuilder.rebuild(told, 2, 0)
    np.testing.assert_array_equal(found, rebuilder.rebuild(told, 2, 0))
    assert not np.array_equal(found, rebuilder.rebuild(told, 2, 1))
    assert like(rebuilder.rebuild(told, 3, 0), image) < 0.9


@pytest.mark.parametrize("value", [0.0, 1e30, -1e38])
def test_gradients_that_no_image_has_are_harmless(value: float) -> None:
    rebuilder = Rebuilder(Reader(CLASSES, EDGE), 0, EDGE, 30, None)
    found = rebuilder.rebuild(np.full(rebuilder.length, value, np.float32), 1, 0)
    assert found is None or np.isfinite(found).all()


# the score


def test_the_score_is_the_mean_over_the_classes() -> None:
    task = Reader(3, EDGE, hidden=())
    images = np.stack([np.full((1, EDGE, EDGE), 0.0, np.float32) for _ in range(4)])
    images[:, 0, 0, 0] = 5
    network = torch.nn.Linear(EDGE**2, 3)
    vector = torch.cat([torch.zeros_like(network.weight).flatten(), torch.tensor([1.0, 0, 0])]).numpy()
    rebuilder = Rebuilder(task, 0, EDGE, 1, None)
    assert rebuilder.score(vector, images, [0, 0, 0, 1]) == 0.5
    assert rebuilder.score(vector, images, [1, 2, 2, 1]) == 0


def test_images_are_brought_to_the_size_of_the_task_s() -> None:
    task = Reader(2, 16, hidden=())
    rebuilder = Rebuilder(task, 0, EDGE, 1, (16, 16))
    model = rebuilder._network.store()
    assert 0 <= rebuilder.score(model, np.ones((2, 1, EDGE, EDGE), np.float32), [0, 1]) <= 1


# at the site


class Watched(Glfc):
    """Keeps its last context and what the network looked like before and after."""

    seen: LocalContext
    alike: bool

    def _propose(self, context: LocalContext, classes: Sequence[int]) -> None:
        network = context.network
        before = torch.get_rng_state(), network.parameters.detach().clone(), network.gradient.clone()
        super()._propose(context, classes)
        after = torch.get_rng_state(), network.parameters.detach(), network.gradient
        self.alike = all(map(torch.equal, before, after)) and network.module.training

    def begin(self, context: LocalContext) -> None:
        super().begin(context)
        self.seen = context


class Hospital:
    """One site with two classes a task and two rounds for each."""

    def __init__(self, kind: type[Watched] = Watched, **settings: Any) -> None:
        rng = np.random.default_rng(2)
        means = [smooth(rng, EDGE) for _ in range(4)]
        self.labels = np.repeat(np.arange(4), 9)
        noise = 0.3 * rng.normal(size=(len(self.labels), 1, EDGE, EDGE))
        self.rows = Pictures(np.stack([means[label] for label in self.labels]) + noise, self.labels)
        self.rule = kind(GlfcConfig(old_model="proxy", prototype_size=EDGE, **settings))
        plan = plugin(PLANS, "class_stream", classes_per_task=2, rounds_per_task=2)
        self.made = SiteExecutor(local_parts(Reader(4, EDGE), plan=plan, rules=[self.rule], batch_size=9), CPU)
        self.model = self.made.network.store()
        self.state: SiteState = {}
        self.counted = 0

    def round(self, number: int, name: str = "a", counts: bool = True, **old_models: Any) -> TrainReply:
        """counts: whether the coordinator admits the update, as later orders tell."""
        self.state |= {f"local.old_models.{key}": value for key, value in old_models.items()}
        order = TrainOrder(name, number, values(0.2, 2), counted=self.counted)
        self.counted = number if counts else self.counted
        return self.made.train(site(name, self.rows), order, self.model, self.state)


def sent(reply: TrainReply) -> list[Vector]:
    if reply.prototypes is None:
        return []
    length = sum(part.numel() for part in encoder(shape(4), 0).parameters())
    assert reply.prototypes.codec == "fp32"
    return list(np.frombuffer(reply.prototypes.buffers[0], np.float32).reshape(-1, length))


def test_a_site_tells_of_its_new_classes_in_its_first_round_and_at_each_switch() -> None:
    made = Hospital()
    labels = [[label_of(row, shape(4)) for row in sent(made.round(number))] for number in (1, 2, 3, 4)]
    assert labels == [[0, 1], [], [2, 3], []]
    assert made.rule.alike, "the network, its gradient and torch's generator are as before"


class TellsOnce(Watched):
    """The fake: what did not count is lost."""

    def begin(self, context: LocalContext) -> None:
        context.state.pop("glfc.offer", None)
        context.state.pop("glfc.offered", None)
        super().begin(context)


def told_while_nothing_counts(kind: type[Watched]) -> list[list[Vector]]:
    made = Hospital(kind)
    return [sent(made.round(number, counts=number not in (1, 3))) for number in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(("kind", "good"), [(Watched, True), (TellsOnce, False)])
def test_what_did_not_count_is_told_again_bit_for_bit_until_it_did(kind: type[Watched], good: bool) -> None:
    first, again, switch, later, done = told_while_nothing_counts(kind)
    assert len(first) == len(switch) == 2 and not done
    assert (len(again) == 2 and np.array_equal(first, again)) == good
    assert (len(later) == 2 and np.array_equal(switch, later)) == good


def test_what_did_not_count_before_a_switch_is_told_with_what_is_new() -> None:
    made = Hospital()
    first, again = (sent(made.round(number, counts=False)) for number in (1, 2))
    both = sent(made.round(3, counts=False))
    assert [label_of(row, shape(4)) for row in both] == [0, 1, 2, 3]
    assert np.array_equal(first, again) and np.array_equal(first, both[:2])
    assert np.array_equal(both, sent(made.round(4))) and not sent(made.round(5))
    assert not {"glfc.offer", "glfc.offered"} & made.state.keys(), "what counted is not kept"


@pytest.mark.parametrize(("counts", "told"), [(True, 0), (False, 2)])
def test_a_site_that_lost_its_arrays_does_not_tell_again_what_was_heard(counts: bool, told: int) -> None:
    """The coordinator would refuse it for a class's second time, and be told it again in every round to come."""
    made = Hospital()
    made.round(1, counts=counts)
    made.state.clear()
    assert len(sent(made.round(2))) == told
    before = dict(made.state)
    made.round(3, counts=counts)
    made.state = before
    assert [label_of(row, shape(4)) for row in sent(made.round(4))] == [2, 3][:told]


def test_without_a_proxy_server_nothing_is_told() -> None:
    made = Hospital()
    made.rule.config = made.rule.config.model_copy(update={"old_model": "own"})
    assert all(made.round(number).prototypes is None for number in (1, 2, 3))


def test_the_image_is_the_one_nearest_to_the_mean_of_its_class() -> None:
    made = Hospital()
    made.round(1)
    context = made.rule.seen
    context.network.load(made.model)
    _, chosen = prototypes.prototypes(context, [0, 1], EDGE, 0.1)
    for label, index in enumerate(chosen):
        own = np.flatnonzero(made.labels == label)
        rows = features(context, own)
        assert index == own[np.linalg.norm(rows - rows.mean(axis=0), axis=1).argmin()]


def test_what_is_told_is_one_slightly_moved_image_which_the_coordinator_finds() -> None:
    made = Hospital()
    rows = sent(made.round(1))
    context = made.rule.seen
    context.network.load(made.model)
    _, chosen = prototypes.prototypes(context, [0, 1], EDGE, 0.1)
    truth = network_input(made.rows.features[chosen], CPU).numpy()
    rebuilder = Rebuilder(Reader(4, EDGE), 0, EDGE, 250, None)
    for label, row in enumerate(rows):
        plain = gradient(encoder(shape(4), 0), torch.from_numpy(truth[label : label + 1]), label).numpy()
        assert not np.array_equal(row, plain), "it is perturbed"
        found = rebuilder.rebuild(row, label, 0)
        # the perturbation protects nobody
        assert like(found, truth[label]) > 0.9


def test_the_same_round_tells_the_same_and_sites_differ_in_their_noise() -> None:
    one, again, other = (Hospital().round(1, name) for name in "aab")
    np.testing.assert_array_equal(sent(one), sent(again))
    assert not np.array_equal(sent(one), sent(other))


# the teacher


def vector(made: Hospital, value: float) -> Vector:
    return np.full_like(made.model, value)


def switched(made: Hospital) -> Hospital:
    """After the first round of the second task, before the models came."""
    for number in (1, 2, 3):
        made.round(number)
    return made


def test_in_the_round_of_a_switch_the_old_model_is_the_received_one() -> None:
    made = switched(Hospital())
    np.testing.assert_array_equal(made.state["glfc.old_model"], made.model)
    assert "glfc.best_model" not in made.state


@pytest.mark.parametrize(("since", "expected"), [(3, 0.01), (2, 0.02), (1, 0.02)])
def test_the_teacher_is_the_best_of_the_task_that_the_site_left(since: int, expected: float) -> None:
    """It last trained in its former task in round 2: the federation's present task had begun, or not yet."""
    made = switched(Hospital())
    both = {"previous": vector(made, 0.01), "current": vector(made, 0.02)}
    made.round(4, **both, since=np.array([since]))
    np.testing.assert_array_equal(made.state["glfc.old_model"], vector(made, expected))
    assert not any("local.old_models" in name for name in made.state)


def test_a_site_that_is_new_learns_from_the_task_before() -> None:
    made = Hospital()
    made.round(3)
    assert "glfc.old_model" not in made.state
    made.round(4, previous=vector(made, 0.01), current=vector(made, 0.02), since=np.array([3]))
    np.testing.assert_array_equal(made.state["glfc.old_model"], vector(made, 0.01))


def test_models_that_come_in_the_round_of_another_switch_are_too_old() -> None:
    made = Hospital()
    made.round(1)
    made.round(3, previous=vector(made, 0.01), current=vector(made, 0.02), since=np.array([2]))
    np.testing.assert_array_equal(made.state["glfc.old_model"], made.model)


def test_the_shape_is_the_task_s() -> None:
    config = TaskConfig(kind="toy", spatial_dims=3, in_channels=2, classes=("a", "b", "c"))
    assert Shape.of(config, 16) == Shape(2, 3, 16, 3) and Shape.of(config, 16).image == (2, 16, 16, 16)


# resume


def test_a_killed_training_at_a_switch_tells_the_same(tmp_path: Path) -> None:
    made, plan = Hospital(), plugin(PLANS, "class_stream", classes_per_task=2, rounds_per_task=1)
    rule = plugin(RULES, "glfc", old_model="proxy", prototype_size=EDGE)
    training = Training(Reader(4, EDGE), made.rows, {"plan": plan, "rules": [rule]}, rate=0.2, round=1)
    training.state, training.round = training.run()[1], 2
    expected = training.run()
    with pytest.raises(SystemExit):
        training.run(Dying(tmp_path / "kept", 2))
    found = training.run(FileEpochStore(tmp_path / "kept", "run", min_seconds=0))
    assert same(found, expected)
    # no order says that the first round's counted
    assert len(sent(expected[0])) == 4 and np.array_equal(sent(found[0]), sent(expected[0]))
