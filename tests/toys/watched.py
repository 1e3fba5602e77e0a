"""A made-up run for those who watch: what the coordinator's hooks say, without training."""

from typing import Any

import numpy as np

from medfl.federation.outcome import Contribution, RoundPlan
from medfl.federation.regulator.base import ADMIT, Verdict
from medfl.learning.messages import SiteInfo
from medfl.study.load import study_from_json

SITES = ("aachen", "bergen", "cluj", "delft", "evora")
RAW: dict[str, Any] = {
    "name": "chest-pilot",
    "description": "Pneumonia on chest X-rays, five made-up hospitals",
    "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "data": {
        "source": {"kind": "synthetic", "generator": "chest", "task": "classification", "cases": 8, "size": [32, 32]},
        "preprocess": {"size": [32, 32]},
    },
    "evaluation": {"unseen": ["evora"]},
    "stop": {"rounds": 12},
}
PRIVATE = {"privacy": {"kind": "site", "epsilon": 4.0, "delta": 1e-5, "accept_low_utility": True}}


def study_of(**changes: Any) -> Any:
    return study_from_json(RAW | changes)


def infos(sites: tuple[str, ...] = SITES) -> list[SiteInfo]:
    skipped = {"/data/patient-4711/scan.nii.gz": "cannot be read"}
    return [
        SiteInfo(
            site,
            ({} if site == "evora" else {"train": 160 + 7 * place}) | {"val": 40, "test": 41},
            skipped if place == 1 else {},
        )
        for place, site in enumerate(sites)
    ]


def record_of(number: int, sites: tuple[str, ...] = SITES, **changes: Any) -> dict[str, Any]:
    """A round as the coordinator writes it: bergen is refused in rounds 3 and 4, cluj fails in round 5."""
    rng = np.random.default_rng(number)
    training = [site for site in sites if site != "evora"]
    failed = {"cluj": "site cluj, round 5: /data/patient-4711/scan.nii.gz: cannot be read"} if number == 5 else {}
    refused = (
        {"bergen": {"rule": "norm_history", "reason": "norm 52.8 is 40.7 times its own"}} if number in (3, 4) else {}
    )
    admitted = {"outcome": "admit", "rule": "", "reason": "", "factor": 1.0, "norm": 1.2, "cases": 160}
    verdicts = {site: dict(admitted) for site in training if site not in failed}
    for site, why in refused.items():
        verdicts[site] = {**admitted, "outcome": "refuse", "factor": 0.0, **why}
    if number == 2 and "delft" in verdicts:
        verdicts["delft"] |= {
            "outcome": "down-weight",
            "rule": "validation",
            "reason": "0.71 against 0.52",
            "factor": 0.25,
        }
    level = 1 - 0.45 / (number + 0.3)

    def entry(place: int) -> dict[str, Any]:
        value = round(level - 0.02 * place + 0.02 * float(rng.random()), 4)
        return {"auroc": {"value": value, "n": 40, "classes": {}}, "accuracy": {"value": value - 0.05, "n": 40},
                "loss": {"value": 1 - value, "n": 40}}  # fmt: skip

    return {
        "round": number,
        "participants": training,
        "late": [],
        "failed": failed,
        "refused": refused,
        "verdicts": verdicts,
        "moved": True,
        "void": "",
        "losses": {"mean_start": 0.9 / number, "mean": 0.8 / number + 0.1,
                   "sites": {site: 0.8 / number + 0.1 for site in training if site not in failed}},
        "metrics": {"split": "val", "over": training, "global": {"auroc": {"value": level, "n": 200}, "accuracy":
                    {"value": level - 0.05, "n": 200}, "loss": {"value": 1 - level, "n": 200}},
                    "sites": {site: entry(place) for place, site in enumerate(training)},
                    "unseen": {"evora": entry(6)} if "evora" in sites else {}},
        "bytes": {"up_bytes": 5_400_000, "down_bytes": 5_380_000, "evaluation_up_bytes": 4000,
                  "evaluation_down_bytes": 5_380_000,
                  "sites": {site: {"up": 1_350_000, "down": 1_345_000} for site in training}},
        "epsilon": None,
        "seconds": {"plan": 0.01, "local": 41.0 + float(rng.random()), "review": 0.2, "evaluate": 3.1, "commit": 0.02},
    } | changes  # fmt: skip


def play(state: Any, rounds: int = 6, sites: tuple[str, ...] = SITES, planned: int = 12, private: bool = False) -> None:
    """Some rounds as hooks."""
    for site in sites:
        state.presence(site, "connected")
    state.presence("bergen", "held", "waits for its steward")
    state.opened(infos(sites), planned, 0)
    training = tuple(site for site in sites if site != "evora")
    for number in range(1, rounds + 1):
        state.round_started(RoundPlan(number, training, {}, dict.fromkeys(training, 160)))
        record = record_of(number, sites, **({"epsilon": 0.55 * number} if private else {}))
        for site in training:
            state.local_progress(site, 40, 40)
            verdict = Verdict("refuse", "norm_history", "norm 52.8", 0.0) if site in record["refused"] else ADMIT
            state.answered(
                site, Contribution(160, 40, 2, 0.5, 0.4, 1.0, verdict, failure=record["failed"].get(site, ""))
            )
        state.evaluating("val", training[0])
        state.round_finished(record)


def play_on(state: Any, number: int = 7) -> None:
    """The middle of a round: one site trains, one was lost, one is done."""
    state.round_started(RoundPlan(number, SITES[:4], {}, dict.fromkeys(SITES[:4], 160)))
    state.local_progress("aachen", 14, 40)
    state.local_progress("bergen", 31, 40)
    state.answered("cluj", Contribution(160, 40, 2, 0.5, 0.4, 1.0, ADMIT))
    state.presence("delft", "lost", "no heartbeat for 30 s")
