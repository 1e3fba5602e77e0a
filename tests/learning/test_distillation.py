"""U-FedDO's distillation: the student, the teacher that stays, and what lives on between rounds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys.parts import CPU, local_parts, plugin, values
from toys.problems import gaussian_classes
from toys.tasks import Classifier, Rows, site

from medfl.errors import RunError, StudyError
from medfl.learning.executor import SiteExecutor
from medfl.learning.flat import seeded
from medfl.learning.messages import TrainOrder
from medfl.learning.rules.base import RULES, LocalContext
from medfl.learning.rules.distillation import Distillation, DistillationConfig, softened_divergence
from medfl.update.memories.base import SiteState

SIZE, CLASSES, BATCH = 6, 4, 16
DATA = gaussian_classes([50, 40], CLASSES, SIZE, 1.0)
ROWS = [Rows(rows.features, rows.targets) for rows in DATA]


def task(teacher: int | None = 12) -> Classifier:
    made = Classifier(SIZE, CLASSES)
    made.hidden, made.teacher = 3, teacher
    return made


def executor(rule: Any, teacher: int | None = 12, **changes: Any) -> SiteExecutor:
    return SiteExecutor(local_parts(task(teacher), rules=[rule], batch_size=BATCH, **changes), CPU)


def distillation(**settings: Any) -> Distillation:
    built: Distillation = plugin(RULES, "distillation", **settings)
    return built


def train(made: SiteExecutor, state: SiteState, number: int = 0, round_: int = 1, epochs: int = 2) -> Any:
    order = TrainOrder(f"s{number}", round_, values(0.1, epochs))
    model = seeded(task().build, 0)
    vector = made.network.layout.pack({name: value.detach().numpy() for name, value in model.named_parameters()})
    reply = made.train(site(f"s{number}", ROWS[number]), order, vector, state)
    assert reply.payload is not None
    return np.frombuffer(reply.payload.buffers[0], np.float32)


def teacher_of(state: SiteState) -> npt.NDArray[np.float32]:
    return state["distillation.teacher"]


class TeacherByHand:
    """The teacher trained outside medfl on the batches that the executor drew, Adam and clip included."""

    def __init__(self, settings: DistillationConfig) -> None:
        self.network = seeded(lambda: task().build_local() or nn.Identity(), 0)
        rate, decay = settings.teacher_learning_rate, settings.teacher_weight_decay
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, weight_decay=decay)
        self.limit = settings.gradient_clip

    def learn(self, batches: list[list[int]]) -> npt.NDArray[np.float32]:
        for batch in batches:
            self.optimizer.zero_grad()
            logits = self.network(torch.from_numpy(ROWS[0].features[batch]))
            F.cross_entropy(logits, torch.from_numpy(ROWS[0].targets[batch])).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.limit)
            self.optimizer.step()
        return np.concatenate([value.detach().numpy().ravel() for value in self.network.parameters()])


def distance_by_hand(rule: Distillation, rounds: int = 4) -> float:
    """How far the teacher of several rounds is from one that was trained without a break."""
    made, state, hand = executor(rule), dict[str, Any](), TeacherByHand(rule.config)
    for round_ in range(1, rounds + 1):
        ROWS[0].asked.clear()
        train(made, state, round_=round_)
        expected = hand.learn(ROWS[0].asked)
    return float(np.abs(teacher_of(state) - expected).max())


class FreshTeacher(Distillation):
    """The fake: forgets the teacher at the start of every round."""

    def begin(self, context: LocalContext) -> None:
        context.state.clear()
        super().begin(context)


class FreshMoments(Distillation):
    """The fake: keeps the teacher and forgets its optimiser."""

    def begin(self, context: LocalContext) -> None:
        for name in [name for name in context.state if name != "distillation.teacher"]:
            del context.state[name]
        super().begin(context)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_teacher_continues_exactly_over_rounds(decay: float) -> None:
    settings = DistillationConfig(teacher_learning_rate=0.02, teacher_weight_decay=decay)
    assert distance_by_hand(Distillation(settings)) < 1e-5
    assert distance_by_hand(FreshTeacher(settings)) > 1e-2
    assert distance_by_hand(FreshMoments(settings)) > 1e-3


def test_a_restored_state_continues_to_the_bit() -> None:
    state: SiteState = {}
    made = executor(distillation())
    train(made, state)
    kept = {name: array.copy() for name, array in state.items()}
    expected = train(made, state, round_=2).tobytes()
    assert train(executor(distillation()), kept, round_=2).tobytes() == expected
    assert {name: array.tobytes() for name, array in kept.items()} == {
        name: array.tobytes() for name, array in state.items()
    }


def test_teachers_of_two_sites_do_not_meet() -> None:
    alone: SiteState = {}
    train(executor(distillation()), alone, 1)
    shared, first, second = executor(distillation()), dict[str, Any](), dict[str, Any]()
    train(shared, first, 0)
    train(shared, second, 1)
    assert teacher_of(second).tobytes() == teacher_of(alone).tobytes()
    assert teacher_of(second).tobytes() != teacher_of(first).tobytes()
    before = teacher_of(first).copy()
    train(shared, second, 1, round_=2)
    np.testing.assert_array_equal(teacher_of(first), before)


def test_alpha_zero_is_supervised_training_to_the_bit() -> None:
    distilled = train(executor(distillation(alpha=0)), {})
    plain = train(executor(plugin(RULES, "sgd")), {})
    assert distilled.tobytes() == plain.tobytes()
    assert train(executor(distillation(alpha=0.5)), {}).tobytes() != plain.tobytes()


def test_the_student_teaches_the_teacher_nothing() -> None:
    states: list[SiteState] = [{}, {}, {}]
    for state, alpha in zip(states, (0.0, 0.5, 1.0), strict=True):
        train(executor(distillation(alpha=alpha)), state)
    assert len({teacher_of(state).tobytes() for state in states}) == 1


def test_the_loss_is_the_papers() -> None:
    rule = distillation(alpha=0.3, temperature=2.5)
    made = executor(rule)
    context = made._begin(TrainOrder("s0", 1, values(0.1)), made.network.store(), {}, 1)
    batch = made.parts.task.to_device(ROWS[0].batch(list(range(10))), CPU)
    assert made.local is not None
    with torch.no_grad():
        z_t, z_s = made.local.module(batch["features"]), made.network.module(batch["features"])
    loss = rule.loss(context, made.network.module, batch)
    p, q = torch.softmax(z_t / 2.5, 1), torch.softmax(z_s / 2.5, 1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.7 * F.cross_entropy(z_s, batch["targets"]) + 0.3 * 2.5**2 * divergence
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    made.network.gradient.zero_()
    before = made.local.gradient.clone()
    loss.backward()
    assert made.network.gradient.any() and torch.equal(made.local.gradient, before)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4), (2, 3, 4, 4, 2)])
def test_divergence_is_a_mean_over_positions(shape: tuple[int, ...]) -> None:
    teacher, student = torch.randn(shape), torch.randn(shape)
    rows_t = teacher.movedim(1, -1).reshape(-1, 3)
    rows_s = student.movedim(1, -1).reshape(-1, 3)
    found = softened_divergence(teacher, student, 3.0)
    torch.testing.assert_close(found, softened_divergence(rows_t, rows_s, 3.0))
    assert float(softened_divergence(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(found) > 0


def test_the_gradient_of_the_divergence_keeps_its_size_over_temperatures() -> None:
    teacher = torch.randn(64, 3)
    sizes = []
    for temperature in (20.0, 80.0):
        student = torch.zeros(64, 3, requires_grad=True)
        softened_divergence(teacher, student, temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    # without the factor of temperature squared the second would be 16 times smaller
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_a_task_without_a_teacher_is_refused() -> None:
    with pytest.raises(StudyError, match="teacher"):
        train(executor(distillation(), teacher=None), {})


def test_a_teacher_that_diverges_does_not_spoil_the_sites_state() -> None:
    state: SiteState = {}
    train(executor(distillation()), state)
    kept = {name: array.copy() for name, array in state.items()}
    with pytest.raises(RunError):
        train(executor(distillation(teacher_learning_rate=1e38)), state, round_=2)
    assert {name: array.tobytes() for name, array in kept.items()} == {
        name: array.tobytes() for name, array in state.items()
    }
