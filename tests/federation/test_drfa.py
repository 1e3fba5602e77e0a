"""DRFA (algorithms' test t02): the worst hospital is lifted, and a frozen lambda does not lift it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import Federated, configured, federation_parts, plugin
from toys.tasks import Classifier, Rows, site

from medfl.errors import RunError
from medfl.federation.schedule.base import SCHEDULES, Schedule
from medfl.federation.schedule.drfa import Drfa, projected
from medfl.learning.messages import SNAPSHOT, TrainReply
from medfl.update.base import Update
from medfl.update.vector import FloatVector

SITES, SIZE, CLASSES, STEPS = 10, 12, 3, 10
WORST = "s0"


def rows(seed: int) -> list[Rows]:
    """Classes by one linear rule; the first site has them permuted, and lies far off."""
    rng = np.random.default_rng(seed)
    rule, found = rng.normal(size=(SIZE, CLASSES)), []
    for number in range(SITES):
        shift = (2.0 if number == 0 else 0.3) * rng.normal(size=SIZE)
        features = rng.normal(size=(200, SIZE)) + shift
        labels = (features @ rule).argmax(1)
        found.append(Rows(features, (labels + 1) % CLASSES if number == 0 else labels))
    return found


class Frozen(Drfa):
    """The fake: lambda stays as it was."""

    def learn(self, losses: Mapping[str, float], sites: int, steps: float) -> None:
        pass


def federated(schedule: Schedule, seed: int = 0) -> Federated:
    sites = [site(f"s{number}", own) for number, own in enumerate(rows(seed))]
    parts = federation_parts(0.05, 99, schedule=schedule)
    return Federated(
        Classifier(SIZE, CLASSES), sites, parts, batch_size=32, max_steps=STEPS, asked=frozenset({SNAPSHOT}), seed=seed
    )


def drfa(kind: type[Drfa] = Drfa, **settings: Any) -> Drfa:
    return kind(configured(SCHEDULES, "drfa", **{"sites": 5, "gamma": 0.004, **settings}))  # type: ignore[arg-type]


def accuracies(made: Federated, model: npt.NDArray[Any]) -> list[float]:
    weight, bias = model[: SIZE * CLASSES].reshape(CLASSES, SIZE), model[SIZE * CLASSES :]
    splits = [data.splits["train"] for data in made.sites.values()]
    return [float(((own.features @ weight.T + bias).argmax(1) == own.labels()).mean()) for own in splits]  # type: ignore[attr-defined]


def worst_and_mean(schedule: Schedule, rounds: int = 240, last: int = 80) -> tuple[float, float]:
    """Of the mean of the last models: single ones are noisy."""
    made = federated(schedule)
    made.run(rounds - last)
    models = []
    for _ in range(last):
        made.round()
        models.append(made.model.copy())
    found = accuracies(made, np.mean(models, axis=0))
    return min(found), float(np.mean(found))


def test_the_worst_site_is_lifted() -> None:
    averaged = worst_and_mean(plugin(SCHEDULES, "uniform", fraction=0.5))
    robust, frozen = worst_and_mean(drfa()), worst_and_mean(drfa(Frozen))
    assert robust[0] >= 0.6 and robust[1] < averaged[1]
    assert averaged[0] < 0.45
    assert not frozen[0] >= 0.6


def test_a_strong_prox_goes_back_to_uniform_weights() -> None:
    schedule = drfa(prox=1e6)
    federated(schedule).run(30)
    assert list(schedule.weights.values()) == pytest.approx([0.1] * SITES, abs=1e-3)
    free = drfa()
    federated(free).run(30)
    assert max(free.weights, key=lambda name: free.weights[name]) == WORST


def test_the_snapshot_is_that_of_a_uniform_moment() -> None:
    """Over many rounds from one model, the mean snapshot is the mean over all steps."""
    made = federated(drfa())
    plan = made.federation.plan(made.cases)
    model = made.model.copy()
    order = plan.orders()[0]
    early: dict[int, FloatVector] = {}
    for step in range(STEPS):
        asked = type(order)(order.site, 1, {**order.values, SNAPSHOT: (step + 0.5) / STEPS})
        reply = made.executor.train(made.sites[order.site], asked, model, {})
        assert reply.snapshot is not None and reply.payload is not None
        early[step] = made.federation.parts.codec.decode(reply.snapshot, model.size).dense()
    assert not early[0].any(), "before the first step it is the model itself"
    shorter = Federated(
        made.executor.parts.task, list(made.sites.values()), made.federation.parts, batch_size=32, max_steps=3
    )
    reply = shorter.executor.train(shorter.sites[order.site], type(order)(order.site, 1, order.values), model, {})
    assert reply.payload is not None and reply.snapshot is None, "nobody may ask for what the study does not say"
    done = made.federation.parts.codec.decode(reply.payload, model.size).dense()
    np.testing.assert_array_equal(early[3], done)


def test_projection_on_the_simplex() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        point = rng.normal(size=6) * 3
        nearest = projected(point)
        assert nearest.min() >= 0 and nearest.sum() == pytest.approx(1)
        for other in rng.dirichlet(np.ones(6), 200):
            assert np.linalg.norm(point - nearest) <= np.linalg.norm(point - other) + 1e-9
    assert projected(np.array([0.2, 0.3, 0.5])) == pytest.approx([0.2, 0.3, 0.5])


def test_draws_follow_lambda_and_count_as_often_as_they_were_drawn() -> None:
    schedule = drfa(sites=1000)
    schedule.weights = {"a": 0.7, "b": 0.3}
    draw = schedule.draw(1, {"a": 1, "b": 1}, np.random.default_rng(0))
    assert draw.weights is not None and sum(draw.weights.values()) == 1000
    assert draw.weights["a"] == pytest.approx(700, abs=60)
    assert 0 <= draw.values[SNAPSHOT] < 1


def test_a_new_site_begins_with_the_mean_weight_and_silent_sites_are_made_up_for() -> None:
    schedule = drfa()
    schedule.weights = {"a": 0.5, "b": 0.5}
    schedule.draw(1, {"a": 1, "b": 1, "c": 1}, np.random.default_rng(0))
    assert schedule.weights == pytest.approx(dict.fromkeys("abc", 1 / 3))
    schedule.learn({"a": 1.0, "c": float("nan")}, 3, 10)
    assert schedule.weights["a"] > 1 / 3 > schedule.weights["b"] == schedule.weights["c"]


def test_a_restored_federation_goes_on_exactly() -> None:
    made, again = federated(drfa()), federated(drfa())
    made.run(4)
    again.federation.restore(*made.federation.state())
    made.run(3)
    again.run(3)
    assert made.model.tobytes() == again.model.tobytes()


def test_an_update_without_the_snapshot_is_refused() -> None:
    made = federated(drfa())
    plan = made.federation.plan(made.cases)
    round_ = made.federation.open(plan)
    order = plan.orders()[0]
    reply = made.executor.train(made.sites[order.site], order, made.model, {})
    blunt = TrainReply(reply.site, reply.round, reply.payload, reply.cases, 10, 1, 1.0, 1.0)
    mine = round_.receive(blunt)
    assert mine.verdict is not None and mine.verdict.outcome == "refuse" and "snapshot" in mine.verdict.reason
    with pytest.raises(RunError, match="is not awaited"):
        round_.receive(TrainReply("stranger", 1, None, 1, 1, 1, 1.0, 1.0))


@pytest.mark.parametrize("loss", [1e20, 1e300, 1.7e308])
def test_a_site_that_lies_about_its_loss_does_not_take_everything(loss: float) -> None:
    schedule = drfa(gamma=0.004)
    schedule.weights = dict.fromkeys("abcd", 0.25)
    schedule.learn({"a": loss, "b": 1.0, "c": 1.0}, 4, 10)
    assert sum(schedule.weights.values()) == pytest.approx(1)
    assert schedule.weights["b"] > 0.1 and schedule.weights["a"] < 0.7
    found = projected(np.array([1e20, 0.3, 0.1]))
    assert found.tolist() == [1, 0, 0]


def test_one_sites_word_on_its_steps_does_not_decide() -> None:
    made = federated(drfa())
    seen: list[float] = []
    made.federation.parts.schedule.learn = lambda losses, sites, steps: seen.append(steps)  # type: ignore[method-assign]
    outcome = made.round()
    next(iter(outcome.sites.values())).steps = 2**50
    made.federation.learn(outcome, {})
    assert seen == [STEPS, STEPS]


def test_a_snapshot_is_judged_like_an_update() -> None:
    made = federated(drfa())
    plan = made.federation.plan(made.cases)
    round_, order = made.federation.open(plan), plan.orders()[0]
    reply = made.executor.train(made.sites[order.site], order, made.model, {})
    huge = made.executor.parts.pipeline.codec.encode(
        Update(np.full(made.model.size, 1e30, np.float32), made.model.size), np.random.default_rng(0)
    )
    mine = round_.receive(replace(reply, snapshot=huge))
    assert mine.verdict is not None and mine.verdict.outcome == "refuse" and round_.snapshot() is None
