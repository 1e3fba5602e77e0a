"""Upload gates (algorithms' test t06): few uploads at the loss of all, because the coordinator knows what to put in the
place of a silent site."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys.exact import Exact, Lossless
from toys.parts import Federated, configured, federation_parts, plugin
from toys.problems import curvature, least_squares, loss, optimum
from toys.tasks import LeastSquares, Rows, site

from medfl.errors import RunError
from medfl.learning.messages import SiteFailure
from medfl.update.base import Update, Upload
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.gates.base import GATES, StandIn, UploadGate
from medfl.update.gates.innovation import Innovation
from medfl.update.gates.laq import Laq
from medfl.update.gates.mirror import SumOfMirrors
from medfl.update.memories.base import MEMORIES, SiteState
from medfl.update.pipeline import UploadPipeline
from medfl.update.vector import FloatVector

MANY = least_squares(40, 30, 50, 1)
FEW = least_squares(10, 40, 80, 0.3)


class Blind(Innovation):
    """The fake: sends only what is large, and nothing stands in for the others."""

    def before(self, update: Update, upload: Upload, state: SiteState) -> Update:
        return update

    def after(self, sent: Callable[[], Update], upload: Upload, state: SiteState) -> None:
        pass


class Amnesic(SumOfMirrors):
    """The fake: forgets what it knew of silent sites."""

    def complete(
        self, model: FloatVector, news: FloatVector | None, round_: int, senders: Mapping[str, float], total: float
    ) -> FloatVector | None:
        self.sum = None
        return super().complete(model, news, round_, senders, total)


def way(gate: UploadGate, codec: Codec | None = None) -> UploadPipeline:
    return UploadPipeline(gate, plugin(MEMORIES, "none"), codec or Lossless())


def gated(**settings: Any) -> Exact:
    made: UploadGate = plugin(GATES, "innovation", **settings)
    return Exact(MANY, [], way(made), 0.3 / curvature(MANY), steps=5, stand_in=made.stand_in())


def excess(made: Exact) -> float:
    """Mean loss above the best one."""
    return loss(list(MANY), made.model) - loss(list(MANY), optimum(list(MANY)))


def test_a_sixth_of_the_uploads_gives_the_loss_of_all() -> None:
    everyone = Exact(MANY, [], way(plugin(GATES, "always")), 0.3 / curvature(MANY), steps=5)
    everyone.run(400)
    few = gated(rate=0.2)
    few.run(400)
    assert few.uploads <= 0.2 * 400 * 40 + 40
    assert excess(few) <= 1.02 * excess(everyone)
    sampled = Exact(MANY, [], way(plugin(GATES, "always")), 0.3 / curvature(MANY), steps=5, share=0.2)
    sampled.run(400)
    fake = Exact(MANY, [], way(Blind(configured(GATES, "innovation"))), 0.3 / curvature(MANY), steps=5)  # type: ignore
    fake.run(400)
    for worse in (sampled, fake):
        assert not excess(worse) <= 3 * excess(everyone)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_sum_of_mirrors_is_that_of_what_each_site_believes(decay: float) -> None:
    made = gated(rate=0.3, decay=decay)
    gate = made.way.gate
    assert isinstance(gate, Innovation)
    for _ in range(12):
        before = made.model.copy()
        made.round()
        believed = []
        for number, state in enumerate(made.states):
            if made.counted[number] == made.number:
                mirror, age = state["gate.pending"], 0
            elif made.counted[number]:
                mirror, age = state["gate.mirror"], made.number - int(state["gate.round"][0])
            else:
                continue
            upload = Upload(str(number), made.number, 0, before)  # type: ignore[arg-type]
            believed.append(gate.believed(mirror, age, upload))
        np.testing.assert_allclose(made.model - before, sum(believed) / len(made.sites), atol=1e-6)


def test_a_gate_steers_to_its_rate() -> None:
    for rate in (0.1, 0.5):
        made = gated(rate=rate)
        # batches keep the updates from vanishing
        made.batch = 4
        made.run(150)
        assert made.uploads / (150 * 40) == pytest.approx(rate, abs=0.03)


RATE = 0.5 / float(np.linalg.eigvalsh(np.mean([rows.hessian for rows in FEW], axis=0))[-1])


def lazily(codec: Codec | None = None, stand_in: StandIn | None = None) -> Exact:
    gate: UploadGate = plugin(GATES, "laq")
    return Exact(FEW, [], way(gate, codec), RATE, steps=1, stand_in=stand_in or gate.stand_in())


def until(made: Exact, target: float = 1e-6) -> Exact:
    for _ in range(2500):
        made.round()
        if made.error() < target:
            return made
    pytest.fail(f"stands at {made.error():.1e}")


def test_lazy_quantised_gradients_need_a_tenth_of_the_bits() -> None:
    dense = Exact(FEW, [], way(plugin(GATES, "always"), plugin(CODECS, "fp32")), RATE, steps=1)
    assert until(dense).bits >= 10 * until(lazily(plugin(CODECS, "int4"))).bits
    assert lazily(plugin(CODECS, "int4"), Amnesic()).run(400) > 1e-3


def test_without_quantisation_lazy_gradients_save_uploads() -> None:
    lazy = until(lazily(), 1e-9)
    assert lazy.uploads < 0.5 * lazy.number * len(FEW)


def federated(gate: str, **settings: Any) -> Federated:
    made = plugin(GATES, gate, **settings)
    sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(FEW)]
    parts = federation_parts(RATE, 1, stand_in=made.stand_in())
    return Federated(LeastSquares(40), sites, parts, pipeline=way(made, plugin(CODECS, "fp32")))


@pytest.mark.parametrize("gate", ["laq", "innovation"])
def test_the_whole_federation_goes_on_without_silent_sites(gate: str) -> None:
    made = federated(gate)
    outcomes = made.run(100)
    silent = sum(mine.skipped_upload for outcome in outcomes for mine in outcome.sites.values())
    assert silent > 400
    best = optimum(list(FEW))
    assert np.linalg.norm(made.model - best) / np.linalg.norm(best) < 5e-2
    quiet = next(outcome for outcome in outcomes if all(mine.skipped_upload for mine in outcome.sites.values()))
    assert quiet.moved, "what stands in moves the model"


def test_a_restored_federation_goes_on_exactly() -> None:
    made, again = federated("innovation", decay=0.1), federated("innovation", decay=0.1)
    made.run(10)
    plain, arrays = made.federation.state()
    again.federation.restore(plain, arrays)
    again.states = {name: dict(state) for name, state in made.states.items()}
    made.run(5)
    again.run(5)
    assert made.model.tobytes() == again.model.tobytes()


def test_a_refused_update_moves_no_mirror() -> None:
    gate = Innovation(configured(GATES, "innovation"))  # type: ignore[arg-type]
    state: dict[str, Any] = {}
    model, delta = np.zeros(3, np.float32), np.ones(3, np.float32)
    made = way(gate, plugin(CODECS, "fp32"))
    rng = np.random.default_rng(0)
    assert made.run(delta, Upload("a", 1, 0, model), state, rng) is not None
    again = made.run(delta, Upload("a", 2, 0, model), state, rng)
    assert again is not None and made.codec.decode(again, 3).dense().tolist() == [1, 1, 1]
    state["gate.threshold"] = np.zeros(1)
    third = made.run(delta, Upload("a", 3, 2, model), state, rng)
    assert third is not None and made.codec.decode(third, 3).dense().tolist() == [0, 0, 0], "it is known by now"


def test_a_site_that_lost_its_state_says_so() -> None:
    made = way(Laq(configured(GATES, "laq")))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="does not know what it sent in round 4"):
        made.run(np.ones(3, np.float32), Upload("a", 5, 4, np.zeros(3, np.float32)), {}, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["laq", "innovation"])
def test_what_is_not_finite_is_sent(kind: str) -> None:
    gate: UploadGate = plugin(GATES, kind)
    model = np.zeros(3, np.float32)
    bad = Update(np.array([1, np.nan, 1], np.float32), 3)
    state: dict[str, Any] = {"gate.threshold": np.full(1, 1e9), "gate.moves": np.full(10, 1e9)}
    assert gate.allow(bad, lambda: bad, Upload("a", 2, 1, model), state)


def test_a_site_that_joins_late_weighs_as_it_should() -> None:
    sums, one = SumOfMirrors(), np.ones(2, np.float32)
    weight = sums.weight
    assert sums.complete(one, 2 * one, 1, {"a": weight("a", 1), "b": weight("b", 1)}, 2) == pytest.approx(one)
    assert sums.complete(one, 2 * one, 2, {"c": weight("c", 2)}, 4) == pytest.approx(one), "all believe in 1"
    assert weight("a", 50) == 1, "what is known of it was weighed with what it had then"


def test_the_belief_in_a_site_fades_by_the_rounds_that_went_by() -> None:
    """Also by those that were void."""
    gate: UploadGate = plugin(GATES, "innovation", decay=0.5)
    sums, still = gate.stand_in(), np.zeros(2, np.float32)
    assert sums is not None
    sums.complete(still, np.ones(2, np.float32), 1, {"a": 1.0}, 1)
    later = sums.complete(still, None, 4, {}, 1)
    assert later == pytest.approx(np.full(2, np.exp(-1.5)))


@pytest.mark.parametrize("gate", ["laq", "innovation"])
def test_a_site_that_is_gone_is_not_stood_in_for_for_ever(gate: str) -> None:
    made = federated(gate)
    made.run(5)

    def round_without_s0() -> None:
        plan = made.federation.plan(made.cases)
        open_ = made.federation.open(plan)
        for order in plan.orders():
            if order.site == "s0":
                open_.fail(SiteFailure("s0", plan.round, "is away"))
            else:
                open_.receive(made.executor.train(made.sites[order.site], order, made.model, made.states[order.site]))
        made.federation.close(open_)

    round_without_s0()
    round_without_s0()
    stand_in = made.federation.parts.stand_in
    assert isinstance(stand_in, SumOfMirrors) and "s0" in stand_in.known and "s1" in made.federation.counted
    round_without_s0()
    assert not stand_in.known and not made.federation.counted
    round_without_s0()
    assert sorted(stand_in.known) == sorted(set(made.sites) - {"s0"}), "all others have sent whole"
    made.states["s0"].clear()
    made.run(2)
    assert "s0" in stand_in.known, "and one that lost its state takes part again"


def test_silent_sites_make_a_quorum() -> None:
    made = federated("innovation", rate=0.1)
    made.federation.parts = replace(made.federation.parts, quorum=len(FEW))
    assert not any(outcome.void for outcome in made.run(20))


def test_a_lazy_site_whose_news_did_not_count_sends_again() -> None:
    way_, state = way(plugin(GATES, "laq"), plugin(CODECS, "fp32")), dict[str, Any]()
    rng, model = np.random.default_rng(0), np.zeros(3, np.float32)
    assert way_.run(np.ones(3, np.float32), Upload("a", 1, 0, model), state, rng) is not None
    assert way_.run(np.ones(3, np.float32), Upload("a", 2, 1, model), state, rng) is None, "nothing is new"
    assert way_.run(np.full(3, 9, np.float32), Upload("a", 3, 1, model), state, rng) is not None
    assert way_.run(np.ones(3, np.float32), Upload("a", 4, 1, model), state, rng) is not None, "round 3 was refused"
