"""Asynchronous runs over sums: the same model whether updates are clear, masked or encrypted, and after any death."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from toys.crashes import Crash, CrashAt, model_bytes, records
from toys.parts import federation_parts, plugin
from toys.runs import crash

from medfl.coordinator.async_replay import replay_run
from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.errors import InputError, RunError, StudyError
from medfl.federation.asynchronous.federation import AsynchronousFederation
from medfl.federation.asynchronous.summed import SummedFederation
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.summing import Summation
from medfl.learning.messages import Beginning, SiteFailure, TrainOrder, TrainReply
from medfl.privacy.channels.base import CHANNELS, HAND_OVER, Message
from medfl.privacy.codec import LEAST, own_weight
from medfl.site.memory import DiskMemory
from medfl.study.build import build_codec_down, sum_later_values
from medfl.study.sources import assign_cases
from medfl.transport.door import SiteDoor
from medfl.transport.host import SiteHost
from medfl.transport.in_process import InProcess
from medfl.update.base import Update

SPEEDS = "{center: 1, coast: 1.1, east: 1.2, south: 1.3, west: 2.9}"
BUFFERED = f"federation.schedule={{kind: buffered, size: 3, speeds: {SPEEDS}}}"
QUIET = ["local.epochs=1", "evaluation.every=4", "stop.rounds=4"]
SEALED = ["masks", "he"]
LOCAL = {"local.epochs": 1.0, "local.learning_rate": 0.01, "fedprox.mu": 0.1}


def over(channel: str, *changes: str) -> list[str]:
    update = f"update={{channel: {channel}, clip: 4.0, codec_up: fp32, memory: none}}"
    return [BUFFERED, "federation.regulator=[finite]", update, *QUIET, *changes]


@pytest.fixture(params=["tiny"])
def five(request: pytest.FixtureRequest) -> Any:
    """A tiny federation of five sites, so that some are not in a sum."""
    federation = request.getfixturevalue(request.param)
    for name in ("center", "coast"):
        (federation.sites / f"{name}.yaml").write_text(f"{{name: {name}, synthetic: {{prevalence: 0.6}}}}")
    return federation


with_teacher = pytest.mark.parametrize("five", ["tiny_with_teacher"], indirect=True)


@pytest.fixture(autouse=True)
def encryption(request: pytest.FixtureRequest) -> None:
    if "he" in str(request.node.name):
        pytest.importorskip("tenseal")


def vector(run: Path) -> Any:
    return np.concatenate([tensor.ravel() for tensor in load_file(run / "model" / "model.safetensors").values()])


@pytest.mark.parametrize("channel", SEALED)
def test_sealed_updates_give_the_model_of_clear_ones_bit_for_bit(five: Any, tmp_path: Path, channel: str) -> None:
    simulate(five.inputs(*over("clear")), tmp_path / "clear", Observer(), workers=1)
    summary = simulate(five.inputs(*over(channel)), tmp_path / "sealed", Observer(), workers=1)
    assert model_bytes(tmp_path / "clear") == model_bytes(tmp_path / "sealed")
    assert [record["arrivals"] for record in records(tmp_path / "clear")] == [
        record["arrivals"] for record in records(tmp_path / "sealed")
    ]
    assert summary["rounds_completed"] == 4
    assert all(record["moved"] for record in records(tmp_path / "sealed"))
    with pytest.raises(InputError, match="opened sums of updates"):
        replay_run(tmp_path / "sealed")


def test_summed_updates_are_those_of_an_asynchronous_run_that_opens_each(five: Any, tmp_path: Path) -> None:
    """Up to the grid: as long as no site is in two steps, which would be other updates; and not without weights."""
    two = "stop.rounds=2"
    simulate(five.inputs(BUFFERED, *QUIET, two), tmp_path / "each", Observer(), workers=1)
    simulate(five.inputs(*over("clear", two)), tmp_path / "sum", Observer(), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfl.transport.door.weighted", lambda payload, weight: payload)
        simulate(five.inputs(*over("clear", two)), tmp_path / "unweighted", Observer(), workers=1)
    each = vector(tmp_path / "each")
    assert np.abs(vector(tmp_path / "sum") - each).max() < 2e-5
    assert np.abs(vector(tmp_path / "unweighted") - each).max() > 2e-3
    for mine, other in zip(records(tmp_path / "sum"), records(tmp_path / "each"), strict=True):
        shown = [{**arrived, "digest": ""} for arrived in other["arrivals"]]
        assert [arrived["share"] for arrived in mine["arrivals"]] == pytest.approx([each["share"] for each in shown])
        assert [{**arrived, "share": 0} for arrived in mine["arrivals"]] == [{**each, "share": 0} for each in shown]
    assert {arrived["staleness"] for arrived in records(tmp_path / "sum")[1]["arrivals"]} == {0, 1}


def test_a_site_that_waits_for_a_sum_is_not_asked_again() -> None:
    """It could answer again before the sum is made: what it keeps would be replaced, or be in the sum twice."""
    how = Summation(plugin(CHANNELS, "clear"), 1.0)
    parts = federation_parts(schedule=plugin(SCHEDULES, "buffered", size=3), summation=how)
    federation = SummedFederation(parts, 0, np.zeros(4, np.float32), lambda cases, values: cases)
    cases = dict.fromkeys(("a", "b", "c", "late"), 5)
    flights = {site: federation.dispatch(site, cases) for site in federation.idle(cases)}
    for stale in (("a", "b", "c"), ("late",)):
        step = federation.begin(cases)
        for site in stale:
            federation.receive(step, TrainReply(site, flights[site].number, None, 5, 1, 1, 1.0, 1.0))
        if stale == ("late",):
            break
        federation.settle(step, opened=False)
        federation.step(step.outcome(), np.ones(4, np.float32))
    assert federation.orders() == {"late": 1}
    assert federation.idle(cases) == ["a", "b", "c"]
    assert AsynchronousFederation.idle(federation, cases) == ["a", "b", "c", "late"]


@with_teacher
@pytest.mark.parametrize("channel", SEALED)
def test_a_pool_gives_the_same_model(five: Any, tmp_path: Path, channel: str) -> None:
    inputs = five.inputs(*over(channel))
    simulate(inputs, tmp_path / "alone", Observer(), workers=1)
    simulate(inputs, tmp_path / "pool", Observer(), workers=2)
    assert model_bytes(tmp_path / "alone") == model_bytes(tmp_path / "pool")


@with_teacher
@pytest.mark.parametrize(("hook", "call"), [("round_started", 3), ("answered", 5), ("evaluating", 1), ("answered", 9)])
def test_a_resumed_run_equals_an_undisturbed_one(five: Any, tmp_path: Path, hook: str, call: int) -> None:
    inputs = five.inputs(*over("masks", "federation.server=momentum"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, broken, CrashAt(hook, call), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert records(whole) == records(broken)


@with_teacher
@pytest.mark.parametrize(("place", "after"), [("keep_release", False), ("keep_release", True), ("commit", False)])
def test_a_sum_that_was_opened_is_not_opened_again(five: Any, tmp_path: Path, place: str, after: bool) -> None:
    """What was handed over for it is in no other sum."""
    inputs = five.inputs(*over("masks"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with crash(Journal, place, 2, after=after):
        simulate(inputs, broken, Observer(), workers=1)
    asked = set[int]()
    real = InProcess.exchange

    def watched(self: InProcess, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        asked.update(message.header["round"] for message in messages.values() if stage == HAND_OVER)
        return real(self, stage, messages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "exchange", watched)
        simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert records(whole) == records(broken)
    assert asked == ({2, 3, 4} if (place, after) == ("keep_release", False) else {3, 4})


def test_a_site_that_hands_nothing_over_is_left_out(five: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With five sites in a sum four are left; with three the sum stays closed, and the run goes on."""
    real = SiteDoor._hand_over

    def silent(self: SiteDoor, header: Mapping[str, Any]) -> Message:
        if self.name == "coast":
            raise RunError.at("site coast", "was started anew")
        return real(self, header)

    monkeypatch.setattr(SiteDoor, "_hand_over", silent)
    whole = "federation.schedule={kind: buffered, size: 5}"
    summary = simulate(five.inputs(*over("masks", whole)), tmp_path / "four", Observer(), workers=1)
    assert all(record["moved"] for record in records(tmp_path / "four"))
    shares = [each["share"] for record in records(tmp_path / "four") for each in record["arrivals"]]
    assert shares.count(0) == 4
    assert all("did not hand over" in record["failed"]["coast"] for record in records(tmp_path / "four"))
    assert summary["asynchronous"]["outcomes"] == {"admit": 16, "failed": 4}
    assert summary["asynchronous"]["sites"]["coast"]["share"] == 0
    simulate(five.inputs(*over("masks")), tmp_path / "three", Observer(), workers=1)
    found = records(tmp_path / "three")
    assert len(found) == 4 and not all(record["moved"] for record in found)
    assert all(("3 are needed" in record["void"]) != record["moved"] for record in found)
    closed = [each for record in found if not record["moved"] for each in record["arrivals"]]
    assert {(each["outcome"], each["share"]) for each in closed} == {("void", 0), ("failed", 0)}


def test_a_step_without_enough_sites_opens_nothing(five: Any, tmp_path: Path) -> None:
    for site in ("center", "coast", "east"):
        (five.sites / f"{site}.yaml").write_text(f"{{name: {site}, fault: {{kind: nan}}}}")
    simulate(five.inputs(*over("masks")), tmp_path / "run", Observer(), workers=1)
    assert all("south, west waits for a sum, 3 are needed" in record["void"] for record in records(tmp_path / "run"))


FAIR = {"a": 1.0, "b": 0.5, "c": LEAST}


@pytest.mark.parametrize(
    "weights",
    [
        None,
        {},
        {"a": 1.0, "b": 1.0},
        {"b": 1.0, "c": 1.0, "d": 1.0},
        FAIR | {"b": LEAST / 1.01},
        FAIR | {"a": 1.01},
        FAIR | {"b": 0},
        FAIR | {"c": float("nan")},
        FAIR | {"c": True},
        FAIR | {"c": "1"},
    ],
    ids=str,
)
def test_weights_that_would_show_a_single_update_are_refused(weights: Any) -> None:
    with pytest.raises(RunError, match="site a: was told weights that it cannot use"):
        own_weight(weights, "a", "site a")
    assert own_weight(FAIR, "b", "site b") == 0.5


def test_sites_that_were_told_other_weights_hand_nothing_over(five: Any, tmp_path: Path) -> None:
    """A coordinator that tells each site that the others count little."""
    real = InProcess.exchange

    def lying(self: InProcess, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        if stage == HAND_OVER:
            messages = {
                site: replace(
                    message,
                    header={**message.header, "weights": dict.fromkeys(message.header["weights"], LEAST) | {site: 1.0}},
                )
                for site, message in messages.items()
            }
        return real(self, stage, messages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "exchange", lying)
        simulate(five.inputs(*over("masks")), tmp_path / "run", Observer(), workers=1)
    assert not any(record["moved"] for record in records(tmp_path / "run"))


def test_a_site_gives_an_update_away_once(five: Any, tmp_path: Path) -> None:
    real, again = InProcess.exchange, list[Mapping[str, Message]]()

    def twice(self: InProcess, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        first = real(self, stage, messages)
        if stage == HAND_OVER:
            again.append(real(self, stage, messages))
        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "exchange", twice)
        simulate(five.inputs(*over("clear")), tmp_path / "run", Observer(), workers=1)
    assert again == [{}] * 4


def test_an_update_is_not_sealed_for_a_second_sum_however_it_is_asked_for(five: Any, tmp_path: Path) -> None:
    """The order comes again, and with it the same update: in two sums it would be their difference."""
    inputs = five.inputs(*over("clear"))
    memory = DiskMemory(tmp_path / "memory")
    cases = assign_cases(inputs).cases
    host = SiteHost(inputs, {"east": cases["east"]}, {"east": memory})
    host.open()
    host.begin(Beginning("run", {}))
    model, _ = host.initial_model()
    coded = build_codec_down(inputs.study).encode(Update(model, model.size), np.random.default_rng(0))
    order = TrainOrder("east", 1, LOCAL | sum_later_values(inputs.study))
    weights = {"east": 1.0, "south": 1.0, "west": 1.0}

    def handed(host: SiteHost, round_: int, **changed: float) -> Any:
        return host.answer("east", HAND_OVER, Message({"round": round_, "order": 1, "weights": weights | changed}))

    reply, _ = host.train(order, coded)
    assert isinstance(reply, TrainReply) and reply.payload is None
    first = handed(host, 1)
    assert first is not None
    host.train(order, coded)
    assert handed(host, 2) is None
    assert handed(host, 1, west=0.5) is None
    again = handed(host, 1)
    assert again is not None and bytes(again.buffers[0]) == bytes(first.buffers[0])
    # a process that is started anew has it on its disk, and knows what it was sealed for
    later = SiteHost(inputs, {"east": cases["east"]}, {"east": DiskMemory(tmp_path / "memory")})
    later.open()
    later.begin(Beginning("run", {}))
    assert handed(later, 2) is None
    found = handed(later, 1)
    assert found is not None and bytes(found.buffers[0]) == bytes(first.buffers[0])


@pytest.mark.parametrize("name", ["sum.cap", "sum.bound", "sum.clip", "sum.bit"])
def test_an_order_with_another_grid_is_not_trained(five: Any, name: str) -> None:
    """With a large cap an update would vanish beside the others, whatever the weights say."""
    inputs = five.inputs(*over("clear"))
    host = SiteHost(inputs, assign_cases(inputs).cases)
    host.open()
    host.begin(Beginning("run", {}))
    model, _ = host.initial_model()
    coded = build_codec_down(inputs.study).encode(Update(model, model.size), np.random.default_rng(0))
    values = LOCAL | sum_later_values(inputs.study)
    for wrong in ({**values, name: 1e15}, {key: value for key, value in values.items() if key != name}):
        answer, _ = host.train(TrainOrder("east", 1, wrong), coded)
        assert isinstance(answer, SiteFailure) and "another clip, grid or weight" in answer.reason
    answer, _ = host.train(TrainOrder("east", 1, values), coded)
    assert isinstance(answer, TrainReply)


def test_sites_of_a_round_that_were_told_other_values_seal_nothing(tiny: Any, tmp_path: Path) -> None:
    """In rounds, too: a site that is told another cap than the others would vanish beside one."""
    inputs = tiny.inputs("update={channel: masks, clip: 4.0}", "federation.regulator=[finite]", "stop.rounds=2")
    real = InProcess._train

    def lying(self: InProcess, order: TrainOrder, *rest: Any) -> Any:
        return real(self, replace(order, values={**order.values, "sum.cap": 1e15}), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "_train", lying)
        simulate(inputs, tmp_path / "run", Observer(), workers=1)
    assert not any(record["moved"] for record in records(tmp_path / "run"))
    assert "other values" in str(records(tmp_path / "run")[0]["failed"])


def test_a_quorum_counts(five: Any, tmp_path: Path) -> None:
    real = SiteDoor._hand_over

    def silent(self: SiteDoor, header: Mapping[str, Any]) -> Message:
        if self.name == "coast":
            raise RunError.at("site coast", "is away")
        return real(self, header)

    four = "federation.schedule={kind: buffered, size: 4}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SiteDoor, "_hand_over", silent)
        simulate(five.inputs(*over("clear", four, "federation.quorum=4")), tmp_path / "run", Observer(), workers=1)
    found = [record for record in records(tmp_path / "run") if "coast" in record["failed"]]
    assert found and all("quorum is 4" in record["void"] and not record["moved"] for record in found)


def test_the_holder_of_the_key_does_not_train(five: Any, tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    with pytest.raises(StudyError, match="west, which trains and cannot answer meanwhile"):
        holder = "update.channel={kind: he, key_holder: west}"
        simulate(five.inputs(*over("he", holder)), tmp_path / "run", Observer(), workers=1)


def test_what_did_not_count_is_not_made_up_for(five: Any, tmp_path: Path) -> None:
    """The correction for slow sites knows the updates that moved the model, and no others."""
    inputs = five.inputs(*over("clear"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SiteDoor, "_hand_over", lambda self, header: None)
        simulate(inputs, tmp_path / "none", Observer(), workers=1)
    state = Journal.open(tmp_path / "none" / "journal.db").state()
    assert state is not None and state[0]["asynchronous"]["influence"] == {"arrivals": 0, "sites": {}}
