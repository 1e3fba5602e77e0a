"""Asynchronous federations: weights, identities, t09's statistics, fairness, memory, resume and replay."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.events import Events, Squares, asynchronous, reply
from toys.parts import plugin
from toys.problems import SiteRows, least_squares, loss, optimum

from medfl.errors import RunError
from medfl.federation.asynchronous.federation import AsynchronousFederation
from medfl.federation.asynchronous.influence import Influence
from medfl.federation.asynchronous.replay import replay
from medfl.federation.asynchronous.staleness import Constant, Hinge, Polynomial
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.learning.messages import SiteFailure, TrainOrder

CASES = {"a": 4, "b": 4, "c": 4}
PLAIN = {"correction": "none"}


def send(federation: AsynchronousFederation, *sites: str) -> dict[str, TrainOrder]:
    return {site: federation.dispatch(site, CASES).order() for site in sites}


def test_the_weights_are_the_papers() -> None:
    assert [Constant().of(n) for n in (0, 5, 100)] == [1, 1, 1]
    assert Polynomial().of(3) == 0.5
    assert Polynomial(a=1).of(3) == 0.25
    assert Hinge().of(5) == 1 / 11
    assert [Hinge().of(n) for n in (0, 4)] == [1, 1]
    assert Hinge(a=1, b=0).of(3) == 0.25


@given(st.integers(0, 10**6), st.floats(0.01, 10), st.integers(0, 50))
def test_no_weight_rises_with_staleness_or_leaves_its_range(staleness: int, a: float, b: int) -> None:
    for weight in (Constant(), Polynomial(a=a), Hinge(a=a, b=b)):
        assert weight.of(0) == 1
        assert 0 < weight.of(staleness + 1) <= weight.of(staleness) <= 1


def test_a_stale_update_is_mixed_as_published() -> None:
    """x <- (1 - a) x + a (x_v + change), with a = alpha s(staleness); and not x + a change."""
    federation = asynchronous(2, alpha=0.5, staleness={"kind": "polynomial", "a": 1}, **PLAIN)
    orders = send(federation, "a", "b")
    for site, change in (("a", [2.0, 4.0]), ("b", [8.0, 0.0])):
        step = federation.begin(CASES)
        federation.receive(step, reply(orders[site], np.array(change), 4))
        federation.finish(step)
        if site == "a":
            assert federation.model.tolist() == [1.0, 2.0]
    assert step.arrived[0].staleness == 1
    assert step.arrived[0].share == 0.25
    mixed = 0.75 * np.array([1.0, 2.0]) + 0.25 * np.array([8.0, 0.0])
    added = np.array([1.0, 2.0]) + 0.25 * np.array([8.0, 0.0])
    assert federation.model.tolist() == mixed.tolist() != added.tolist()


def test_a_buffer_adds_changes_by_staleness_and_divides_by_its_size() -> None:
    server = plugin(SERVER_STEPS, "sgd", learning_rate=0.5)
    settings: Any = {"size": 2, "staleness": {"kind": "polynomial", "a": 1}, "parts__server": server, **PLAIN}
    federation = asynchronous(1, "buffered", **settings)
    orders = send(federation, "a", "b", "c")
    first = federation.begin(CASES)
    for site, change in (("a", 1.0), ("b", 3.0)):
        federation.receive(first, reply(orders[site], np.array([change]), 4))
    assert first.full
    federation.finish(first)
    assert federation.model.tolist() == [0.5 * (1 + 3) / 2]
    fresh = send(federation, "a")["a"]
    second = federation.begin(CASES)
    federation.receive(second, reply(orders["c"], np.array([8.0]), 4))
    federation.receive(second, reply(fresh, np.array([2.0]), 4))
    federation.finish(second)
    assert [arrived.staleness for arrived in second.arrived] == [1, 0]
    assert federation.model.tolist() == [1 + 0.5 * (8 / 2 + 2) / 2]


def test_one_site_and_alpha_one_is_sequential_sgd_bit_for_bit() -> None:
    rows = least_squares(1, 20, 60, 0.1, noise=0.5)
    for correction in ("none", "staleness", "influence"):
        squares = Squares(rows)
        events = Events(asynchronous(20, alpha=1, correction=correction), squares, lambda rng, site: 1.0)
        x = np.zeros(20, np.float32)
        for number in range(1, 51):
            events.step()
            x += squares.change("site-00", number, x)
        assert events.federation.model.tobytes() == x.tobytes()
    events = Events(asynchronous(20, alpha=0.9), squares, lambda rng, site: 1.0)
    for _ in range(50):
        events.step()
    assert events.federation.model.tobytes() != x.tobytes()


def mostly_fast(rng: np.random.Generator, _: str) -> float:
    return float(rng.exponential(12.0 if rng.random() < 0.25 else 1.0))


def t09(kind: str, seed: int) -> tuple[float, int, float]:
    """(mean excess loss of the tail, updates to an excess of 0.5, mean staleness)."""
    rows = least_squares(16, 20, 60, 0.1, noise=0.5, seed=seed)
    settings: Any = {"alpha": 0.9, "staleness": kind, "max_in_flight": 12, **PLAIN}
    events = Events(asynchronous(20, **settings), Squares(rows, seed=seed), mostly_fast, seed)
    best, excess = loss(rows, optimum(rows)), []
    for _ in range(1200):
        events.step()
        excess.append(loss(rows, events.federation.model.astype(np.float64)) - best)
    first = next(number for number, value in enumerate(excess, 1) if value < 0.5)
    return float(np.mean(excess[-300:])), first, float(np.mean([each.staleness for each in events.arrived]))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return {
        kind: np.mean([t09(kind, seed) for seed in range(4)], axis=0) for kind in ("constant", "polynomial", "hinge")
    }


def test_staleness_and_the_tail_are_those_of_the_reference(found: dict[str, Any]) -> None:
    """Twelve in flight: 10.8 versions old on average. Polynomial weights leave the smallest tail."""
    tails = {kind: values[0] for kind, values in found.items()}
    assert all(values[2] == pytest.approx(10.8, abs=0.3) for values in found.values())
    assert tails["polynomial"] < 0.8 * tails["constant"]
    assert not tails["constant"] < 0.8 * tails["constant"], "constant mixing is the fake"
    assert max(tails.values()) < 0.05


def test_the_hinge_reaches_the_target_in_fewer_updates(found: dict[str, Any]) -> None:
    updates = {kind: values[1] for kind, values in found.items()}
    assert updates["hinge"] < 0.8 * updates["constant"]


def pulled(correction: str, staleness: str, slow: float = 6.0) -> tuple[float, float]:
    """Two sites that want +1 and -1, one of them slower: (mean of the model, as it would be without bias 0; how much of
    all updates' shares the slow site had)."""
    eye = np.eye(1)
    sites = [SiteRows(eye, np.array([1.0])), SiteRows(eye, np.array([-1.0]))]
    squares = Squares(sites, steps=5, batch=None, rho=0)
    settings: Any = {"alpha": 0.3, "staleness": staleness, "correction": correction}
    delays = {"site-00": 1.0, "site-01": slow}
    events = Events(asynchronous(1, **settings), squares, lambda rng, site: delays[site] * rng.uniform(0.8, 1.2))
    path = []
    for _ in range(1500):
        events.step()
        path.append(float(events.federation.model[0]))
    shares = {site: sum(each.share for each in events.arrived if each.site == site) for site in delays}
    return float(np.mean(path[300:])), shares["site-01"] / sum(shares.values())


@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_the_correction_takes_the_bias_to_fast_sites_away(staleness: str) -> None:
    bias, share = pulled("influence", staleness)
    assert abs(bias) < 0.2
    assert share == pytest.approx(0.5, abs=0.1)
    fake, less = pulled("none", staleness)
    assert not abs(fake) < 0.6
    assert less < 0.25


def test_staleness_weights_punish_the_slow_site_and_the_correction_undoes_that() -> None:
    """As published: constant < polynomial < hinge in how far the slow site falls behind."""
    raw = {kind: pulled("none", kind)[0] for kind in ("constant", "polynomial", "hinge")}
    assert raw["constant"] < raw["polynomial"] < raw["hinge"]
    for kind in ("polynomial", "hinge"):
        even = pulled("staleness", kind)[0]
        assert even < raw[kind] - 0.03
        assert even == pytest.approx(raw["constant"], abs=0.1)


@given(
    st.sampled_from(["none", "staleness", "influence"]),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.001, 1)), min_size=1, max_size=60),
)
def test_no_correction_lets_an_update_count_more_than_a_fresh_one(correction: Any, arrivals: Any) -> None:
    influence = Influence(correction)
    for site, weight in arrivals:
        assert 0 < weight * influence.factor(site, 5, weight) <= 1 + 1e-12


def test_a_site_that_left_holds_nobody_back() -> None:
    influence = Influence("influence")
    influence.factor("left", 5, 1.0)
    factors = [influence.factor("stays", 5, 1.0) for _ in range(100)]
    assert min(factors) < 0.1
    assert factors[-1] == 1.0


def test_a_correction_does_not_undo_a_verdict() -> None:
    """A site that the regulator weighs less keeps weighing less."""
    federation = asynchronous(1, alpha=1.0, staleness="constant")
    step = federation.begin(CASES)
    for factor in (1.0, 0.25):
        rule = plugin(REGULATORS, "finite")
        rule.judge = lambda arrival, bench, factor=factor: _lowered(factor)
        federation.parts = type(federation.parts)(**{**_parts(federation), "regulator": [rule]})
        step = federation.begin(CASES)
        order = send(federation, "a")["a"]
        federation.receive(step, reply(order, np.array([1.0]), 4))
        assert step.arrived[-1].share == factor
        federation.finish(step)


def _parts(federation: AsynchronousFederation) -> dict[str, Any]:
    return {name: getattr(federation.parts, name) for name in federation.parts.__dataclass_fields__}


def _lowered(factor: float) -> Any:
    from medfl.federation.regulator.base import Verdict

    return Verdict("down-weight", "test", "because", factor)


def test_what_is_too_old_is_dropped_and_counted() -> None:
    federation = asynchronous(1, max_staleness=1, **PLAIN)
    orders = send(federation, "a", "b", "c")
    for site in ("a", "b"):
        step = federation.begin(CASES)
        federation.receive(step, reply(orders[site], np.array([1.0]), 4))
        federation.finish(step)
    before = federation.model.copy()
    step = federation.begin(CASES)
    mine = federation.receive(step, reply(orders["c"], np.array([1.0]), 4))
    assert mine.verdict is not None
    assert (mine.verdict.outcome, mine.verdict.rule) == ("refuse", "staleness")
    assert "2 versions old, the limit is 1" in mine.verdict.reason
    assert step.arrived[0].share == 0
    assert not step.full
    assert (federation.model == before).all()


def test_updates_are_judged_as_in_a_round() -> None:
    federation = asynchronous(2, **PLAIN)
    orders = send(federation, "a", "b", "c")
    step = federation.begin(CASES)
    federation.receive(step, reply(orders["a"], np.array([np.nan, 0]), 4))
    federation.receive(step, reply(orders["b"], np.zeros(3), 4))
    federation.receive(step, reply(orders["c"], np.zeros(2), 99))
    assert [arrived.rule for arrived in step.arrived] == ["finite", "shape", "cases"]
    assert not step.full
    outcome = federation.finish(step)
    assert (outcome.moved, federation.round) == (False, 1)
    assert "no update was admitted" in outcome.void
    assert federation.idle(CASES) == ["a", "b", "c"]


def test_what_was_not_asked_for_is_not_taken() -> None:
    federation = asynchronous(1)
    order = send(federation, "a")["a"]
    step = federation.begin(CASES)
    for stranger in (TrainOrder("b", 1, {}), TrainOrder("a", 2, {})):
        with pytest.raises(RunError, match="not awaited"):
            federation.receive(step, reply(stranger, np.zeros(1), 4))
    with pytest.raises(RunError, match="asked twice"):
        federation.dispatch("a", CASES)
    federation.receive(step, reply(order, np.zeros(1), 4))
    with pytest.raises(RunError, match="not awaited"):
        federation.receive(step, reply(order, np.zeros(1), 4))


def test_no_site_trains_twice_on_one_version() -> None:
    federation = asynchronous(1, "buffered", size=5)
    step = federation.begin(CASES)
    for site, order in send(federation, *federation.idle(CASES)).items():
        federation.fail(step, SiteFailure(site, order.round, "no")) if site == "c" else federation.receive(
            step, reply(order, np.ones(1), 4)
        )
    assert federation.idle(CASES) == []
    assert federation.finish(step).moved
    assert federation.idle(CASES) == ["a", "b", "c"]


def test_the_longest_waiting_go_first_and_room_is_kept() -> None:
    federation = asynchronous(1, max_in_flight=2)
    assert federation.idle(CASES) == ["a", "b"]
    orders = send(federation, "a", "b")
    assert federation.idle(CASES) == []
    step = federation.begin(CASES)
    federation.receive(step, reply(orders["a"], np.zeros(1), 4))
    federation.finish(step)
    assert federation.idle(CASES) == ["c"]
    assert federation.idle(CASES, present={"a", "b"}) == ["a"]


def test_memory_is_one_vector_a_version_in_flight() -> None:
    rows = least_squares(16, 20, 60, 0.1, noise=0.5)
    events = Events(asynchronous(20, max_in_flight=5), Squares(rows), mostly_fast)
    for _ in range(200):
        events.step()
        _, arrays = events.federation.state()
        held = {name for name in arrays if name.startswith("held.")}
        assert len(held) <= 5
        assert held <= {f"held.{slot}" for slot in range(5)}


def lives(kind: str, seed: int = 0, **settings: Any) -> Iterator[Events]:
    """The same federation, step after step."""
    rows = least_squares(6, 8, 20, 0.5, noise=0.5, seed=seed)
    events = Events(asynchronous(8, kind, **settings), Squares(rows, seed=seed), mostly_fast, seed)
    while True:
        events.step()
        yield events


@pytest.mark.parametrize("kind", ["fedasync", "buffered"])
def test_a_restored_federation_goes_on_bit_for_bit(kind: str) -> None:
    """Kept as the coordinator keeps it: of the models in flight only those that were not kept before."""
    server = {"parts__server": plugin(SERVER_STEPS, "momentum")} if kind == "buffered" else {}
    store: dict[str, Any] = {}
    for number, events in enumerate(lives(kind, **server), 1):
        plain, arrays = events.federation.state()
        fresh = events.federation.fresh()
        store |= {name: array.copy() for name, array in arrays.items() if not name.startswith("held.") or name in fresh}
        if number == 25:
            break
    server = {"parts__server": plugin(SERVER_STEPS, "momentum")} if kind == "buffered" else {}
    other = asynchronous(8, kind, **server)
    other.restore(json.loads(json.dumps(plain)), store)
    assert other.flights == events.federation.flights
    both = (events.federation, other)
    for _ in range(20):
        steps = [federation.begin(events.squares.cases) for federation in both]
        while not steps[0].full and (events.federation.flights or events.federation.idle(events.squares.cases)):
            for federation in both:
                for site in federation.idle(events.squares.cases):
                    federation.dispatch(site, events.squares.cases)
            site = min(both[0].flights, key=lambda name: (both[0].flights[name].due, name))
            for federation, step in zip(both, steps, strict=True):
                flight = federation.flights[site]
                federation.receive(step, events.squares.answer(flight.order(), federation.base(flight)))
        for federation, step in zip(both, steps, strict=True):
            federation.finish(step)
    assert both[0].model.tobytes() == both[1].model.tobytes()
    assert json.dumps(both[0].state()[0]) == json.dumps(both[1].state()[0])


@pytest.mark.parametrize("kind", ["fedasync", "buffered"])
def test_the_recorded_arrivals_give_the_model_again(kind: str) -> None:
    events = next(events for number, events in enumerate(lives(kind), 1) if number == 40)
    records = json.loads(json.dumps(events.records))
    again = asynchronous(8, kind)
    replay(again, records, events.squares.cases, events.squares.answer)
    assert again.model.tobytes() == events.federation.model.tobytes()
    swapped = [dict(record) for record in records]
    swapped[20], swapped[21] = swapped[21], swapped[20]
    with pytest.raises(RunError, match="order"):
        replay(asynchronous(8, kind), swapped, events.squares.cases, events.squares.answer)
    with pytest.raises(RunError, match="replays as"):
        other = asynchronous(8, kind, staleness="hinge" if kind == "fedasync" else "constant")
        replay(other, records, events.squares.cases, events.squares.answer)
