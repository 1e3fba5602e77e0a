import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.data.base import SPLITS, Case
from medfl.data.split import assign_splits, mask_strata, patient_of
from medfl.errors import DataError


def case(number, patient, site="s", label=0, split=""):
    return Case(f"{number}.png", Path(f"/{number}.png"), label, None, patient, site, split)


def pool(patients=60, sites=("a", "b"), images=2, seed=0):
    rng = random.Random(seed)
    found = []
    for number in range(patients):
        site, label = rng.choice(sites), int(rng.random() < 0.3)
        found += [case(f"{number}-{i}", f"p{number}", site, label) for i in range(rng.randint(1, images))]
    return found


cases_strategy = st.lists(
    st.builds(
        case,
        st.uuids().map(str),
        st.sampled_from(["", *(f"p{i}" for i in range(12))]),
        st.sampled_from("ab"),
        st.integers(0, 2),
    ),
    max_size=40,
)


def leaks(cases):
    homes = {}
    for each in cases:
        homes.setdefault(patient_of(each), set()).add(each.split)
    return [patient for patient, splits in homes.items() if len(splits) > 1]


def by_image(cases, seed=0):
    """The fake: what everybody writes first."""
    rng = random.Random(seed)
    return [replace(each, split=rng.choices(SPLITS, (6, 2, 2))[0]) for each in cases]


@settings(max_examples=60)
@given(cases_strategy, st.integers(0, 5))
def test_no_patient_is_in_two_splits_and_every_case_has_one(cases, seed):
    done = assign_splits(cases, (6, 2, 2), seed)
    assert not leaks(done)
    assert [each.key for each in done] == [each.key for each in cases]
    assert all(each.split in SPLITS for each in done)


def test_a_split_by_image_leaks():
    assert leaks(by_image(pool()))
    assert not leaks(assign_splits(pool()))


@settings(max_examples=40)
@given(cases_strategy, st.randoms(use_true_random=False))
def test_order_of_the_cases_does_not_matter(cases, rng):
    shuffled = list(cases)
    rng.shuffle(shuffled)
    one = {each.key: each.split for each in assign_splits(cases)}
    assert one == {each.key: each.split for each in assign_splits(shuffled)}


@settings(max_examples=60)
@given(cases_strategy)
def test_a_site_of_three_patients_has_one_in_every_split(cases):
    own = [replace(each, patient=f"{each.site}-{each.patient}" if each.patient else "") for each in cases]
    done = assign_splits(own)
    for site in {each.site for each in done}:
        members = [each for each in done if each.site == site]
        if len({patient_of(each) for each in members}) >= 3:
            assert {each.split for each in members} == set(SPLITS)


def test_ratios_hold_within_site_and_label():
    done = assign_splits(pool(400, images=1))
    for site in "ab":
        for label in (0, 1):
            counts = Counter(each.split for each in done if each.site == site and each.label == label)
            for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
                assert abs(counts[split] - share * counts.total()) <= 1.5


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    assert assign_splits(pool(), seed=1) == assign_splits(pool(), seed=1) != assign_splits(pool(), seed=2)


def test_given_splits_stay_and_the_patient_follows():
    cases = [*pool(10), case("x", "p3", split="test")]
    done = assign_splits(cases)
    assert {each.split for each in done if each.patient == "p3"} == {"test"}


def test_a_patient_already_in_two_splits_and_unknown_splits_are_refused_together():
    cases = [case(1, "p", split="train"), case(2, "p", split="test"), case(3, "q", split="holdout")]
    with pytest.raises(DataError) as found:
        assign_splits(cases)
    assert [fault.where for fault in found.value.faults] == ["p", "q"]


def test_a_share_of_zero_gives_no_cases():
    assert Counter(each.split for each in assign_splits(pool(30), (1, 0, 1)))["val"] == 0
    with pytest.raises(DataError):
        assign_splits(pool(3), (0, 0, 0))


def test_detection_is_stratified_by_the_number_of_boxes():
    box = (0.0, 0.0, 1.0, 1.0)
    cases = [
        replace(case(i, f"p{i}", label=(0,) * n), boxes=(box,) * n)
        for i, n in enumerate([0] * 10 + [1] * 10 + [3] * 10)
    ]
    done = assign_splits(cases)
    for n in (0, 1, 3):
        assert Counter(each.split for each in done if len(each.boxes) == n) == {"train": 6, "val": 2, "test": 2}


def test_masks_can_be_the_strata(tmp_path):
    import numpy as np
    from PIL import Image

    cases = []
    for i in range(20):
        mask = np.zeros((4, 4), np.uint8)
        mask[0, 0] = i % 2
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
        cases.append(replace(case(i, f"p{i}"), label=tmp_path / f"{i}.png"))
    cases.append(replace(case("bad", "bad"), label=tmp_path / "absent.png"))
    strata = mask_strata(cases)
    assert strata["bad.png"] == "unreadable" and strata["1.png"] == "0,1"
    done = assign_splits(cases, strata=strata)
    for kind in ("0", "0,1"):
        counts = Counter(each.split for each in done if strata[each.key] == kind)
        assert counts == {"train": 6, "val": 2, "test": 2}


def test_equal_patient_names_at_two_sites_are_kept_together():
    cases = [case(f"{site}{i}", f"p{i}", site) for site in "ab" for i in range(9)]
    done = assign_splits(cases)
    assert not leaks(done)
    for site in "ab":
        assert {each.split for each in done if each.site == site} == set(SPLITS)
