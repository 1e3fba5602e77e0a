"""Run folders as the coordinator writes them, made without training: the records come from its own functions."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.coordinator import records
from medfl.coordinator.files import append_line, save_model, write_json, write_lines
from medfl.coordinator.journal import Journal
from medfl.federation.outcome import Contribution, RoundOutcome, RoundPlan
from medfl.federation.regulator.base import ADMIT, Verdict
from medfl.learning.messages import SiteInfo
from medfl.study.build import build_task
from medfl.study.load import study_from_json
from medfl.study.model import Site, Study
from medfl.study.sources import RunInputs
from medfl.tasks.base import Metric
from medfl.update.vector import Layout

RunMaker = Callable[..., Path]

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"classes": ["normal", "pneumonia"]},
    "segmentation": {"classes": ["background", "liver", "lesion"], "network": {"width": 4, "depth": 2}},
    "detection": {"classes": ["lung nodule", "liver lesion"]},
}
METRICS = {
    "classification": ("auroc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "ece"),
    "segmentation": ("dice", "iou", "global_dice"),
    "detection": ("map", "map_50", "map_10", "mar"),
}


def make_study(task: str = "classification", /, **changes: Any) -> Study:
    raw = {
        "name": f"{task}-study",
        "description": "A study for tests",
        "task": {"kind": task, **TASKS[task]},
        "data": {
            "source": {"kind": "synthetic", "generator": "ct", "task": task, "cases": 8, "size": [32, 32]},
            "preprocess": {"size": [32, 32]},
        },
        "stop": {"rounds": 12},
    }
    return study_from_json(raw | changes)


@pytest.fixture
def study() -> Callable[..., Study]:
    return make_study


def metrics_of(task: str, value: float, n: int) -> list[Metric]:
    """Metrics around `value`, of all classes and of each."""
    classes = TASKS[task]["classes"][task == "segmentation" :]
    found = [Metric(name, value - 0.01 * place, n) for place, name in enumerate(METRICS[task])]
    found += [Metric("loss", 1.2 - value, n)]
    return found + [
        Metric(name, value - 0.02 * number, n // 2, one)
        for number, one in enumerate(classes)
        for name in METRICS[task]
        if name not in ("accuracy", "balanced_accuracy", "ece")
    ]


def evaluation(task: str, sites: list[str], unseen: list[str], quality: float, split: str = "val") -> dict[str, Any]:
    own = {site: metrics_of(task, quality - 0.03 * (place % 7), 20 + place) for place, site in enumerate(sites)}
    return {
        "split": split,
        "over": sites,
        "global": records.metrics_json(metrics_of(task, quality - 0.05, 40 * len(sites))),
        "sites": {site: records.metrics_json(metrics) for site, metrics in own.items()},
        "unseen": {site: records.metrics_json(metrics_of(task, quality - 0.2, 35)) for site in unseen},
    }  # fmt: skip


def outcome_of(number: int, sites: list[str], rng: np.random.Generator) -> RoundOutcome:
    """A round in which some sites are refused, fail, are weighed down, keep their update back or are not asked."""
    cohort = tuple(site for place, site in enumerate(sites) if len(sites) < 4 or (place + number) % 5)
    values = {"local.epochs": 4.0 if number < 5 else 2.0, "local.learning_rate": 0.001}
    outcome = RoundOutcome(
        RoundPlan(number, cohort, values, dict.fromkeys(cohort, 100)),
        loss_start=1 / number + 0.1,
        loss=0.9 / number + 0.1,
        moved=True,
    )
    for place, site in enumerate(cohort):
        loss = 0.9 / number + 0.1 + 0.05 * float(rng.random())
        mine = Contribution(80 + place, 40, 4 if number < 5 else 2, loss + 0.1, loss, 1.0 + float(rng.random()), ADMIT)
        outcome.sites[site] = mine
        what = (7 * number + 3 * place) % 29
        if what == 1:
            outcome.sites[site] = Contribution(failure=f"site {site}, round {number}: the connection was lost")
        elif what == 2:
            mine.verdict = Verdict("refuse", "norm_history", "norm 52.8 is 40.7 times its own median norm", 0.0)
        elif what == 3:
            mine.verdict = Verdict("refuse", "finite", "3 of 20382 values are not finite", 0.0)
            mine.norm = math.nan
        elif what == 4:
            mine.verdict = Verdict("down-weight", "validation", "validation loss 0.71 against 0.52", 0.25)
        elif what == 5:
            mine.verdict, mine.skipped_upload = None, True
    return outcome


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """make_run(sites=5, rounds=12, task=.., ended=.., evaluated=.., skipped=.., names=..) -> run folder."""

    def make(
        sites: int = 5,
        rounds: int = 12,
        *,
        task: str = "classification",
        ended: bool = True,
        evaluated: bool = True,
        names: list[str] | None = None,
        skipped: dict[str, str] | None = None,
        stopped_by: str = "rounds",
        folder: str = "run",
        **changes: Any,
    ) -> Path:
        run, study, rng = tmp_path / folder, make_study(task, **changes), np.random.default_rng(0)
        names = names or [f"hospital-{number + 1:02d}" for number in range(sites)]
        training, unseen = (names[:-1], names[-1:]) if len(names) > 2 else (names, [])
        inputs = RunInputs(study=study, sites=tuple(Site(name=f"s{i}") for i in range(2)), cache=tmp_path / "cache")
        layout = Layout.of([("weight", (3, 4)), ("bias", (3,))])
        facts = {"inputs": inputs.model_dump(mode="json"), "layout": layout.to_json(), "versions": records.versions()}
        run.mkdir()
        journal = Journal.create(run / "journal.db", facts)
        done: list[dict[str, Any]] = []
        write_lines(run / "rounds.jsonl", done)
        for number in range(1, rounds + 1):
            outcome = outcome_of(number, training, rng)
            metrics = evaluation(task, training, unseen, 1 - 0.5 / (number + 1)) if evaluated else None
            each = {"up": 84_000, "down": 83_000}
            traffic = {"up_bytes": 84_000 * len(outcome.sites), "down_bytes": 83_000 * len(outcome.sites),
                       "sites": dict.fromkeys(outcome.sites, each), "evaluation_up_bytes": 900 * len(names),
                       "evaluation_down_bytes": 83_000 * len(names)}  # fmt: skip
            seconds = {"plan": 0.001, "down": 0.002, "local": 3 + float(rng.random()), "review": 0.2, "step": 0.05,
                       "evaluate": 0.6, "commit": 0.02}  # fmt: skip
            spent = {site: {"train": 2.0, "total": 2.5} for site in outcome.sites}
            record = records.round_record(outcome, metrics, traffic, seconds, spent)
            journal.commit(record, {"round": number}, {}, record["verdicts"])
            append_line(run / "rounds.jsonl", record)
            done.append(record)
        if ended:
            infos = [SiteInfo(site, {"train": 80, "val": 20, "test": 20}) for site in training]
            infos += [SiteInfo(site, {"val": 30, "test": 35}) for site in unseen]
            infos[0] = SiteInfo(infos[0].name, infos[0].cases, skipped or {})
            save_model(run / "model", layout, np.zeros(layout.size, np.float32), study)
            nothing = records.metrics_json(build_task(study).metrics(build_task(study).empty()))
            empty = {"split": "val", "over": [], "global": nothing, "sites": {}, "unseen": {}}
            summary = {
                "study": study.name, "task": task, "seed": 0, "baseline": None, "rounds_completed": rounds,
                "stopped_by": stopped_by, "primary": build_task(study).primary, "parameters": layout.size,
                "metrics": evaluation(task, training, unseen, 0.93, "test") if evaluated else empty,
                "privacy": records.privacy_statement(), "traffic": records.traffic_total(done, {}),
                "regulator": records.regulator_counts(done), "data": records.data_json(infos),
                "seconds": records.seconds_total(done, {"start_up": 2.5, "final_evaluation": 0.4}),
                "versions": records.versions(),
            }  # fmt: skip
            write_json(run / "summary.json", summary)
            journal.set_fact("summary", summary)
        journal.close()
        return run

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of real training on synthetic images: three small sites, one of them unseen."""
    from medfl.coordinator.observer import Observer
    from medfl.coordinator.runner import simulate
    from medfl.data.synthetic.config import SyntheticSpec
    from medfl.data.synthetic.write import write_federation
    from medfl.study.model import SiteShift

    root = tmp_path_factory.mktemp("trained")
    spec = SyntheticSpec(generator="chest", task="classification", size=(32, 32), cases=24, prevalence=0.5)
    shifts = {"north": SiteShift(), "south": SiteShift(noise=0.05), "west": SiteShift(blur=1.0)}
    write_federation(root / "data", spec, shifts, 3)
    study = make_study(
        "classification",
        task={
            "kind": "classification",
            "classes": ["normal", "pneumonia"],
            "network": {"layers": [1], "width": 4, "stem": "small"},
        },
        data={"source": {"kind": "datalist", "path": str(root / "data" / "datalist.json")},
              "preprocess": {"size": [32, 32]}, "split": [2, 1, 1], "augment": {"factor": 3}},
        evaluation={"unseen": ["west"]},
        stop={"rounds": 2},
    )  # fmt: skip
    simulate(RunInputs(study=study, cache=root / "cache"), root / "run", Observer(), workers=1)
    return root / "run"
