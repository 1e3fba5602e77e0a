"""One site's share of a round."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import CPU, local_parts, pipeline, values
from toys.problems import least_squares
from toys.tasks import Classifier, LeastSquares, Rows, site

from medfl.data.plans.base import DataPlan, Indices
from medfl.errors import DataError, RunError
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig
from medfl.update.memories.base import SiteState

SIZE = 5
PROBLEM = least_squares(3, SIZE, 21, 1.0)
ROWS = [Rows(rows.features, rows.targets) for rows in PROBLEM]


def executor(**changes: Any) -> SiteExecutor:
    return SiteExecutor(local_parts(LeastSquares(SIZE), **changes), CPU)


def zeros() -> npt.NDArray[np.float32]:
    return np.zeros(SIZE, np.float32)


def train(
    made: SiteExecutor,
    name: str = "a",
    rows: Rows = ROWS[0],
    round_: int = 1,
    state: SiteState | None = None,
    model: npt.NDArray[np.float32] | None = None,
    **numbers: float,
) -> TrainReply:
    order = TrainOrder(name, round_, values(**{"rate": 0.05, **numbers}))
    model = zeros() if model is None else model
    return made.train(site(name, rows), order, model, {} if state is None else state)


def delta(reply: TrainReply) -> npt.NDArray[np.float32]:
    assert reply.payload is not None
    return np.frombuffer(reply.payload.buffers[0], np.float32).copy()


def test_a_full_batch_step_is_a_gradient_step() -> None:
    reply = train(executor())
    rows = PROBLEM[0]
    expected = 0.05 * rows.features.T @ rows.targets / len(rows.targets)
    np.testing.assert_allclose(delta(reply), expected, rtol=1e-5)
    assert reply.steps == reply.epochs == 1 and reply.cases == 21


def test_the_model_is_not_touched() -> None:
    model = np.ones(SIZE, np.float32)
    model.flags.writeable = False
    train(executor(), model=model)
    assert (model == 1).all()


def test_same_seed_same_bits_and_other_rounds_and_sites_differ() -> None:
    def run(seed: int = 0, round_: int = 1, name: str = "a") -> bytes:
        made = executor(batch_size=4, seed=seed)
        return delta(train(made, name, round_=round_, epochs=2)).tobytes()

    assert run() == run()
    assert len({run(), run(seed=1), run(round_=2), run(name="b")}) == 4


@pytest.mark.parametrize("optimizer", [SgdOptimizer(momentum=0.9), AdamOptimizer()])
def test_a_site_does_not_see_who_trained_before(optimizer: SgdOptimizer | AdamOptimizer) -> None:
    def made() -> SiteExecutor:
        return executor(batch_size=4, optimizer=optimizer)

    alone = delta(train(made(), "b", ROWS[1], epochs=2))
    shared = made()
    train(shared, "a", ROWS[0], epochs=3)
    shared.evaluate(ROWS[2], np.ones(SIZE, np.float32))
    assert delta(train(shared, "b", ROWS[1], epochs=2)).tobytes() == alone.tobytes()


def test_a_failed_site_does_not_spoil_the_next() -> None:
    alone = delta(train(executor(), "b", ROWS[1]))
    shared = executor()
    broken = Rows(np.full((4, SIZE), np.nan), np.zeros(4))
    with pytest.raises(RunError):
        train(shared, "a", broken)
    assert delta(train(shared, "b", ROWS[1])).tobytes() == alone.tobytes()


def test_payloads_of_earlier_sites_are_not_overwritten() -> None:
    shared = executor()
    first = train(shared, "a", ROWS[0])
    before = delta(first)
    train(shared, "b", ROWS[1])
    shared.evaluate(ROWS[2], np.ones(SIZE, np.float32))
    np.testing.assert_array_equal(delta(first), before)


def test_every_epoch_is_a_permutation_with_an_uneven_last_batch() -> None:
    rows = Rows(PROBLEM[0].features, PROBLEM[0].targets)
    reply = train(executor(batch_size=6), rows=rows, epochs=3)
    assert [len(batch) for batch in rows.asked] == [6, 6, 6, 3] * 3
    epochs = [list(chain(*rows.asked[start : start + 4])) for start in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert reply.steps == 12 and reply.epochs == 3


@pytest.mark.parametrize(("limit", "steps", "epochs"), [(1, 1, 1), (5, 5, 2), (100, 8, 2)])
def test_max_steps(limit: int, steps: int, epochs: int) -> None:
    rows = Rows(PROBLEM[0].features, PROBLEM[0].targets)
    done: list[tuple[int, int]] = []
    order = TrainOrder("a", 1, values(0.05, 2))
    reply = executor(batch_size=6, max_steps=limit).train(
        site("a", rows), order, zeros(), {}, lambda *counts: done.append(counts)
    )
    assert (reply.steps, reply.epochs) == (steps, epochs) and len(rows.asked) == steps
    assert done == [(step, steps) for step in range(1, steps + 1)]


def test_losses_are_means_over_samples_not_over_batches() -> None:
    # targets of one sample are far off, so its batch of one must not count as much as a batch of ten
    features = np.zeros((11, SIZE))
    rows = Rows(features, np.linspace(0, 5, 11))
    reply = train(executor(batch_size=10), rows=rows, epochs=2)
    expected = float((rows.targets**2).mean() / 2)
    assert reply.loss_start == pytest.approx(expected, rel=1e-6)
    assert reply.loss == pytest.approx(expected, rel=1e-6)


def test_loss_start_is_of_the_first_epoch_and_loss_of_the_last() -> None:
    rows = PROBLEM[0]
    before = float((rows.targets**2).mean() / 2)
    reply = train(executor(), epochs=5)
    assert reply.loss_start == pytest.approx(before, rel=1e-5)
    assert reply.loss < before


def test_cases_are_unique_and_not_augmented() -> None:
    assert train(executor(), rows=Rows(PROBLEM[0].features, PROBLEM[0].targets, cases=7)).cases == 7


def test_sample_weights_reach_the_batch_of_their_samples() -> None:
    seen: list[tuple[list[float], list[float]]] = []

    class Weighted(LeastSquares):
        def weights(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            return (labels * 10).astype(np.float32)

        def to_device(self, batch: Mapping[str, Any], device: torch.device) -> Any:
            seen.append((batch["targets"].tolist(), batch["weight"].tolist()))
            return super().to_device(batch, device)

    rows = Rows(PROBLEM[0].features, np.arange(21))
    SiteExecutor(local_parts(Weighted(SIZE), batch_size=4), CPU).train(
        site("a", rows), TrainOrder("a", 1, values(0.01)), zeros(), {}
    )
    assert len(seen) == 6
    assert all([target * 10 for target in targets] == weights for targets, weights in seen)


class Remembers(LocalRule):
    """Counts its rounds in the site's state."""

    def begin(self, context: LocalContext) -> None:
        context.state["begun"] = np.ones(1)

    def finish(self, context: LocalContext) -> None:
        context.state["rounds"] = context.state.get("rounds", np.zeros(1)) + 1


def test_private_state_lives_on() -> None:
    made = executor(rules=[Remembers(PluginConfig(kind="remembers"))])
    state: SiteState = {}
    train(made, state=state)
    train(made, state=state, round_=2)
    assert state["rounds"] == 2 and state["begun"] == 1


def test_a_loss_that_is_not_finite_leaves_the_state_untouched() -> None:
    made = executor(rules=[Remembers(PluginConfig(kind="remembers"))])
    state: SiteState = {"kept": np.arange(3)}
    with pytest.raises(RunError, match=r"site a, round 1.*loss is not finite from step 2"):
        train(made, state=state, rate=1e30, epochs=6)
    assert list(state) == ["kept"]


def test_an_update_that_is_not_finite_never_leaves_and_leaves_the_state_untouched() -> None:
    # one step: the loss before it is finite, the weights after it are not
    made = executor(pipeline=pipeline(memory="error_feedback"))
    state: SiteState = {"memory.residual": zeros()}
    with pytest.raises(RunError, match="update"), np.errstate(over="ignore"):
        train(made, state=state, rate=3e38)
    np.testing.assert_array_equal(state["memory.residual"], zeros())


def test_private_state_that_is_not_finite_is_a_failure() -> None:
    class Breaks(LocalRule):
        def finish(self, context: LocalContext) -> None:
            context.state["breaks.teacher"] = np.array([np.nan])

    state: SiteState = {}
    with pytest.raises(RunError, match=r"breaks\.teacher"):
        train(executor(rules=[Breaks(PluginConfig(kind="breaks"))]), state=state)
    assert state == {}


@pytest.mark.parametrize("rows", [None, Rows(np.zeros((0, SIZE)), np.zeros(0))])
def test_a_site_without_samples_is_refused(rows: Rows | None) -> None:
    with pytest.raises(DataError, match="no training samples"):
        executor().train(site("a", rows), TrainOrder("a", 1, values(0.1)), zeros(), {})


def test_a_plan_that_leaves_nothing_is_refused() -> None:
    class Nothing(DataPlan[PluginConfig]):
        def indices(self, site: str, round: int, labels: Indices, state: Any) -> Indices:
            return np.zeros(0, np.int64)

    with pytest.raises(DataError, match="leaves nothing"):
        train(executor(plan=Nothing(PluginConfig(kind="nothing"))))


def test_a_plan_chooses_the_samples() -> None:
    class Some(DataPlan[PluginConfig]):
        def indices(self, site: str, round: int, labels: Indices, state: Any) -> Indices:
            return np.array([3, 3, 5]) + round

    rows = Rows(PROBLEM[0].features, PROBLEM[0].targets)
    train(executor(plan=Some(PluginConfig(kind="some"))), rows=rows, round_=2)
    assert sorted(rows.asked[0]) == [5, 5, 7]


def test_hooks_run_in_order_and_the_clip_comes_after_them() -> None:
    calls: list[str] = []

    class Noted(LocalRule):
        def __init__(self, name: str) -> None:
            super().__init__(PluginConfig(kind=name))

        def begin(self, context: LocalContext) -> None:
            calls.append(f"begin {self.config.kind}")

        def direction(self, context: LocalContext) -> None:
            calls.append(f"direction {self.config.kind}")
            context.network.gradient.fill_(100.0)

        def finish(self, context: LocalContext) -> None:
            calls.append(f"finish {self.config.kind}")

    reply = train(executor(rules=[Noted("x"), Noted("y")], gradient_clip=1.0), rate=1.0)
    assert calls == ["begin x", "begin y", "direction x", "direction y", "finish x", "finish y"]
    assert np.linalg.norm(delta(reply)) == pytest.approx(1.0, rel=1e-5)


def test_evaluate_uses_the_given_model() -> None:
    made = executor()
    train(made, epochs=3)
    found = made.evaluate(ROWS[0], zeros())
    expected = (PROBLEM[0].targets ** 2).mean() / 2
    assert found["loss"][0] / found["loss"][1] == pytest.approx(expected, rel=1e-5)


def test_what_stays_at_the_site_does_not_travel() -> None:
    task = Classifier(SIZE, 3)
    task.teacher = 8
    made = SiteExecutor(local_parts(task), CPU)
    assert made.local is not None and made.network.layout.size == 3 * SIZE + 3
    assert made.local.layout.size != made.network.layout.size
