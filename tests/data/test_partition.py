from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import BaseModel

from medfl.data.base import Case
from medfl.data.partition.base import PARTITIONS, quota
from medfl.data.split import assign_splits
from medfl.errors import DataError
from medfl.plugins import PluginConfig

SITES = ("a", "b", "c", "d")


class Holder(BaseModel):
    partition: Annotated[PluginConfig, PARTITIONS]


def build(**config):
    return PARTITIONS.build(Holder(partition=config).partition)


def pool(patients=200, classes=4, site=""):
    cases = []
    for number in range(patients):
        for image in range(1 + number % 3 // 2):
            key = f"{number}-{image}"
            cases.append(Case(key, Path("/" + key), number % classes, None, f"p{number}", site))
    return cases


KINDS = [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.3}, {"kind": "classes", "classes_per_site": 2}]


def homes(cases):
    found = {}
    for case in cases:
        found.setdefault(case.patient, set()).add(case.site)
    return found


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config["kind"])
def test_every_case_gets_one_of_the_sites_and_no_patient_two(config):
    done = build(**config).assign(pool(), SITES, seed=3)
    assert [case.key for case in done] == [case.key for case in pool()]
    assert {case.site for case in done} == set(SITES)
    assert all(len(sites) == 1 for sites in homes(done).values())


def test_dealing_images_instead_of_patients_would_show():
    rng = np.random.default_rng(0)
    fake = [replace(case, site=str(rng.choice(SITES))) for case in pool()]
    assert any(len(sites) > 1 for sites in homes(fake).values())


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config["kind"])
def test_order_does_not_matter_and_the_seed_does(config):
    partition = build(**config)
    one = {case.key: case.site for case in partition.assign(pool(), SITES, 1)}
    assert one == {case.key: case.site for case in partition.assign(pool()[::-1], SITES, 1)}
    assert one != {case.key: case.site for case in partition.assign(pool(), SITES, 2)}


def skew(cases):
    """Mean total variation between a site's class mix and the pool's."""
    mixes = []
    for site in SITES:
        counts = Counter(case.label for case in cases if case.site == site)
        mixes.append([counts[label] / max(1, counts.total()) for label in range(4)])
    return np.abs(np.array(mixes) - 0.25).sum(axis=1).mean() / 2


def test_skew_falls_with_alpha_and_vanishes_for_iid():
    by_alpha = [
        np.mean([skew(build(kind="dirichlet", alpha=alpha).assign(pool(), SITES, seed)) for seed in range(5)])
        for alpha in (0.1, 1.0, 100.0)
    ]
    assert by_alpha[0] > by_alpha[1] > by_alpha[2]
    assert skew(build(kind="iid").assign(pool(), SITES, 0)) < 0.05 < by_alpha[1]


def test_dirichlet_keeps_its_minimum_or_says_so():
    done = build(kind="dirichlet", alpha=0.3, minimum=15).assign(pool(), SITES, 0)
    for site in SITES:
        assert len({case.patient for case in done if case.site == site}) >= 15
    with pytest.raises(DataError, match="minimum"):
        build(kind="dirichlet", alpha=0.3, minimum=60).assign(pool(), SITES, 0)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_every_site_holds_that_many_classes_and_no_class_is_lost(each):
    done = build(kind="classes", classes_per_site=each).assign(pool(), SITES, 0)
    assert [len({case.label for case in done if case.site == site}) for site in SITES] == [each] * 4
    assert Counter(case.label for case in done) == Counter(case.label for case in pool())


def test_impossible_numbers_of_classes_are_refused():
    for sites, each in ((("a",), 2), (SITES, 5)):
        with pytest.raises(DataError, match="classes_per_site"):
            build(kind="classes", classes_per_site=each).assign(pool(), sites, 0)


def test_val_and_test_have_the_train_mix_and_common_cases_stay():
    cases = assign_splits(pool(400))
    common = [replace(case, key="c" + case.key, patient="c" + case.patient, site="common") for case in cases[:20]]
    done = build(kind="classes").assign([*cases, *common], SITES, 0)
    assert sum(case.site == "common" for case in done) == 20
    for site in SITES:
        train, test = (
            {case.label for case in done if case.site == site and case.split == s} for s in ("train", "test")
        )
        assert train == test


def test_column_keeps_sites_and_names_every_fault():
    column = build(kind="column")
    assert column.assign(pool(site="a"), SITES, 0) == tuple(pool(site="a"))
    cases = [*pool(2), *pool(2, site="elsewhere")]
    with pytest.raises(DataError) as found:
        column.assign(cases, SITES, 0)
    assert len(found.value.faults) == 4


def test_a_patient_in_the_common_set_and_elsewhere_is_refused():
    cases = pool(10)
    cases[0] = replace(cases[0], site="common")
    cases.append(replace(cases[0], key="again", site=""))
    with pytest.raises(DataError, match="p0"):
        build(kind="iid").assign(cases, SITES, 0)
    with pytest.raises(DataError):
        build(kind="iid").assign(cases, (), 0)


def test_quota_sums_to_n():
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 100):
        shares = rng.dirichlet(np.ones(5))
        counts = quota(shares, n)
        assert counts.sum() == n and (np.abs(counts - shares * n) < 1).all()
