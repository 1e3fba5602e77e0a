"""A saved model on images: the run's own, or others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfl.coordinator.records import metrics_json
from medfl.coordinator.runner import inputs_of
from medfl.data.base import Case, SampleSet
from medfl.data.cache import default_folder
from medfl.errors import Faults, InputError, StudyError
from medfl.report.saved import SavedModel, load_saved, run_folder
from medfl.study.load import load_sites
from medfl.study.model import EvaluationSection, Study
from medfl.study.sources import RunInputs, assign_cases, load_site_data
from medfl.tasks.base import add

SPLITS = ("test", "val", "train", "all")


def evaluate_model(
    model: Path,
    *,
    data: Path | None = None,
    sites: Path | None = None,
    site: str | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Metrics of a saved model, as in `summary.json`: "global", "sites" and "unseen", each metric with its n.

    model: run or model folder. data: images in place of the run's own; the same images as the run's give the run's own
    splits. sites: folder of site files whose images are used. site: this site alone. split: one of SPLITS; images
    that say nothing of splits are split as the study says.

    "over": sites that "global" is the sum of: those that are not unseen, or all when there are no others.
    "cases" and "skipped": images used by site, and those left out with their reasons. InputError with all faults.
    """
    if split not in SPLITS:
        raise InputError.at("--split", f"there is no split {split!r}", f"use one of: {', '.join(SPLITS)}")
    saved = load_saved(model)
    inputs = evaluation_inputs(model, saved, data, sites)
    assignment = assign_cases(inputs)
    cases = _chosen(assignment.cases, site, split)
    faults, samples, skipped = Faults(), dict[str, SampleSet](), dict[str, dict[str, str]]()
    for name, own in cases.items():
        try:
            found = load_site_data(inputs, name, own)
        except InputError as error:
            faults.extend(error.faults)
            continue
        if found.skipped:
            skipped[name] = {one.key: one.reason for one in found.skipped}
        if "test" in found.splits:
            samples[name] = found.splits["test"]
    faults.raise_if_any(InputError)
    if not samples:
        reasons = "; ".join(reason for own in skipped.values() for reason in list(own.values())[:3])
        raise InputError.at(
            f"split {split}", f"no image can be used{f': {reasons}' if reasons else ''}", "check the data"
        )
    unseen = [name for name in samples if name in assignment.unseen]
    return {"study": saved.study.name, "task": saved.study.task.kind, "primary": saved.task.primary} | {
        "metrics": {"split": split, **_evaluated(saved, samples, unseen)},
        "cases": {name: own.cases for name, own in samples.items()},
        "skipped": skipped,
    }


def evaluation_inputs(model: Path, saved: SavedModel, data: Path | None, sites: Path | None) -> RunInputs:
    """What to read: the run's own inputs, or other images with the saved study's preprocessing."""
    run = run_folder(model)
    own = inputs_of(run) if run else None
    if own and sites is None and (data is None or data.resolve() == own.data):
        return own
    if data is None and sites is None:
        raise InputError.at(model, "does not say which images it was trained on", "give --data, or the run folder")
    if data is not None and not data.exists():
        raise InputError.at(f"--data {data}", "does not exist", "give a folder, a file or a datalist.json")
    return RunInputs(
        study=_elsewhere(saved.study),
        sites=tuple(load_sites(sites)) if sites else (),
        data=data.resolve() if data else None,
        cache=own.cache if own else default_folder().resolve(),
    )


def _elsewhere(study: Study) -> Study:
    """The study for other images: they stay at the sites they name (one site where they name none)."""
    changes = {
        "data": study.data.model_copy(update={"partition": None}),
        "federation": study.federation.model_copy(update={"sites": 1}),
        "evaluation": EvaluationSection(),
    }
    return study.model_copy(update=changes)


def _chosen(cases: Any, site: str | None, split: str) -> dict[str, list[Case]]:
    """The cases to evaluate by site. They count as test cases, so that none is augmented."""
    if site is not None and site not in cases:
        raise StudyError.at("--site", f"there is no site {site!r}", f"sites with images: {', '.join(sorted(cases))}")
    found = {}
    for name, own in sorted(cases.items()):
        members = [replace(case, split="test") for case in own if split in ("all", case.split)]
        if members and site in (None, name):
            found[name] = members
    if not found:
        where = f"site {site}" if site else "the images"
        raise InputError.at(where, f"there is no image of split {split}", "choose another --split, such as all")
    return found


def _evaluated(saved: SavedModel, samples: dict[str, SampleSet], unseen: Sequence[str]) -> dict[str, Any]:
    over = [name for name in samples if name not in unseen] or list(samples)
    task, total = saved.task, saved.task.empty()
    found = {}
    for name, own in samples.items():
        statistics = task.evaluate(saved.network, own, saved.device)
        found[name] = metrics_json(task.metrics(statistics))
        if name in over:
            add(total, statistics)
    return {
        "over": over,
        "global": metrics_json(task.metrics(total)),
        "sites": {name: metrics for name, metrics in found.items() if name not in unseen},
        "unseen": {name: metrics for name, metrics in found.items() if name in unseen},
    }
