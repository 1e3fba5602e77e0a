from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel

from medfl.data.base import Case
from medfl.data.plans.base import PLANS, DataPlan
from medfl.plugins import PluginConfig


class Holder(BaseModel):
    plan: Annotated[PluginConfig, PLANS]


class FakeSamples:
    cases = 10

    def __len__(self):
        return 50


CASES = [
    Case(f"{site}{i}", Path(f"/{site}{i}"), i % 2, None, "", site, "train" if i < 4 else "test")
    for site in "abc"
    for i in range(6)
]


class RingConfig(PluginConfig):
    kind: Literal["ring"] = "ring"


class Ring(DataPlan[RingConfig]):
    """RI-SGD in its simplest form: a site also holds all of its neighbour's training cases."""

    Config = RingConfig

    def hold(self, site, cases, sites):
        neighbour = sites[(list(sites).index(site) + 1) % len(sites)]
        extra = [replace(case, site=site) for case in super().hold(neighbour, cases, sites)]
        return super().hold(site, cases, sites) + tuple(extra)

    def indices(self, site, round, labels, state):
        return np.arange(len(labels))

    def unique(self, site, round, samples, indices):
        return samples.cases // 2


def test_shards_are_all_samples_in_every_round():
    plan = PLANS.build(Holder(plan="shards").plan)
    labels = np.array([0, 1, 1, 0, 2])
    assert plan.indices("a", 1, labels, {}).tolist() == plan.indices("b", 9, labels, {}).tolist() == [0, 1, 2, 3, 4]
    assert plan.indices("a", 1, labels[:0], {}).dtype == np.int64
    assert plan.stage("a", 1, labels) == plan.stage("b", 9, labels)
    assert [case.key for case in plan.hold("b", CASES, "abc")] == ["b0", "b1", "b2", "b3"]


def test_the_weight_counts_cases_and_not_augmented_samples():
    plan = PLANS.build(Holder(plan="shards").plan)
    assert plan.unique("a", 1, FakeSamples(), np.arange(50)) == 10 != len(FakeSamples())


def test_redundancy_fits_the_contract_and_weights_still_sum_to_the_pool():
    plan = Ring(RingConfig())
    total = 0
    for site in "abc":
        held = plan.hold(site, CASES, "abc")
        assert len(held) == 8 and {case.site for case in held} == {site}
        samples = FakeSamples()
        samples.cases = len(held)
        total += plan.unique(site, 1, samples, np.arange(50))
    pool = sum(case.split == "train" for case in CASES)
    assert total == pool
    # The fake that weighs a site by what it holds counts everything twice.
    assert sum(len(plan.hold(site, CASES, "abc")) for site in "abc") == 2 * pool
