"""A probe is of enough of a site's own images, and no number of probes is of fewer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.tasks import Rows

from medfl.data.base import Case, SampleInfo, lent
from medfl.learning.probe import probed

Probe = Callable[[Any, Any, np.random.Generator, np.random.Generator], list[int]]


class Named(Rows):
    """Own images and lent ones, each three times as with augmentation."""

    def __init__(self, own: int, others: int = 0) -> None:
        cases = [Case(f"{n}", Path("x")) for n in range(own)]
        cases += [lent(Case(f"{n}", Path("x")), "a", "shared-1") for n in range(others)]
        self.keys = [case.key for case in cases for _ in range(3)]
        super().__init__(np.zeros((len(self.keys), 3)), np.zeros(len(self.keys), np.int64), own + others)

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.keys[index], self.keys[index], (1.0,))


def anew(samples: Any, least: int, dealt: np.random.Generator, drawn: np.random.Generator) -> list[int]:
    """The fake: other images each time, so that the difference of two probes is about few."""
    del dealt
    return sorted(drawn.choice(len(samples), least, replace=False).tolist())


def asked(samples: Named, least: int | None, probe: Probe = probed, times: int = 40) -> list[list[int]]:
    return [probe(samples, least, np.random.default_rng(7), np.random.default_rng(n)) for n in range(times)]


@pytest.mark.parametrize(("probe", "right"), [(probed, True), (anew, False)])
def test_no_difference_of_probes_is_of_fewer_images(probe: Probe, right: bool) -> None:
    samples = Named(150)
    found = {tuple(chosen) for chosen in asked(samples, 32, probe)}
    rows = np.zeros((len(found), 150))
    for row, chosen in zip(rows, found, strict=True):
        np.add.at(row, [int(samples.keys[index]) for index in chosen], 1)
    # in every sum of probes, images of a group count alike
    together = {tuple(column) for column in rows.T}
    smallest = min(int((column == rows.T).all(1).sum()) for column in together)
    assert (smallest >= 32) == right and len(found) > 1


def test_all_images_come_in_turn_and_each_counts_once() -> None:
    samples = Named(150)
    found = asked(samples, 32)
    assert {samples.keys[index] for chosen in found for index in chosen} == set(samples.keys)
    for chosen in found:
        assert chosen == sorted(chosen) and 32 <= len({samples.keys[index] for index in chosen}) == len(chosen) < 64


@pytest.mark.parametrize("own", [1, 31, 32, 63])
def test_where_there_are_no_more_all_are_asked(own: int) -> None:
    assert {len(chosen) for chosen in asked(Named(own), 32)} == {own}


@pytest.mark.parametrize("least", [None, 32])
def test_lent_images_have_no_part(least: int | None) -> None:
    samples = Named(40, 60)
    for chosen in asked(samples, least):
        assert max(chosen) < 120 and len(chosen) == (120 if least is None else 40)
    assert asked(Named(0, 60), least, times=1) == [[]]
