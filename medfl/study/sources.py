"""Where a study's images come from, and which site holds which."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medfl.data.base import Case, Datalist, SiteData
from medfl.data.partition.base import COMMON, PARTITIONS
from medfl.data.plans.base import PLANS
from medfl.data.split import assign_splits
from medfl.errors import DataError, Faults, InputError, StudyError
from medfl.study.fitting import require_classes, require_task
from medfl.study.model import Site, Study
from medfl.study.reserved import POOLED, RESERVED
from medfl.study.shared_images import reads_shared, shared_cases


class RunInputs(BaseModel):
    """Everything that defines a run beside its folder; JSON-able, so that a worker process or a resumed run gets
    the same.

    data: replaces the study's source. ledgers: the folder of the privacy ledgers, which outlives runs. pooled: all
    training cases at one site (the centralised baseline). only: this site alone trains. Sites that do not train are
    still evaluated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: Study
    sites: tuple[Site, ...] = ()
    data: Path | None = None
    cache: Path
    ledgers: Path = Path("ledgers")
    pooled: bool = False
    only: str | None = None


@dataclass(frozen=True)
class Assignment:
    """Which site holds which cases. unseen: sites that evaluate without ever being meant to train."""

    cases: Mapping[str, tuple[Case, ...]]
    unseen: frozenset[str]


def assign_cases(inputs: RunInputs) -> Assignment:
    """The cases of every site, split and partitioned; StudyError or DataError with all faults.

    The same inputs give the same answer in every process. Synthetic images are written on the first call and found
    again later.
    """
    study = inputs.study
    datalist = open_datalist(inputs)
    require_task(study, datalist)
    require_classes(study, datalist)
    named = sorted({case.site for case in datalist.cases if case.site})
    partition = PARTITIONS.build(study.data.partition or PARTITIONS.default("column" if named else "iid"))
    sites = named if partition.config.kind == "column" else _site_names(inputs, named)
    cases = partition.assign(datalist.cases, sites, study.seed)
    cases = assign_splits([_shared_test(case) for case in cases], study.data.split, study.seed)
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.site, []).append(case)
    _check_sites(inputs, found)
    unseen = {name for name, own in found.items() if not any(case.split == "train" for case in own)}
    unseen |= set(study.evaluation.unseen)
    return Assignment(_with_roles(inputs, found, unseen), frozenset(unseen))


def own_cases(inputs: RunInputs) -> tuple[Case, ...]:
    """The cases of the only site of these inputs, which knows of no other site's; the same as in a simulation of all
    sites. StudyError or DataError with all faults."""
    study, (site,) = inputs.study, inputs.sites
    refuse_sharing(study)
    datalist = _joined(inputs)
    require_task(study, datalist)
    require_classes(study, datalist)
    cases = assign_splits(datalist.cases, study.data.split, study.seed)
    quiet = site.name in study.evaluation.unseen
    held = tuple(case for case in cases if not (quiet and case.split == "train"))
    return _planned(inputs, {site.name: held})[site.name] if held else ()


def refuse_sharing(study: Study) -> None:
    """StudyError when a study would lend a site's images to others, which only a simulation can do."""
    if "lends-images" in study.local.plan.traits():
        raise StudyError.at(
            f"study {study.name}: local.plan",
            f"{study.local.plan.kind} lends images to other sites, and no image leaves a hospital",
            "use local.plan: overlap, which trains on images that sites hold by consent, or shards; or run it with "
            "medfl simulate",
        )


def _shared_test(case: Case) -> Case:
    """Cases of site "common" belong to nobody, so they never train: without a split they are test cases."""
    return replace(case, split="test") if case.site == COMMON and not case.split else case


def _has_own_lists(inputs: RunInputs) -> bool:
    """Whether the images are those that the sites' files name."""
    return inputs.data is None and any(site.data is not None for site in inputs.sites)


def open_datalist(inputs: RunInputs) -> Datalist:
    """The datalist of a run: `--data`, the sites' own, or the study's source."""
    source = inputs.study.data.source
    if _has_own_lists(inputs):
        return _joined(inputs)
    if inputs.data is None and source.kind == "synthetic":
        return _synthetic(inputs)
    from medfl.data.importers import find_datalist

    path = inputs.data or (source.path if source.kind == "datalist" else None)
    if path is None:
        raise StudyError.at("data.source.path", "the study does not say where its images are", "set it, or give --data")
    return find_datalist(path)


def adapt_to_images(inputs: RunInputs) -> tuple[RunInputs, list[str]]:
    """With images given in place of the study's own (`data`), what the study says of its images gives way to them.

    The classes are those of the images, and unseen sites that the images do not have are left out. Also returns a
    note for each change, to be shown.
    """
    if inputs.data is None:
        return inputs, []
    study, notes = inputs.study, []
    datalist = open_datalist(inputs)
    require_task(study, datalist)
    if datalist.classes != study.task.classes:
        notes.append(f"classes are those of the images: {', '.join(datalist.classes)}")
    there = {case.site for case in datalist.cases}
    absent = [name for name in study.evaluation.unseen if name not in there]
    if absent and any(there):
        notes.append(f"the images have no unseen site {', '.join(absent)}")
    unseen = tuple(name for name in study.evaluation.unseen if name in there)
    changed = {
        "task": study.task.model_copy(update={"classes": datalist.classes}),
        "evaluation": study.evaluation.model_copy(update={"unseen": unseen}),
    }
    return inputs.model_copy(update={"study": study.model_copy(update=changed)}), notes


def _joined(inputs: RunInputs) -> Datalist:
    from medfl.data.importers import find_datalist

    faults, lists = Faults(), []
    for site in inputs.sites:
        if site.data is None:
            faults.add(f"site {site.name}", "has no data while other sites name theirs", "set `data` in its file")
            continue
        try:
            lists.append((site.name, find_datalist(site.data)))
        except DataError as error:
            faults.extend(error.faults)
    faults.raise_if_any(DataError)
    first, shared = lists[0]
    for name, datalist in lists[1:]:
        if (datalist.task, datalist.classes) != (shared.task, shared.classes):
            faults.add(
                f"site {name}",
                f"has {datalist.task} of {', '.join(datalist.classes)}, "
                f"site {first} has {shared.task} of {', '.join(shared.classes)}",
                "give all sites the same classes in the same order: medfl data import --classes A,B",
            )
    faults.raise_if_any(DataError)
    # keys and patients' identifiers are each hospital's own: equal ones mean nothing
    cases = [
        replace(case, site=name, key=f"{name}/{case.key}", patient=f"{name}/{case.patient}" if case.patient else "")
        for name, datalist in lists
        for case in datalist.cases
    ]
    return replace(shared, cases=tuple(cases))


def _synthetic(inputs: RunInputs) -> Datalist:
    from medfl.data.manifest import load_datalist
    from medfl.data.synthetic.config import SyntheticSpec
    from medfl.data.synthetic.write import write_federation

    source = inputs.study.data.source
    if source.kind != "synthetic":
        raise StudyError.at("data.source", "is not synthetic")
    shifts = {site.name: site.synthetic for site in inputs.sites}
    if not shifts:
        raise StudyError.at(
            "sites", "synthetic images need site files", "give --sites a folder with one YAML a hospital"
        )
    spec = SyntheticSpec.model_validate(source.model_dump(exclude={"kind"}))
    text = json.dumps(
        [spec.model_dump(mode="json"), {name: shift.model_dump(mode="json") for name, shift in shifts.items()}],
        sort_keys=True,
    )
    key = hashlib.sha256(f"{text}|{inputs.study.seed}".encode()).hexdigest()[:16]
    folder = inputs.cache / "synthetic" / key
    if not (folder / "datalist.json").is_file():
        try:
            write_federation(folder, spec, shifts, inputs.study.seed)
        except (DataError, OSError):
            # another run may have made the same images meanwhile
            if not (folder / "datalist.json").is_file():
                raise
    return load_datalist(folder / "datalist.json")


def _site_names(inputs: RunInputs, named: Sequence[str]) -> tuple[str, ...]:
    """Names for a partition that makes sites itself: the site files', else those the images have, else generic ones."""
    if inputs.sites:
        return tuple(site.name for site in inputs.sites if site.name not in inputs.study.evaluation.unseen)
    known = tuple(name for name in named if name != COMMON)
    return known or tuple(f"site{number + 1}" for number in range(inputs.study.federation.sites))


def _check_sites(inputs: RunInputs, found: Mapping[str, Sequence[Case]]) -> None:
    evaluation, faults, known = inputs.study.evaluation, Faults(), f"sites with images: {', '.join(sorted(found))}"
    named = [("evaluation.unseen", name) for name in evaluation.unseen]
    named += [("evaluation.public", name) for name in (evaluation.public,) if name]
    named += [("--only", name) for name in (inputs.only,) if name]
    named += [("--sites", site.name) for site in inputs.sites if site.name not in evaluation.unseen]
    for key, name in named:
        if name not in found:
            faults.add(key, f"names {name!r}, which has no images", known)
    for name in evaluation.unseen:
        if name in found and all(case.split == "train" for case in found[name]):
            faults.add("evaluation.unseen", f"names {name!r}, which has training images only", "split its images anew")
    public = evaluation.public
    if public is not None and public in found and not any(case.split == "val" for case in found[public]):
        faults.add("evaluation.public", f"names {public!r}, which has no validation images", "split its images anew")
    if inputs.only in evaluation.unseen:
        faults.add("--only", f"names {inputs.only!r}, which evaluation.unseen keeps from training", "name another site")
    if inputs.pooled and inputs.study.privacy is not None:
        faults.add("--pooled", "has no sites, so what privacy says of sites means nothing", "drop it, or privacy")
    strict = [site.name for site in inputs.sites if inputs.pooled and site.policy.restricts]
    if strict:
        faults.add("--pooled", f"would pass by the policies of {', '.join(strict)}", "drop it, or ask these sites")
    strict = [site.name for site in inputs.sites if site.policy.restricts]
    if strict and "lends-images" in inputs.study.local.plan.traits():
        where = f"local.plan {inputs.study.local.plan.kind}"
        faults.add(where, f"would pass by the policies of {', '.join(strict)}", "use shards, or ask these sites")
    if inputs.only and inputs.pooled:
        faults.add("--only, --pooled", "are two different baselines", "give one of them")
    for name in sorted(found):
        if name in RESERVED or "/" in name:
            faults.add(
                f"site {name!r}", "cannot be a site's name: it has a meaning of its own", "rename it in the data"
            )
    faults.raise_if_any(StudyError)


def _with_roles(inputs: RunInputs, cases: Mapping[str, list[Case]], unseen: set[str]) -> dict[str, tuple[Case, ...]]:
    """Take the training split away from sites that must not train, and pool it when asked."""
    pool = tuple(case for site in sorted(set(cases) - unseen) for case in cases[site] if case.split == "train")
    quiet = set(unseen)
    if inputs.pooled:
        quiet = set(cases)
    elif inputs.only:
        quiet = set(cases) - {inputs.only}
    kept = {
        site: tuple(case for case in cases[site] if site not in quiet or case.split != "train")
        for site in sorted(cases)
    }
    if inputs.pooled:
        kept[POOLED] = tuple(replace(case, site=POOLED) for case in pool)
    return _planned(inputs, {site: own for site, own in kept.items() if own})


def _planned(inputs: RunInputs, cases: dict[str, tuple[Case, ...]]) -> dict[str, tuple[Case, ...]]:
    """What each training site holds according to the study's data plan."""
    plan = PLANS.build(inputs.study.local.plan)
    everything = tuple(case for own in cases.values() for case in own)
    training = [site for site, own in cases.items() if any(case.split == "train" for case in own)]
    shared = _shared(inputs, cases, training) if reads_shared(inputs.study) else {}
    for site in training:
        rest = tuple(case for case in cases[site] if case.split != "train")
        more = (shared[site],) if site in shared else ()
        cases[site] = plan.hold(site, everything, training, *more) + rest
    return cases


def _shared(
    inputs: RunInputs, cases: Mapping[str, tuple[Case, ...]], training: Sequence[str]
) -> dict[str, tuple[Case, ...]]:
    """What the sites' files lend to their training, with the faults of all of them; the pooled baseline has no file."""
    files, found, faults = {site.name: site for site in inputs.sites}, {}, Faults()
    tested = [case for own in cases.values() for case in own if case.split != "train"]
    for name in training:
        if name == POOLED:
            continue
        prefix = f"{name}/" if _has_own_lists(inputs) else ""
        site, stamps = files.get(name, Site(name=name)), inputs.cache / "stamps"
        try:
            found[name] = shared_cases(inputs.study, site, cases[name], tested, prefix, stamps)
        except InputError as error:
            faults.extend(error.faults)
    faults.raise_if_any(InputError)
    return found


def load_site_data(inputs: RunInputs, site: str, cases: Sequence[Case]) -> SiteData:
    """The preprocessed data of one site, from the cache where it can; DataError when it is below its minimum."""
    from medfl.data.site_data import load_site

    study = inputs.study
    policy = next((known.policy for known in inputs.sites if known.name == site), None)
    trains = any(case.split == "train" for case in cases)
    minimum = max(study.data.minimum_cases, policy.minimum_cases if policy else 1) if trains else 0
    if policy and study.task.kind not in policy.tasks:
        raise StudyError.at(
            f"site {site}", f"its policy does not allow {study.task.kind}", "ask the site's data steward"
        )
    return load_site(
        site,
        cases,
        task=study.task.kind,
        classes=study.task.classes,
        preprocess=study.data.preprocess,
        augment=study.data.augment,
        seed=study.seed,
        cache_dir=inputs.cache,
        minimum_cases=minimum,
    )
