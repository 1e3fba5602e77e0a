"""Ring redundancy (RI-SGD): who holds which copies, and that nobody's weight counts them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import Federated, configured, federation_parts, plugin
from toys.tasks import Classifier, Rows, site

from medfl.data.base import Case, SampleInfo, origin_of
from medfl.data.plans.base import PLANS
from medfl.data.plans.ring import Ring, RingConfig

SITES = ("a", "b", "c", "d")


def cases(counts: dict[str, int], others: int = 2) -> list[Case]:
    """Training cases of each site, and some of the other splits; every third patient has two images."""
    return [
        Case(f"{name}/{number}.png", Path(f"/{name}{number}"), number % 3, None, f"p{number // 2}", name, split)
        for name, count in counts.items()
        for number, split in enumerate(["train"] * count + ["val", "test"] * others)
    ]


CASES = cases({"a": 8, "b": 4, "c": 6, "d": 10})


class OwnShard(Ring):
    """The fake: as many copies, but of the site's own cases."""

    def hold(self, site: str, cases: Any, sites: Any) -> tuple[Case, ...]:
        held = super().hold(site, cases, sites)
        own = [case for case in held if not origin_of(case.key)]
        return tuple(own[number % len(own)] for number in range(len(held)))


class CountsCopies(Ring):
    """The fake: weighs a site by all that it holds."""

    def unique(self, site: str, round: int, samples: Any, indices: Any) -> int:
        return int(samples.cases)


def ring(redundancy: float) -> Ring:
    made: Ring = plugin(PLANS, "ring", redundancy=redundancy)
    return made


def origins(held: tuple[Case, ...]) -> dict[str, int]:
    """Cases by the folder that their image lies in."""
    return dict(Counter(str(case.image)[1] for case in held))


@pytest.mark.parametrize(
    ("redundancy", "expected"),
    [
        (0, {"a": 8}),
        (0.125, {"a": 8, "b": 2}),
        (0.25, {"a": 8, "b": 4}),
        (0.375, {"a": 8, "b": 4, "c": 3}),
        (0.5, {"a": 8, "b": 4, "c": 6}),
        (0.75, {"a": 8, "b": 4, "c": 6, "d": 10}),
        (1, {"a": 8, "b": 4, "c": 6, "d": 10}),
    ],
)
def test_a_site_holds_its_shard_and_the_next_of_the_ring(redundancy: float, expected: dict[str, int]) -> None:
    assert origins(ring(redundancy).hold("a", CASES, SITES)) == expected


def test_the_ring_closes() -> None:
    assert origins(ring(0.5).hold("d", CASES, SITES)) == {"d": 10, "a": 8, "b": 4}


@given(st.floats(0, 1), st.integers(1, 7), st.lists(st.integers(1, 20), min_size=7, max_size=7))
def test_nothing_is_held_twice_and_own_cases_are_as_they_were(redundancy: float, sites: int, counts: list[int]) -> None:
    names = [f"s{number}" for number in range(sites)]
    everything = cases(dict(zip(names, counts, strict=False)))
    for name in names:
        held = ring(redundancy).hold(name, everything, names)
        own = [case for case in everything if case.site == name and case.split == "train"]
        assert list(held[: len(own)]) == own
        assert {case.site for case in held} == {name} and {case.split for case in held} == {"train"}
        assert len({case.key for case in held}) == len({case.image for case in held}) == len(held)


def test_copies_are_the_same_images_under_another_key() -> None:
    known = {case.image: case for case in CASES}
    for copy in ring(0.5).hold("a", CASES, SITES)[8:]:
        original = known[copy.image]
        assert copy.key == f"lent://{original.site}/{original.key}"
        assert replace(copy, site=original.site, key=original.key) == original


def test_a_part_of_a_shard_is_drawn_alike_everywhere_and_not_from_its_head() -> None:
    many = cases({"a": 1, "b": 300})
    held = ring(0.25).hold("a", many, ("a", "b"))
    assert held == ring(0.25).hold("a", many[::-1], ("a", "b"))
    copied = [int(case.key.split("/")[-1].removesuffix(".png")) for case in held[1:]]
    assert len(copied) == 150 and 100 < sum(copied) / 150 < 200
    # a larger part contains a smaller one, so that a study of redundancy compares like with like
    assert set(held) <= set(ring(0.4).hold("a", many, ("a", "b")))


def test_alone_there_is_nobody_to_copy_from() -> None:
    assert ring(1).hold("a", CASES, ["a"]) == plugin(PLANS, "shards").hold("a", CASES, ["a"])


@pytest.mark.parametrize("redundancy", [-0.1, 1.1, float("nan")])
def test_shares_that_mean_nothing_are_refused(redundancy: float) -> None:
    with pytest.raises(ValidationError):
        RingConfig(redundancy=redundancy)


def test_it_says_that_it_shares_data() -> None:
    assert configured(PLANS, "ring").traits() == {"shares-data", "lends-images"}
    assert "shares-data" not in configured(PLANS, "shards").traits()


# weights


class Keyed(Rows):
    """Rows of cases, each as often as augmentation makes it."""

    def __init__(self, held: tuple[Case, ...], variants: int = 1) -> None:
        import numpy as np

        self.keys = [case.key for case in held for _ in range(variants)]
        rng = np.random.default_rng(len(held))
        targets = np.array([case.label for case in held for _ in range(variants)])
        super().__init__(rng.normal(size=(len(targets), 3)), targets, len(held))

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.keys[index], self.keys[index], (1.0,))


@pytest.mark.parametrize("redundancy", [0, 0.1, 0.25, 0.6, 1])
@pytest.mark.parametrize("variants", [1, 3])
def test_weights_of_all_sites_are_the_number_of_cases(redundancy: float, variants: int) -> None:
    def total(plan: Ring) -> int:
        found = [Keyed(plan.hold(name, CASES, SITES), variants) for name in SITES]
        return sum(plan.unique("", 1, rows, plan.indices("", 1, rows.labels(), {})) for rows in found)

    assert total(ring(redundancy)) == 28
    assert (total(CountsCopies(RingConfig(redundancy=redundancy))) == 28) == (redundancy == 0)


def test_a_federation_trains_on_copies_and_weighs_by_own_cases() -> None:
    plan = ring(0.25)
    samples = {name: Keyed(plan.hold(name, CASES, SITES)) for name in SITES}
    sites = [site(name, rows) for name, rows in samples.items()]
    outcome = Federated(Classifier(3, 3), sites, federation_parts(), plan=plan).round()
    assert {name: mine.cases for name, mine in outcome.sites.items()} == {"a": 8, "b": 4, "c": 6, "d": 10}
    assert all(mine.counts for mine in outcome.sites.values())
    assert {name: len(rows.asked[0]) for name, rows in samples.items()} == {"a": 12, "b": 10, "c": 16, "d": 18}


# with images


def test_a_simulation_holds_copies_as_images_and_weighs_own_cases(tiny: Any) -> None:
    from medfl.study.sources import assign_cases, load_site_data

    inputs = tiny.inputs("local.plan={kind: ring, redundancy: 0.5}")
    plain = assign_cases(tiny.inputs()).cases
    held = assign_cases(inputs).cases
    plan, counted = ring(0.5), {}
    for name in ("east", "south", "west"):
        own = [case for case in plain[name] if case.split == "train"]
        trained = [case for case in held[name] if case.split == "train"]
        rest = [case for case in held[name] if case.split != "train"]
        assert trained[: len(own)] == own and len(trained) > len(own)
        assert rest == [case for case in plain[name] if case.split != "train"]
        data = load_site_data(inputs, name, held[name])
        samples = data.splits["train"]
        assert samples.cases == len(trained) and data.cases["train"] == len(own)
        counted[name] = plan.unique(name, 1, samples, plan.indices(name, 1, samples.labels(), {}))
        assert counted[name] == len(own)
    assert sum(counted.values()) == sum(case.split == "train" for own in plain.values() for case in own)


@pytest.mark.parametrize("baseline", [{"pooled": True}, {"only": "west"}])
def test_a_baseline_of_one_site_has_no_copies(tiny: Any, baseline: dict[str, Any]) -> None:
    from medfl.study.sources import assign_cases

    cases = assign_cases(tiny.inputs("local.plan=ring").model_copy(update=baseline)).cases
    assert cases == assign_cases(tiny.inputs().model_copy(update=baseline)).cases
