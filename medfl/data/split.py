"""Assign patients to train, val and test: never a patient in two splits, every site and label in its share."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medfl.data.base import SPLITS, Case
from medfl.errors import DataError, Faults

Groups = dict[str, list[Case]]


def assign_splits(
    cases: Sequence[Case],
    ratios: tuple[float, float, float] = (6, 2, 2),
    seed: int = 0,
    strata: Mapping[str, Hashable] | None = None,
) -> tuple[Case, ...]:
    """The cases with `split` set to train, val or test, in the given order.

    All images of a patient (everywhere: two sites' equal patient identifiers count as one patient) go to one split.
    Within a site the patients of each stratum are shared in `ratios`; a site with at least three patients has one
    in every split whose ratio is not 0. The result depends on the set of cases and the seed, not on their order.
    Cases that already have a split keep it, and their patient's other images follow.

    strata: case key -> anything; in place of `stratum`, for what the datalist does not say (classes in a mask).
    Raises DataError when the ratios are unusable or a patient is in two splits already.
    """
    if min(ratios) < 0 or sum(ratios) <= 0:
        raise DataError.at("ratios", f"{ratios} are not shares", "give three numbers such as 6:2:2")
    groups = by_patient(cases)
    split = _given(groups)
    sites = {patient: frozenset(case.site for case in group) for patient, group in groups.items()}
    label = {patient: _patient_stratum(group, strata) for patient, group in groups.items()}
    shares = {name: ratio / sum(ratios) for name, ratio in zip(SPLITS, ratios, strict=True)}
    order = sorted(groups, key=lambda patient: (label[patient], _rank(seed, patient), patient))
    for members in sorted({tuple(sorted(site)) for site in sites.values()}):
        patients = [patient for patient in order if sites[patient] == frozenset(members)]
        _deal(patients, label, shares, split)
    fixed = {patient for patient, group in groups.items() if any(case.split for case in group)}
    _fill_empty(order, sites, fixed, shares, split)
    return tuple(replace(case, split=split[patient_of(case)]) for case in cases)


def refuse_split_patients(cases: Iterable[Case]) -> None:
    """DataError that names every patient with images in several splits."""
    _given(by_patient(cases))


def patient_of(case: Case) -> str:
    """The patient; a case without one is a patient of its own."""
    return case.patient or f"case {case.key}"


def by_patient(cases: Iterable[Case]) -> Groups:
    """The cases of each patient."""
    groups: Groups = defaultdict(list)
    for case in cases:
        groups[patient_of(case)].append(case)
    return dict(groups)


def stratum(case: Case) -> int:
    """What should be spread evenly: the class (classification) or 0, 1, 2 for no, one, more lesions (detection)."""
    if case.boxes is not None:
        return min(len(case.boxes), 2)
    if isinstance(case.label, tuple):
        return min(len(case.label), 2)
    return -1 if case.label is None or isinstance(case.label, Path) else case.label


def mask_strata(cases: Iterable[Case]) -> dict[str, str]:
    """Which classes each case's mask shows, as `strata` for segmentation; reads the masks. An unreadable mask is a
    stratum of its own: the case is split all the same, and left out when it is used."""
    from medfl.data.readers import read_mask

    found: dict[str, str] = {}
    for case in cases:
        try:
            shown = np.unique(read_mask(case.label).array) if isinstance(case.label, Path) else np.zeros(0)
            found[case.key] = ",".join(map(str, shown.tolist()))
        except DataError:
            found[case.key] = "unreadable"
    return found


def _patient_stratum(group: list[Case], strata: Mapping[str, Hashable] | None) -> str:
    if strata is not None:
        return "|".join(sorted({str(strata.get(case.key)) for case in group}))
    return str(max(stratum(case) for case in group))


def _given(groups: Groups) -> dict[str, str]:
    """The splits that patients already have."""
    found: dict[str, str] = {}
    faults = Faults()
    for patient, group in groups.items():
        names = sorted({case.split for case in group} - {""})
        if len(names) > 1:
            faults.add(patient, f"is in several splits: {', '.join(names)}", "put all images of a patient in one split")
        for name in names:
            if name not in SPLITS:
                faults.add(patient, f"there is no split {name!r}", f"use one of {', '.join(SPLITS)}")
            found[patient] = name
    faults.raise_if_any(DataError)
    return found


def _rank(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}/{patient}".encode()).digest()


def _deal(patients: list[str], label: dict[str, str], shares: dict[str, float], split: dict[str, str]) -> None:
    """Give each free patient to the split that its stratum and its site lack most."""
    total = Counter(split[patient] for patient in patients if patient in split)
    within = {
        value: Counter(split[patient] for patient in patients if patient in split and label[patient] == value)
        for value in {label[patient] for patient in patients}
    }
    for patient in patients:
        if patient in split:
            continue
        counts = within[label[patient]]
        choice = max(
            (name for name in SPLITS if shares[name] > 0),
            key=lambda name: _lack(counts, shares, name) + _lack(total, shares, name),
        )
        split[patient] = choice
        counts[choice] += 1
        total[choice] += 1


def _lack(counts: Counter[str], shares: dict[str, float], name: str) -> float:
    return shares[name] * (counts.total() + 1) - counts[name]


def _fill_empty(
    order: list[str],
    sites: dict[str, frozenset[str]],
    fixed: set[str],
    shares: dict[str, float],
    split: dict[str, str],
) -> None:
    """Move single patients so that every site with three patients has one in every split."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for patient in order:
        for site in sites[patient]:
            held[site][split[patient]] += 1
    for site in sorted(held):
        for name in SPLITS:
            if held[site].total() < len(SPLITS) or shares[name] == 0 or held[site][name]:
                continue
            movable = [
                patient
                for patient in order
                if site in sites[patient]
                and patient not in fixed
                and all(held[other][split[patient]] > 1 for other in sites[patient])
            ]
            if not movable:
                continue
            patient = max(movable, key=lambda each: held[site][split[each]])
            for other in sites[patient]:
                held[other][split[patient]] -= 1
                held[other][name] += 1
            split[patient] = name
