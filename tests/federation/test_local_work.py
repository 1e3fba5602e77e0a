"""Fewer synchronisations: redundancy (RI-SGD), on a ring or by consent, and growing intervals (LUPA): algorithms' test
t05.

More local work in fewer rounds (t00) is in test_fedavg.py, AdaComm in hyperparameters/test_adacomm_time.py.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import Federated, federation_parts
from toys.problems import curvature, least_squares
from toys.tasks import LeastSquares, Rows, site

from medfl.data.base import Case, lent, origin_of
from medfl.data.plans.base import DataPlan
from medfl.data.plans.overlap import Overlap, OverlapConfig
from medfl.data.plans.ring import Ring, RingConfig
from medfl.hyperparameters.base import HYPERPARAMETERS, Progress, at_least
from medfl.hyperparameters.growing import Growing, GrowingConfig

Array = npt.NDArray[np.float64]

# RI-SGD: eight workers with one class each

WORKERS, ROWS, SIZE, STEPS, BATCH, RATE, L2 = 8, 200, 20, 50, 16, 0.05, 1e-3
SITES = [f"s{number}" for number in range(WORKERS)]
LABELS = np.repeat(np.arange(WORKERS), ROWS)
CASES = [
    Case(f"{number}", Path("none"), int(label), site=f"s{label}", split="train") for number, label in enumerate(LABELS)
]


PUBLIC = np.arange(1600) % WORKERS
"""Classes of a public set, of which every worker may be lent the first."""


def shared(count: int) -> dict[str, list[Case]]:
    rows = range(len(LABELS), len(LABELS) + count)
    return {name: [lent(Case(f"{row}", Path("none")), name, "shared-1") for row in rows] for name in SITES}


class OwnShard(Ring):
    """The fake: as many copies, but of the worker's own cases."""

    def hold(self, site: str, cases: Any, sites: Any) -> tuple[Case, ...]:
        held = super().hold(site, cases, sites)
        own = [case for case in held if not origin_of(case.key)]
        return tuple(own[number % len(own)] for number in range(len(held)))


@cache
def classes() -> Array:
    """The features of the workers' rows, and those of the public set after them."""
    rng = np.random.default_rng(0)
    labels, means = np.concatenate([LABELS, PUBLIC]), 0.6 * rng.normal(size=(WORKERS, SIZE))
    features = means[labels] + rng.normal(size=(len(labels), SIZE))
    return np.column_stack([features, np.ones(len(labels))])


def gradient(weight: Array, features: Array, labels: Any) -> Array:
    """Of softmax regression, batched over the first axis: weight [.., d, classes], features [.., n, d]."""
    logits = features @ weight
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    shares -= np.eye(WORKERS)[labels]
    found: Array = np.swapaxes(features, -1, -2) @ shares / features.shape[-2] + L2 * weight
    return found


def objective(weight: Array, features: Array) -> float:
    logits = features @ weight
    top = logits.max(1)
    fit = np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(LABELS)), LABELS]
    return float(fit.mean() + L2 / 2 * (weight**2).sum())


@cache
def best() -> float:
    features, weight = classes()[: len(LABELS)], np.zeros((SIZE + 1, WORKERS))
    for _ in range(3000):
        weight -= 0.3 * gradient(weight, features, LABELS)
    return objective(weight, features)


def syncs(plan: DataPlan[Any], beside: Mapping[str, Sequence[Case]] | None = None, limit: int = 40) -> int:
    """Averages until the loss over all cases is .08 above the best: `STEPS` local steps each, over what `plan` says
    that a worker holds and trains on. beside: what each is lent."""
    features, rng = classes(), np.random.default_rng(1)
    own, labels = features[: len(LABELS)], np.concatenate([LABELS, PUBLIC])
    more = [() if beside is None else (beside[name],) for name in SITES]
    held = [plan.hold(name, CASES, SITES, *extra) for name, extra in zip(SITES, more, strict=True)]
    target, model = best() + 0.08, np.zeros((SIZE + 1, WORKERS))
    for round_ in range(1, limit + 1):
        local = np.repeat(model[None], WORKERS, 0)
        used = [rows_of(plan, name, round_, cases) for name, cases in zip(SITES, held, strict=True)]
        chosen = np.stack([rng.choice(mine, (STEPS, BATCH)) for mine in used], axis=1)
        for rows in chosen:
            local -= RATE * gradient(local, features[rows], labels[rows])
        model = local.mean(0)
        if objective(model, own) < target:
            return round_
    return limit + 1


def rows_of(plan: DataPlan[Any], name: str, round_: int, held: Sequence[Case]) -> npt.NDArray[np.int64]:
    """The rows that a worker trains on in a round."""
    rows = np.array([int(case.key.split("/")[-1]) for case in held])
    lent_ones = np.array([bool(origin_of(case.key)) for case in held])
    places = np.arange(len(held))
    return rows[plan.drawn(name, round_, places[~lent_ones], places[lent_ones])]


def test_redundancy_saves_synchronisations() -> None:
    found = [syncs(Ring(RingConfig(redundancy=share))) for share in (0, 0.125, 0.25, 0.5)]
    assert all(later < earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] <= 0.5 * found[0]
    # as much more storage for nothing
    own = syncs(OwnShard(RingConfig(redundancy=0.5)))
    assert abs(own - found[0]) <= 1


def overlap(redundancy: float) -> Overlap:
    return Overlap(OverlapConfig(redundancy=redundancy))


def test_a_public_set_that_all_may_train_on_saves_synchronisations() -> None:
    found = [syncs(overlap(share), shared(len(PUBLIC))) for share in (0, 0.125, 0.25, 0.5, 1)]
    assert found[0] == syncs(Ring(RingConfig(redundancy=0))), "nothing is lent: the shard alone"
    assert all(later < earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] <= 0.6 * found[0]
    # the fakes: as many images more, but copies of the worker's own; and all of a small set in every round
    copies = {name: [lent(case, name, "own") for case in CASES if case.site == name] for name in SITES}
    assert abs(syncs(overlap(1), copies) - found[0]) <= 1
    assert syncs(overlap(10), shared(200)) > found[0]


# LUPA: growing intervals


class Published(Growing):
    """The fake: alpha as the published code has it, whose intervals pass T."""

    def value(self) -> float:
        c = self.config
        alpha = 2 * c.total / (c.syncs * c.start * (c.syncs + 1))
        return round(c.start * (1 + alpha * self._done))


def course(moving: Growing, rounds: int) -> list[float]:
    found = []
    for round_ in range(1, rounds + 1):
        found.append(moving.value())
        moving.update(Progress(round_, 1.0))
    return found


PAPER = GrowingConfig(start=60, total=3000, syncs=29)


def test_the_intervals_cover_the_steps_exactly() -> None:
    taus = course(Growing(PAPER), 29)
    assert sum(taus) == 3000 and taus[0] == 60 and taus[-1] == 147
    alpha = 2 * (3000 / (29 * 60) - 1) / 28
    assert taus[:-1] == [round(60 * (1 + alpha * number)) for number in range(28)]
    # the published code has 30 intervals and 4800 steps
    assert sum(course(Published(PAPER), 30)) == pytest.approx(3000 + 60 * 30, abs=15)
    assert sum(course(Published(PAPER), 29)) != 3000


@given(st.integers(1, 50), st.integers(1, 200), st.floats(0, 20))
def test_any_intervals_grow_and_add_up(start: int, count: int, more: float) -> None:
    config = GrowingConfig(start=start, total=start * count + int(more * count), syncs=count)
    taus = course(Growing(config), count)
    assert len(taus) == count and sum(taus) == config.total
    assert all(tau >= config.lowest() >= 1 and tau == int(tau) for tau in taus)
    assert all(later >= earlier for earlier, later in itertools.pairwise(taus[:-1]))
    assert at_least(config, 1) is config


def test_later_rounds_keep_the_last_interval() -> None:
    assert course(Growing(GrowingConfig(start=2, total=9, syncs=3)), 5) == [2, 3, 4, 4, 4]
    assert course(Growing(GrowingConfig(start=2, total=9, syncs=1)), 2) == [9, 9]


@pytest.mark.parametrize("cut", [0, 1, 17, 29, 33])
def test_growing_continues_where_it_was(cut: int) -> None:
    whole = course(Growing(PAPER), 35)
    first, second = Growing(PAPER), Growing(PAPER)
    before = course(first, cut)
    second.restore(json.loads(json.dumps(first.state())))
    after = []
    for round_ in range(cut + 1, 36):
        after.append(second.value())
        second.update(Progress(round_, float("nan")))
    assert before + after == whole


@pytest.mark.parametrize("wrong", [{"total": 1739}, {"start": 0}, {"syncs": 0}, {"total": 10.5}])
def test_intervals_that_cannot_grow_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GrowingConfig.model_validate({"start": 60, "total": 3000, "syncs": 29} | wrong)


def steps_of_rounds(kind: type[Growing], config: GrowingConfig) -> list[int]:
    """Local steps of each round of a federation, as its sites say. Batches are of 3 of 8 rows: steps are not epochs."""
    problem = least_squares(2, 3, 8, 0.0)
    parts = federation_parts(0.1 / curvature(problem))
    parts = replace(parts, values={**parts.values, "local.steps": kind(config)})
    sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(problem)]
    found = Federated(LeastSquares(3), sites, parts, batch_size=3, asked=frozenset({"local.steps"})).run(config.syncs)
    assert all(len({mine.steps for mine in outcome.sites.values()}) == 1 for outcome in found)
    return [outcome.sites["s0"].steps for outcome in found]


def test_a_federation_synchronises_as_often_as_planned() -> None:
    config = GrowingConfig(start=4, total=60, syncs=6)
    taken = steps_of_rounds(Growing, config)
    assert taken == list(config.intervals) and len(taken) == 6 and sum(taken) == 60
    assert sum(steps_of_rounds(Published, config)) != 60


def test_a_study_names_it() -> None:
    made = HYPERPARAMETERS.build(HYPERPARAMETERS.load("growing").Config(start=1, total=5, syncs=2))  # type: ignore[call-arg]
    assert isinstance(made, Growing) and made.value() == 1
