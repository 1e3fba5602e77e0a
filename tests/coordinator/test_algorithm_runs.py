"""Whole runs of the algorithms that keep state at both ends: the same model in one process and in several, and after a
death in any round."""

from pathlib import Path
from typing import Any

import pytest
from toys.crashes import Crash, CrashAt, model_bytes, records

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate

PLAIN = ("local.steps=3", "local.optimizer={kind: sgd}", "local.gradient_clip=null", "local.learning_rate=0.05")
FAR = "federation.regulator=[finite]"
ALGORITHMS = {
    "fedcomgate-vr": (*PLAIN, "local.rules=[svrg, fedcomgate]", "update.codec_up={kind: int8, rounding: stochastic}"),
    "drfa": ("federation.schedule={kind: drfa, sites: 2, gamma: 0.1}",),
    "innovation": ("update.gate={kind: innovation, rate: 0.5, decay: 0.1}",),
    "laq": ("update.gate=laq", "update.codec_up=int4"),
    "stc both ways": (
        "update.codec_up={kind: stc, density: 0.05}",
        "update.memory=error_feedback",
        "update.down=change",
        "update.codec_down={kind: stc, density: 0.05}",
    ),
    "dgc": (
        "update.codec_up={kind: topk, density: {kind: warmup, values: [0.2, 0.05], rounds: 1}}",
        "update.memory=dgc",
    ),
    "personal_topk": ("update.codec_up={kind: personal_topk, density: 0.1}", "update.memory=error_feedback"),
    "powersgd": ("update.codec_up={kind: powersgd, rank: 1}", "update.memory=error_feedback"),
    "afd": ("update.submodel={kind: afd, drop: 0.5}", "federation.aggregator=masked_mean"),
    "lottery": ("update.submodel={kind: lottery, threshold: 0.0}", "federation.aggregator=masked_mean"),
    "low rank": (
        *PLAIN,
        "update.submodel={kind: low_rank, rank: 2}",
        "update.codec_up=int8",
        "update.memory=error_feedback",
    ),
    "low-rank sums": (
        "local.optimizer={kind: sgd, momentum: 0.9, weight_decay: 0.001}",
        "local.rules=[{kind: fedprox, mu: 0.1}]",
        "update.submodel={kind: low_rank, rank: 2, shared: true}",
        "update.channel=masks",
        "update.clip=5",
    ),
    "sparse sums": (
        "update.submodel={kind: last_aggregate, share: 0.1}",
        "update.memory=error_feedback",
        "update.channel=masks",
        "update.clip=5",
    ),
    "union": (
        "update.submodel={kind: union, share: 0.05, limit: 0.2}",
        "update.memory=error_feedback",
        "update.channel=masks",
        "update.clip=5",
    ),
    "median": ("federation.aggregator=median",),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_goes_on_to_the_same_model(tiny: Any, tmp_path: Path, name: str) -> None:
    inputs = tiny.inputs(FAR, *ALGORITHMS[name])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, broken, CrashAt("round_started", 3), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert not any(record["failed"] for record in records(whole))


@pytest.mark.parametrize(
    "name", ["stc both ways", "afd", "lottery", "low rank", "low-rank sums", "sparse sums", "union", "drfa"]
)
def test_processes_give_the_same_model_and_bytes(tiny: Any, tmp_path: Path, name: str) -> None:
    inputs = tiny.inputs(FAR, *ALGORITHMS[name])
    simulate(inputs, tmp_path / "alone", Observer(), workers=1)
    simulate(inputs, tmp_path / "pool", Observer(), workers=2)
    assert model_bytes(tmp_path / "alone") == model_bytes(tmp_path / "pool")
    assert records(tmp_path / "alone") == records(tmp_path / "pool")
