"""What a site does not take from its coordinator: another plan, another clip, a study that its policy refuses."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toys.proxied import PROXIED

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import Runner, simulate
from medfl.data.base import lent, origin_of
from medfl.errors import InputError, MedflError, RunError, StudyError
from medfl.learning.disclosure import Disclosure
from medfl.learning.messages import Beginning, SiteFailure, TrainOrder, TrainReply
from medfl.learning.randomness import generator
from medfl.privacy.grid import Grid
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.mechanisms.base import Facts, NoisePlan
from medfl.privacy.mechanisms.patient import PatientNoise, PatientNoiseConfig
from medfl.site.memory import DiskMemory
from medfl.study.build import build_codec_down
from medfl.study.sources import assign_cases, load_site_data
from medfl.tasks.base import fits
from medfl.transport.door import SiteDoor
from medfl.transport.host import SiteHost
from medfl.update.base import Payload, Update
from medfl.update.beside import joined
from medfl.update.codecs.indices import pack_indices
from medfl.update.submodels.base import Choice
from medfl.update.submodels.last_aggregate import LastAggregateChooser

PRIVATE = (
    "privacy={kind: patient, noise_multiplier: 1, delta: 1e-5, sampling_rate: 0.5, accept_low_utility: true}",
    "local.rules=[sgd]",
    "task.class_balance=none",
    "stop.rounds=1",
)
CHANGES: dict[str, Any] = {
    "sampling_rate": 0.001,
    "colluders": 0,
    "shares": 1000,
    "steps": 7,
    "clip": 1e-3,
    "denominator": 1.0,
    "patients": {"east": 1, "south": 1, "west": 1},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_plan_that_the_study_does_not_make_is_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    real = Runner._plan_noise

    def tampered(self: Runner, parameters: int) -> NoisePlan | None:
        plan = real(self, parameters)
        return None if plan is None else replace(plan, **{field: CHANGES[field]})

    monkeypatch.setattr(Runner, "_plan_noise", tampered)
    with pytest.raises(MedflError, match="noise plan that the study does not make"):
        simulate(tiny.inputs(*PRIVATE), tmp_path / "run", Observer(), workers=1)
    assert not (tmp_path / "run" / "journal.db").exists()


@pytest.mark.parametrize("kind", ["patient", "site"])
def test_a_coordinator_that_leaves_the_noise_plan_out_gets_nothing(tiny: Any, kind: str) -> None:
    """What the study says was approved; what the coordinator does not say must not undo it."""
    given = {"patient": PRIVATE, "site": ("privacy={kind: site, epsilon: 2, delta: 1e-5, accept_low_utility: true}",)}
    inputs = tiny.inputs(*given[kind])
    host = SiteHost(inputs, assign_cases(inputs).cases)
    host.open()
    with pytest.raises(RunError, match="noise plan that the study does not make") as told:
        host.begin(Beginning("run1", {}))
    # whoever trains is meant, and not the unseen site
    assert [fault.where for fault in told.value.faults] == ["site east", "site south", "site west"]
    assert not inputs.ledgers.exists()


def test_without_a_beginning_nothing_is_trained_and_nothing_kept(tiny: Any, tmp_path: Path) -> None:
    """What was trained without noise would be sealed and sent as soon as a run began."""
    inputs = tiny.inputs(*PRIVATE)
    memory = DiskMemory(tmp_path / "runs")
    cases = {"east": assign_cases(inputs).cases["east"]}
    host = SiteHost(inputs, cases, {"east": memory})
    host.open()
    with pytest.raises(RunError, match="noise plan"):
        host.begin(Beginning("run1", {}))
    vector, _ = host.initial_model()
    model = build_codec_down(inputs.study).encode(Update(vector, vector.size), generator(1, "codec-down", 1))
    answer, _ = host.train(TrainOrder("east", 1, {"local.learning_rate": 0.01, "local.epochs": 1}), model)
    assert isinstance(answer, SiteFailure) and "before the run began" in answer.reason
    assert memory.rounds() == []


def disclosure() -> Disclosure:
    config = PatientNoiseConfig(noise_multiplier=1.0, delta=1e-5, accept_low_utility=True)
    mechanism = PatientNoise(config)
    plan = mechanism.plan(Facts({"a": 10, "b": 10, "c": 10}, 100, 3))
    ledger = MemoryLedger("a")
    return Disclosure("a", "study", "run", mechanism, plan, ledger, ledger.register(["p"]))


def test_an_order_with_another_clip_gets_no_share() -> None:
    made = disclosure()
    permit = made.permit(1)
    with pytest.raises(RunError, match="told a clip of 1e-05"):
        made.share(np.zeros(100, np.float32), Grid(1e-5, 256), permit)
    assert made.share(np.zeros(100, np.float32), Grid(1.0, 256), permit).any()


def test_a_ceiling_refuses_a_study_without_privacy_or_with_a_generous_delta(tiny: Any, tmp_path: Path) -> None:
    (tiny.sites / "east.yaml").write_text("{name: east, policy: {max_epsilon: 4}}")
    with pytest.raises(InputError, match="allows epsilon 4, the study has no bound"):
        simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=1)
    loose = "privacy={kind: site, epsilon: 2, delta: 0.9, accept_low_utility: true}"
    with pytest.raises(InputError, match=r"east.*allows delta"):
        simulate(tiny.inputs(loose, "stop.rounds=1"), tmp_path / "run", Observer(), workers=1)


def test_the_pooled_baseline_does_not_pass_by_policies_or_privacy(tiny: Any, tmp_path: Path) -> None:
    pooled = tiny.inputs(*PRIVATE).model_copy(update={"pooled": True})
    with pytest.raises(StudyError, match="has no sites"):
        simulate(pooled, tmp_path / "run", Observer(), workers=1)
    (tiny.sites / "east.yaml").write_text("{name: east, policy: {max_epsilon: 4}}")
    with pytest.raises(StudyError, match="pass by the policies of east"):
        simulate(tiny.inputs().model_copy(update={"pooled": True}), tmp_path / "run", Observer(), workers=1)


def test_all_updates_refused_is_a_round_like_any_other(tiny: Any, tmp_path: Path) -> None:
    """Whether noise is released must not hang on what the regulator said."""
    strict = ("privacy={kind: site, noise_multiplier: 1, delta: 1e-3, accept_low_utility: true}", "stop.rounds=1")
    refused = "federation.regulator=[{kind: norm_limit, limit: 1e-9}]"
    summary = simulate(tiny.inputs(*strict, refused), tmp_path / "run", Observer(), workers=1)
    assert summary["regulator"]["outcomes"] == {"refuse": 3} and summary["privacy"]["releases"] == 1


def begun(tiny: Any, *overrides: str) -> tuple[SiteHost, Any]:
    """Sites that take part in a run over the clear channel, and the model as it is sent."""
    inputs = tiny.inputs(*overrides)
    host = SiteHost(inputs, assign_cases(inputs).cases)
    infos = host.open()
    host.begin(Beginning("run1", {info.name: info.identity for info in infos}))
    vector, _ = host.initial_model()
    return host, build_codec_down(inputs.study).encode(Update(vector, vector.size), generator(0, "test"))


ASKED = {"local.learning_rate": 0.01, "local.epochs": 2, "fedprox.mu": 0.1}


def test_an_order_alone_gets_no_snapshot_and_no_gradient_of_one_batch(tiny: Any) -> None:
    host, model = begun(tiny)
    plain, _ = host.train(TrainOrder("east", 1, ASKED), model)
    asked, _ = host.train(TrainOrder("east", 1, ASKED | {"local.snapshot": 0.5, "local.steps": 1}), model)
    assert isinstance(plain, TrainReply) and isinstance(asked, TrainReply)
    assert asked.snapshot is None and asked.steps == plain.steps > 1
    host, model = begun(tiny, "local.steps=1", "federation.schedule=drfa")
    meant, _ = host.train(TrainOrder("east", 1, ASKED | {"local.snapshot": 0.5, "local.steps": 1}), model)
    assert isinstance(meant, TrainReply) and meant.snapshot is not None and meant.steps == 1


def test_nothing_leaves_beside_a_sum_that_is_sealed(tiny: Any) -> None:
    """Also where a study that no rule may let through got this far."""
    host, model = begun(tiny, "update.channel=masks", "update.clip=5")
    door = host._doors["east"]
    sealed = TrainReply("east", 1, None, 1, 1, 1, 1.0, 1.0)
    with pytest.raises(RunError, match="beside the sum that is sealed"):
        door.seal(replace(sealed, notice=b"mask"))
    with pytest.raises(RunError, match="beside the sum that is sealed"):
        door.seal(replace(sealed, snapshot=model))
    with pytest.raises(RunError, match="beside the sum that is sealed"):
        door.seal(replace(sealed, prototypes=model))


def test_prototypes_leave_with_the_policy_s_consent_alone(tiny: Any) -> None:
    reply = TrainReply("east", 1, None, 1, 1, 1, 1.0, 1.0)
    for consents in (False, None, True):
        site = tiny.sites / "east.yaml"
        site.write_text(yaml.safe_dump({"name": "east", "policy": {"prototypes_may_leave": consents}}))
        host, model = begun(tiny, *PROXIED)
        door = host._doors["east"]
        assert bool(door.refusals(host._data["east"])) == (consents is False)
        if consents is False:
            with pytest.raises(RunError, match="keeps gradients of single images in the house"):
                door.seal(replace(reply, prototypes=model))
        else:
            assert door.seal(replace(reply, prototypes=model)).prototypes is model


def test_other_models_beside_the_model_are_for_studies_that_ask_for_them(tiny: Any) -> None:
    host, model = begun(tiny)
    both = joined(model, {"previous": model, "current": model}, {"since": 1})
    refused, _ = host.train(TrainOrder("east", 1, ASKED), both)
    assert isinstance(refused, SiteFailure) and "the study does not ask for" in refused.reason
    host, model = begun(tiny, *PROXIED)
    taken, _ = host.train(TrainOrder("east", 1, ASKED), both)
    assert isinstance(taken, TrainReply)
    for wrong in ({"previous": model, "best": model}, {}):
        refused, _ = host.train(TrainOrder("east", 1, ASKED), joined(model, wrong, {"since": 1}))
        assert isinstance(refused, SiteFailure) and "the study does not ask for" in refused.reason
    short = Payload("fp32", 2, (b"12345678",))
    refused, _ = host.train(TrainOrder("east", 1, ASKED), joined(model, {"current": short}, {"since": 1}))
    assert isinstance(refused, SiteFailure)


MANY = ("data.source.cases=120", "data.augment={factor: 2}")
PROBED = "federation.schedule={kind: drfa, sites: 2, probe_images: 32}"


def test_a_probed_site_takes_its_loss_of_some_images_and_of_others_for_another_model(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, model = begun(tiny, PROBED, *MANY)
    samples = host._data["east"].splits["train"]
    assert samples.cases >= 64 and len(samples) == 2 * samples.cases
    vector, code = host.receive(model), build_codec_down(host._inputs.study)
    models = [vector, vector.copy(), *(vector * scale for scale in np.linspace(1.1, 2, 10, dtype=np.float32))]
    sent = [code.encode(Update(each, each.size), generator(0, "x")) for each in models]
    asked, real = list[Any](), host._executor.evaluate

    def watched(samples: Any, vector: Any, indices: Any = None) -> Any:
        asked.append(indices)
        return real(samples, vector, indices)

    monkeypatch.setattr(host._executor, "evaluate", watched)
    found = [host.evaluate("east", "train", each)["loss"] for each in sent]
    assert asked[0] == asked[1] and len({tuple(chosen) for chosen in asked}) > 1
    keys = [{samples.info(index).key for index in chosen} for chosen in asked]
    # images, not variants of a few
    assert [len(named) for named in keys] == [count for _, count in found] and min(map(len, keys)) >= 32
    host.evaluate("east", "val", model)
    assert asked[-1] is None, "metrics are of all images"


def test_of_training_images_nothing_but_the_loss_leaves(tiny: Any) -> None:
    """Confusion, scores and calibration of a few images are their labels and predictions."""
    host, model = begun(tiny, PROBED)
    found, metrics = host.evaluate("east", "train", model), host.evaluate("east", "val", model)
    empty = host._executor.parts.task.empty()
    assert fits(found, empty) and found["loss"].all()
    assert {name for name, values in found.items() if values.any()} == {"loss"}
    assert {name for name, values in metrics.items() if values.any()} > {"loss"}, "which is what the fake would send"


def test_a_probe_is_of_enough_images_or_of_all(tiny: Any) -> None:
    with pytest.raises(StudyError, match="probe_images"):
        tiny.inputs("federation.schedule={kind: drfa, probe_images: 31}")
    host, model = begun(tiny, PROBED)
    assert host.evaluate("east", "train", model)["loss"][1] == host._data["east"].cases["train"] < 32


@pytest.mark.parametrize("plan", ["ring", "overlap"])
def test_a_probe_leaves_lent_images_out(tiny: Any, plan: str) -> None:
    host, model = begun(tiny, PROBED, *(["local.plan={kind: ring, redundancy: 1}"] if plan == "ring" else []))
    if plan == "overlap":
        data = host._data["east"]
        cases = assign_cases(host._inputs).cases["east"] + tuple(
            lent(case, "east", "shared-1") for case in assign_cases(host._inputs).cases["west"] if case.split == "train"
        )
        host._data["east"] = load_site_data(host._inputs, "east", cases)
        assert host._data["east"].cases == data.cases
    data = host._data["east"]
    samples = data.splits["train"]
    assert data.lent and len(samples) > data.cases["train"]
    own = [index for index in range(len(samples)) if not origin_of(samples.info(index).key)]
    vector = host.receive(model)
    expected, all_ = (host._executor.evaluate(samples, vector, chosen)["loss"] for chosen in (own, None))
    found = host.evaluate("east", "train", model)["loss"]
    assert found.tolist() == expected.tolist() != all_.tolist()


UNION = ("update.submodel={kind: union, share: 0.1}", "update.memory=error_feedback")


def test_places_leave_beside_a_sealed_sum_only_where_the_study_says_so(tiny: Any) -> None:
    sums = ("update.channel=masks", "update.clip=5")
    told = TrainReply("east", 1, None, 1, 1, 1, 1.0, 1.0, notice=b"places")

    def door(*overrides: str) -> SiteDoor:
        return SiteDoor("east", tiny.inputs(*sums, *overrides))

    assert door(*UNION).seal(told) is told
    with pytest.raises(RunError, match="beside the sum that is sealed"):
        door(*UNION).seal(replace(told, snapshot=Payload("fp32", 0, ())))
    for other in ((), ("update.submodel={kind: last_aggregate}", "update.memory=error_feedback")):
        with pytest.raises(RunError, match="beside the sum that is sealed"):
            door(*other).seal(told)
    # nor under privacy, should such a study ever get past the rules
    private = tiny.inputs("privacy={kind: site, epsilon: 2, delta: 1e-5, accept_low_utility: true}")
    union = tiny.inputs(*UNION).study.update
    forced = private.study.model_copy(update={"update": union})
    with pytest.raises(RunError, match="beside the sum that is sealed"):
        SiteDoor("east", private.model_copy(update={"study": forced})).seal(told)


def test_metrics_on_training_images_are_for_schedules_that_read_losses(tiny: Any) -> None:
    host, model = begun(tiny)
    with pytest.raises(RunError, match="metrics on its training images"):
        host.evaluate("east", "train", model)
    host, model = begun(tiny, "federation.schedule=drfa")
    assert host.evaluate("east", "train", model)["loss"][1] > 0


def test_metrics_that_the_study_withholds_do_not_leave(tiny: Any) -> None:
    noise = "epsilon: 2, delta: 1e-5, accept_low_utility: true, site_metrics: withheld"
    inputs = tiny.inputs(f"privacy={{kind: site, {noise}}}")
    with pytest.raises(RunError, match="metrics that the study withholds"):
        SiteDoor("east", inputs).may_evaluate("val")
    SiteDoor("north", inputs).may_evaluate("test")


def test_a_site_sums_only_what_all_sites_sum(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that names other places to one site would have that site's values, alone, in the sum."""
    real = LastAggregateChooser.choose

    def unfair(self: LastAggregateChooser, site: str, round_: int, rng: np.random.Generator) -> Choice:
        fair = real(self, site, round_, rng)
        if site != "west":
            return fair
        places = pack_indices(np.arange(self.submodel.count))
        return Choice(site, round_, {"places": base64.b64encode(places).decode()})

    monkeypatch.setattr(LastAggregateChooser, "choose", unfair)
    study = ("update.submodel={kind: last_aggregate, share: 0.1}", "update.memory=error_feedback")
    sums = ("update.channel=masks", "update.clip=5", "stop.rounds=1")
    simulate(tiny.inputs(*study, *sums), tmp_path / "run", Observer(), workers=1)
    (record,) = map(json.loads, (tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
    assert "another part of the vector" in record["failed"]["west"]
