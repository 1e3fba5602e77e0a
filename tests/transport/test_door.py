"""What a site does not take from its coordinator: another plan, another clip, a study that its policy refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import Runner, simulate
from medfl.errors import InputError, MedflError, RunError, StudyError
from medfl.learning.disclosure import Disclosure
from medfl.learning.messages import Beginning, SiteFailure, TrainOrder
from medfl.learning.randomness import generator
from medfl.privacy.grid import Grid
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.mechanisms.base import Facts, NoisePlan
from medfl.privacy.mechanisms.patient import PatientNoise, PatientNoiseConfig
from medfl.site.memory import DiskMemory
from medfl.study.build import build_codec_down
from medfl.study.sources import assign_cases
from medfl.transport.host import SiteHost
from medfl.update.base import Update

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
