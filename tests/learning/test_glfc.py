"""GLFC at one site: its loss, its exemplars, its old model, and how it finds that the task switched."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys.parts import CPU, local_parts, plugin, values
from toys.resuming import Dying, Training, same
from toys.tasks import Classifier, Rows, site

from medfl.data.plans.base import PLANS
from medfl.data.plans.class_stream import EXEMPLARS
from medfl.errors import StudyError
from medfl.learning.checkpoint import FileEpochStore
from medfl.learning.executor import SiteExecutor
from medfl.learning.exemplars import features, herding, last_layer, renewed
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.rules import glfc
from medfl.learning.rules.base import RULES, LocalContext
from medfl.learning.rules.glfc import Glfc, GlfcConfig, compensated, mean_entropy
from medfl.update.memories.base import SiteState

SIZE, CLASSES = 6, 4
RNG = np.random.default_rng(0)
MEANS = 3 * RNG.normal(size=(CLASSES, SIZE))
LABELS = np.repeat(np.arange(CLASSES), 12)
ROWS = Rows(MEANS[LABELS] + RNG.normal(size=(len(LABELS), SIZE)), LABELS)


class Watched(Glfc):
    """Keeps its last context."""

    seen: LocalContext

    def begin(self, context: LocalContext) -> None:
        super().begin(context)
        self.seen = context


class Hospital:
    """One site with two classes a task and one round for each, unless changed."""

    def __init__(self, rule: type[Watched] = Watched, rounds: int = 1, rows: Rows = ROWS, **settings: Any) -> None:
        self.rule = rule(GlfcConfig(**settings))
        plan = plugin(PLANS, "class_stream", classes_per_task=2, rounds_per_task=rounds)
        task = Classifier(SIZE, CLASSES)
        task.hidden = 16
        self.made = SiteExecutor(local_parts(task, plan=plan, rules=[self.rule], batch_size=8), CPU)
        self.rows = rows
        self.state: SiteState = {}
        self.model = self.made.network.store()

    def round(self, number: int, epochs: float = 20, rate: float = 0.5) -> TrainReply:
        reply = self.made.train(
            site("a", self.rows), TrainOrder("a", number, values(rate, epochs)), self.model, self.state
        )
        assert reply.payload is not None
        self.sent = np.frombuffer(reply.payload.buffers[0], np.float32)
        return reply

    def both(self) -> "Hospital":
        """The first round of the first task, and of the second."""
        self.round(1)
        self.model = self.model + self.sent
        self.round(2)
        return self


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def crossed(z: Any, t: Any) -> Any:
    """Binary cross entropy, value by value."""
    return -(t * np.log(sigmoid(z)) + (1 - t) * np.log(1 - sigmoid(z)))


# the loss


def by_hand(z: Any, y: Any, is_old: Any) -> float:
    weights = np.array([abs(sigmoid(z[i, y[i]]) - 1) for i in range(len(y))])
    for group in (is_old, ~is_old):
        if group.any():
            weights[group] /= weights[group].mean()
    return float(np.mean([weights[i] * crossed(z[i], np.eye(z.shape[1])[y[i]]).mean() for i in range(len(y))]))


def over_the_batch(logits: Tensor, onehot: Tensor, is_old: Tensor) -> Tensor:
    """The fake: weights are normalised over all samples, so old classes count for what little of them is there."""
    return compensated(logits, onehot, torch.zeros_like(is_old))


@pytest.mark.parametrize("old", [[0, 1], [], [0, 1, 2, 3]])
def test_gradient_compensation_is_as_written(old: list[int]) -> None:
    z = RNG.normal(0, 3, (20, CLASSES))
    y = RNG.integers(0, CLASSES, 20)
    is_old = np.isin(y, old)
    given_ = torch.from_numpy(z), torch.eye(CLASSES, dtype=torch.float64)[torch.from_numpy(y)], torch.from_numpy(is_old)
    expected = by_hand(z, y, is_old)
    assert float(compensated(*given_)) == pytest.approx(expected, rel=1e-9)
    assert (float(over_the_batch(*given_)) == pytest.approx(expected, rel=1e-9)) == (len(old) != 2)


def test_samples_that_are_learned_already_weigh_nothing_and_stay_finite() -> None:
    logits = torch.full((3, 2), -200.0, requires_grad=True)
    onehot = torch.tensor([[1.0, 0.0]] * 3)
    learned = logits + 400 * onehot
    loss = compensated(learned, onehot, torch.tensor([True, False, False]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def loss_of(made: Hospital, chosen: npt.NDArray[np.int64]) -> float:
    context = made.rule.seen
    context.chosen = chosen
    batch = context.task.to_device(ROWS.batch(chosen), CPU)
    return float(made.rule.loss(context, context.network.module, batch).detach())


def logits_of(made: Hospital, model: Any, chosen: Any) -> Any:
    made.made.network.load(model)
    with torch.no_grad():
        return made.made.network.module(torch.from_numpy(ROWS.features[chosen])).numpy().astype(np.float64)


def test_the_first_task_has_no_old_model() -> None:
    made = Hospital()
    made.round(1)
    chosen = np.array([0, 3, 13, 20])
    z = logits_of(made, made.model, chosen)
    assert loss_of(made, chosen) == pytest.approx(by_hand(z, LABELS[chosen], np.zeros(4, bool)), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_later_tasks_keep_to_the_old_model_at_all_but_new_classes(share: float) -> None:
    made = Hospital(distillation=share).both()
    kept = made.state[EXEMPLARS]
    chosen = np.concatenate([kept[0][kept[1] < 2][:3], [24, 30, 40, 47]])
    targets = np.eye(CLASSES)[LABELS[chosen]]
    soft = sigmoid(logits_of(made, made.state["glfc.old_model"], chosen))
    targets[:, :2] = soft[:, :2]
    now = RNG.normal(0, 0.3, made.model.shape).astype(np.float32)
    z = logits_of(made, now, chosen)
    hard = by_hand(z, LABELS[chosen], LABELS[chosen] < 2)
    expected = (1 - share) * hard + share * crossed(z, targets).mean()
    assert loss_of(made, chosen) == pytest.approx(expected, rel=1e-5)


# the old model


def test_a_switch_makes_the_classes_old_and_the_model_the_old_one() -> None:
    made = Hospital()
    made.round(1)
    assert made.state["glfc.old_classes"].tolist() == []
    assert made.state["glfc.new_classes"].tolist() == [0, 1]
    assert "glfc.old_model" not in made.state
    made.model = made.model + made.sent
    made.round(2)
    assert made.state["glfc.old_classes"].tolist() == [0, 1]
    assert made.state["glfc.new_classes"].tolist() == [2, 3]
    np.testing.assert_array_equal(made.state["glfc.old_model"], made.model)


class TakesTheLast(Watched):
    """The fake: the model received at the switch, whatever it knows."""

    def _best(self, context: LocalContext) -> Any:
        return context.anchor.numpy().copy()


@pytest.mark.parametrize(("rule", "good"), [(Watched, True), (TakesTheLast, False)])
def test_the_old_model_is_the_best_so_far(rule: type[Watched], good: bool) -> None:
    """A site that missed the switch receives a model that has forgotten its classes."""
    made = Hospital(rule, rounds=2)
    made.round(1)
    knows = made.model = made.model + made.sent
    made.round(2)
    made.model = RNG.normal(size=knows.shape).astype(np.float32)
    made.round(3)
    assert np.array_equal(made.state["glfc.old_model"], knows) == good


def test_looking_at_models_leaves_the_network_and_the_generator_alone() -> None:
    drawn = []

    class Looks(Watched):
        def begin(self, context: LocalContext) -> None:
            before = torch.get_rng_state()
            super().begin(context)
            drawn.append(bool((torch.get_rng_state() == before).all()))
            torch.testing.assert_close(context.network.parameters.detach(), context.anchor, rtol=0, atol=0)
            assert context.network.module.training

    Hospital(Looks, detect="entropy").both()
    assert drawn == [True, True]


# when the task switches


@pytest.mark.parametrize(
    ("entropies", "switches"),
    [
        ([1.0, 0.5, 0.6, 0.4], []),
        ([1.0, 0.4, 0.8, 0.7, 0.3], [2]),
        # it goes on rising with the first rounds of the new task: one switch
        ([1.0, 0.4, 0.8, 1.3, 0.9, 0.3], [2]),
        ([1.0, 0.4, 0.8, 1.3, 0.9, 0.3, 0.7], [2, 6]),
        ([2.0, 2.0], []),
    ],
)
def test_a_rise_of_entropy_is_one_switch(
    entropies: list[float], switches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    left = iter(entropies)

    class Tells(Watched):
        def _switched(self, context: LocalContext) -> bool:
            told.append(super()._switched(context))
            return told[-1]

    monkeypatch.setattr(glfc, "mean_entropy", lambda _: next(left))
    made = Hospital(Tells, rounds=1000, detect="entropy", rise=0.1)
    for number in range(len(entropies)):
        made.round(number + 1, 1)
    assert [number for number, switched in enumerate(told) if switched] == switches


def test_entropy_is_that_of_the_samples_that_are_no_exemplars() -> None:
    made = Hospital(detect="entropy")
    made.round(1)
    uniform = mean_entropy(torch.zeros(3, CLASSES))
    assert uniform == pytest.approx(np.log(CLASSES))
    fresh = logits_of(made, made.model, np.flatnonzero(LABELS < 2))
    assert made.state["glfc.entropy"][0] == pytest.approx(mean_entropy(torch.from_numpy(fresh)), rel=1e-5)
    made.model = made.model + made.sent
    made.round(2)
    fresh = logits_of(made, made.model, np.flatnonzero(LABELS >= 2))
    assert made.state["glfc.entropy"][0] == pytest.approx(mean_entropy(torch.from_numpy(fresh)), rel=1e-5)


def test_a_new_class_within_a_task_is_learned_as_new() -> None:
    made = Hospital(rounds=2, detect="entropy", rise=100)
    for number in (1, 3):
        made.round(number, 1)
    assert made.state["glfc.old_classes"].tolist() == []
    assert made.state["glfc.new_classes"].tolist() == [0, 1, 2, 3]


# exemplars


def apart(rows: Any, chosen: Any) -> float:
    return float(np.linalg.norm(rows[chosen].mean(axis=0) - rows.mean(axis=0)))


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000))
def test_herding_chooses_each_row_once_and_smaller_choices_begin_larger_ones(rows: int, count: int, seed: int) -> None:
    found = np.random.default_rng(seed).normal(size=(rows, 3))
    order = herding(found, count)
    assert len(set(order.tolist())) == len(order) == min(rows, count)
    np.testing.assert_array_equal(order[: count // 2], herding(found, count // 2))


def test_herding_is_nearer_to_the_mean_than_chance_or_the_first() -> None:
    rows = RNG.normal(size=(200, 10))
    chance = np.mean([apart(rows, RNG.choice(200, 10, replace=False)) for _ in range(50)])
    assert apart(rows, herding(rows, 10)) < 0.3 * chance
    assert not apart(rows, np.arange(10)) < 0.3 * chance


def test_the_memory_is_shared_equally_and_the_best_stay() -> None:
    made = Hospital(memory=20)
    made.round(1)
    first = made.state[EXEMPLARS]
    assert np.bincount(first[1]).tolist() == [10, 10]
    made.model = made.model + made.sent
    made.round(2)
    second = made.state[EXEMPLARS]
    assert np.bincount(second[1]).tolist() == [5, 5, 5, 5]
    np.testing.assert_array_equal(LABELS[second[0]], second[1])
    for number in (0, 1):
        np.testing.assert_array_equal(second[0][second[1] == number], first[0][first[1] == number][:5])


@pytest.mark.parametrize(("memory", "kept"), [(0, 0), (1, 4), (7, 4), (8, 8), (10**6, 48)])
def test_the_memory_keeps_at_least_one_a_class_unless_it_is_none(memory: int, kept: int) -> None:
    made = Hospital(memory=memory).both()
    assert made.state[EXEMPLARS].shape == (2, kept)
    assert made.state[EXEMPLARS].dtype == np.int64


def test_classes_that_are_gone_keep_what_they_had() -> None:
    kept = np.array([[3, 1, 7], [0, 0, 1]])
    labels = np.array([2, 0, 2, 0, 2, 1, 1, 1])
    found = renewed(kept, labels, np.array([0, 2, 4]), 1, lambda: np.array([[0.0], [5.0], [4.0]]))
    assert found.tolist() == [[3, 7, 4], [0, 1, 2]]


def test_features_are_those_of_the_last_layer_at_norm_one() -> None:
    made = Hospital()
    made.round(1)
    context = made.rule.seen
    chosen = np.array([5, 1, 30] * 5)
    found = features(context, chosen)
    hidden: nn.Module = context.network.module[:-1]  # type: ignore[index]
    with torch.no_grad():
        expected = hidden(torch.from_numpy(ROWS.features[chosen])).numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    layer = last_layer(context.network.module, CLASSES)
    assert not layer._forward_pre_hooks


def test_a_network_without_a_head_of_logits_is_refused() -> None:
    with pytest.raises(StudyError, match="one linear layer with a logit a class"):
        last_layer(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), 4)


def test_without_sight_of_samples_it_is_refused() -> None:
    made = Hospital()
    order = TrainOrder("a", 1, values(0.1))
    with pytest.raises(StudyError, match="may see none"):
        made.made._begin(order, made.model, {}, 1)


# resume


def second_round(**settings: Any) -> Training:
    """A site in the first round of its second task."""
    task = Classifier(SIZE, CLASSES)
    task.hidden = 16
    plan = plugin(PLANS, "class_stream", classes_per_task=2, rounds_per_task=1)
    local = {"plan": plan, "rules": [plugin(RULES, "glfc", memory=8, **settings)]}
    _, state = Training(task, ROWS, local, rate=0.2, round=1).run()
    return Training(task, ROWS, local, state=state, rate=0.2)


@pytest.mark.parametrize("detect", ["plan", "entropy"])
def test_a_killed_training_goes_on_to_the_bit(detect: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = second_round(detect=detect, rise=0.01)
    expected = training.run()
    with pytest.raises(SystemExit):
        training.run(Dying(tmp_path / "kept", 2))
    with caplog.at_level(logging.INFO, "medfl.learning.resume"):
        found = training.run(FileEpochStore(tmp_path / "kept", "run", min_seconds=0))
    assert "goes on after step" in caplog.text
    assert same(found, expected)
    # the fake: a site that lost its private arrays
    training.state = {}
    assert not same(training.run(), expected)
