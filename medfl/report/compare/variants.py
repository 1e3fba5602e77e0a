"""The file of variants, and every run that it asks for: read and checked whole before anything runs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medfl.coordinator.journal import journal_in
from medfl.coordinator.runner import inputs_of
from medfl.errors import Fault, Faults, InputError, MedflError, StudyError
from medfl.report.run import read_json
from medfl.study.build import build_task
from medfl.study.load import load_sites, load_study
from medfl.study.model import Site, Study
from medfl.study.sources import Assignment, RunInputs, adapt_to_images, assign_cases
from medfl.study.yaml_text import parse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$")
_HOW = "write `name: [key.path=value, ...]` or `name: {study: other.yaml, set: [key.path=value, ...]}`"


class Variant(BaseModel):
    """One entry of the file. study: replaces the study that is compared; `set`: keys that are changed, as by --set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    study: str | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Common:
    """What all variants share. study: the file that is varied; overrides: as --set, before a variant's own; sites:
    folder of site files, or None for the folder that belongs to a study; ledgers: where a run's privacy ledgers lie."""

    study: Path
    seeds: tuple[int, ...]
    out: Path
    cache: Path
    sites_of: Callable[[Path], Path | None]
    ledgers_of: Callable[[RunInputs, Path], Path]
    sites: Path | None = None
    data: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One run: a variant with a seed, in its folder. state: "new", "begun" (it is resumed) or "done"."""

    variant: str
    changes: Variant
    seed: int
    inputs: RunInputs
    folder: Path
    state: str = "new"


def read_variants(path: Path) -> dict[str, Variant]:
    """The variants of a YAML file by name; StudyError with everything that is wrong with it."""
    try:
        raw = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError.at(path, f"cannot be read as YAML: {error}", "mend the file, or check the path") from error
    if not isinstance(raw, dict) or not raw:
        raise StudyError.at(path, "is not a mapping of variants by name", _HOW)
    faults, found = Faults(), dict[str, Variant]()
    for name, value in raw.items():
        where = f"{path.name}: {name}"
        if not _NAME.match(str(name)):
            faults.add(where, "cannot be the name of a folder", "use letters, digits, and . _ + - between them")
        if str(name).lower() in {other.lower() for other in found}:
            faults.add(where, "differs from another variant only by case", "give it another name")
        try:
            found[str(name)] = _variant(value)
        except ValidationError as error:
            faults.extend(_wrong(where, dict(item)) for item in error.errors())
    faults.raise_if_any(StudyError)
    return found


def _variant(value: Any) -> Variant:
    changes = {"set": value} if isinstance(value, list) or value is None else value
    if isinstance(changes, dict):
        listed = changes.get("set")
        changes = {**changes, "set": () if listed is None else tuple(listed) if isinstance(listed, list) else listed}
    return Variant.model_validate(changes)


def _wrong(where: str, item: Mapping[str, Any]) -> Fault:
    place = ".".join(str(part) for part in item["loc"])
    return Fault(f"{where}{': ' if place else ''}{place}", str(item["msg"]), _HOW)


def plan(variants: Mapping[str, Variant], source: Path, common: Common) -> list[Plan]:
    """Every run, by seed and then by variant, so that an early look compares like with like.

    source: the file of the variants, which relative paths in it belong to. Images are looked for and dealt out too.
    StudyError or InputError with all faults of all variants.
    """
    faults, made = Faults(), list[tuple[str, RunInputs]]()
    for name, variant in variants.items():
        try:
            made.append((name, _inputs(variant, source, common)))
        except MedflError as error:
            faults.extend(replace(fault, where=f"{name}: {fault.where}") for fault in error.faults)
    faults.extend(_other_tasks(made))
    faults.raise_if_any(StudyError)
    plans = []
    for seed in common.seeds:
        for name, inputs in made:
            folder = common.out / name / f"seed{seed}"
            seeded = inputs.model_copy(update={"study": inputs.study.model_copy(update={"seed": seed})})
            seeded = seeded.model_copy(update={"ledgers": common.ledgers_of(seeded, folder).resolve()})
            plans.append(Plan(name, variants[name], seed, seeded, folder))
    return _looked_at(plans)


def _inputs(variant: Variant, source: Path, common: Common) -> RunInputs:
    file = common.study if variant.study is None else source.parent / variant.study
    if any(change.partition("=")[0].strip() == "seed" for change in (*common.overrides, *variant.set)):
        raise StudyError.at("seed", "every variant runs with the same seeds", "leave it out, and give --seeds")
    study = load_study(file, [*common.overrides, *variant.set])
    synthetic = common.data is None and study.data.source.kind == "synthetic"
    folder = common.sites or (common.sites_of(file) if synthetic else None)
    sites: tuple[Site, ...] = tuple(load_sites(folder)) if folder else ()
    inputs = RunInputs(study=study, sites=sites, data=common.data, cache=common.cache)
    return adapt_to_images(inputs)[0]


def _other_tasks(made: Sequence[tuple[str, RunInputs]]) -> list[Fault]:
    """A fault for each variant that trains another task than the first: their metrics cannot be compared."""
    if not made:
        return []
    (first, inputs), tasks = made[0], [(name, inputs.study.task.kind) for name, inputs in made]
    return [
        Fault(f"{name}: task.kind", f"is {kind}, and that of {first} is {inputs.study.task.kind}", "compare one task")
        for name, kind in tasks
        if kind != inputs.study.task.kind
    ]


def _looked_at(plans: Sequence[Plan]) -> list[Plan]:
    """The plans with what their folders hold already; faults where that is something else."""
    faults, found = Faults(), list[Plan]()
    for one in plans:
        try:
            found.append(replace(one, state=_state(one)))
        except MedflError as error:
            faults.extend(error.faults)
    faults.raise_if_any(InputError)
    return found


def _state(one: Plan) -> str:
    if not one.folder.exists() or not any(one.folder.iterdir()):
        return "new"
    if journal_in(one.folder) is None:
        raise InputError.at(one.folder, "holds something that is not a run", "remove it, or choose another --out")
    differing = _differences(_settings(inputs_of(one.folder)), _settings(one.inputs))
    if differing:
        raise InputError.at(
            one.folder,
            f"holds a run with other settings: {', '.join(differing[:6])}",
            "remove it, or choose another --out",
        )
    summary = one.folder / "summary.json"
    ended = summary.is_file() and read_json(summary).get("stopped_by") != "operator"
    return "done" if ended else "begun"


def _settings(inputs: RunInputs) -> dict[str, Any]:
    """What a run's numbers depend on."""
    return inputs.model_dump(mode="json", exclude={"cache", "ledgers"})


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """The dotted keys at which two values differ, "before -> after"."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            text
            for key in keys
            for text in _differences(before.get(key), after.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if before == after else [f"{where} was {before!r:.60} and is {after!r:.60}"]


def known_metrics(names: Sequence[str], study: Study) -> tuple[str, ...]:
    """The metrics, each once; InputError naming those that the study's task does not have."""
    if not names:
        return ()
    task = build_task(study)
    known = dict.fromkeys(metric.name for metric in task.metrics(task.empty()))
    faults = Faults()
    for name in dict.fromkeys(names):
        if name not in known:
            faults.add(f"--metric {name}", f"is no metric of {study.task.kind}", f"use some of: {', '.join(known)}")
    faults.raise_if_any(InputError)
    return tuple(dict.fromkeys(names))


def same_images(plans: Sequence[Plan]) -> list[str]:
    """Deal out the images of every run; a sentence for each variant that is not tested on the images of the first one.

    StudyError or DataError with all faults, each of a variant named.
    """
    faults, notes = Faults(), dict[str, None]()
    first: dict[int, tuple[str, frozenset[tuple[str, str]]]] = {}
    for one in plans:
        try:
            images = tested(assign_cases(one.inputs))
        except MedflError as error:
            faults.extend(replace(fault, where=f"{one.variant}: {fault.where}") for fault in error.faults)
            continue
        name, before = first.setdefault(one.seed, (one.variant, images))
        if images != before:
            notes[f"{one.variant} is not tested on the same images of the same sites as {name}."] = None
    faults.raise_if_any(StudyError)
    return list(notes)


def tested(assignment: Assignment) -> frozenset[tuple[str, str]]:
    """(site, case) of everything that the final evaluation of sites that take part looks at."""
    cases = [(site, case) for site, own in assignment.cases.items() if site not in assignment.unseen for case in own]
    split = "test" if any(case.split == "test" for _, case in cases) else "val"
    return frozenset((site, case.key) for site, case in cases if case.split == split)
