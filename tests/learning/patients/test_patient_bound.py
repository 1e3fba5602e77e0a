"""What one patient can do to the sum: never more than the clip norm, not by a rounding error either."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys.parts import CPU
from toys.patients import autograd, built, exact_norm_squared, images, se_resnet, spoiled, unet

from medfl.errors import StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients.base import BoundedSum, ClippedSum, PatientBatch
from medfl.learning.patients.loop import Loop
from medfl.tasks.base import Task

Sum = Callable[[Tensor, float], Tensor]


def bounded(rows: Tensor, clip: float) -> Tensor:
    total = BoundedSum(rows.shape[1], clip, CPU)
    total.add(rows)
    return total.result().total


def unclipped(rows: Tensor, _clip: float) -> Tensor:
    return rows.double().sum(0)


def clipped_by_value(rows: Tensor, clip: float) -> Tensor:
    return rows.double().clamp(-clip, clip).sum(0)


def clipped_in_float32(rows: Tensor, clip: float) -> Tensor:
    """The usual way: the norm, the scale and the sum in single precision."""
    total = torch.zeros(rows.shape[1])
    for row in rows:
        total += row * min(1.0, clip / float(row.norm()))
    return total


def largest_influence(sum_: Sum, rows: Tensor, clip: float) -> bool:
    """Whether removing the last row moves the sum by at most `clip`, in exact arithmetic."""
    moved = sum_(rows, clip).double() - sum_(rows[:-1], clip).double()
    return exact_norm_squared(moved) <= Fraction(clip) ** 2


def rows_of(seed: int, count: int, size: int, exponents: list[int]) -> Tensor:
    rng = np.random.default_rng(seed)
    scales = np.array([10.0 ** exponents[number % len(exponents)] for number in range(count)])
    return torch.from_numpy((rng.normal(size=(count, size)) * scales[:, None]).astype(np.float32))


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 12),
    size=st.integers(1, 40),
    exponents=st.lists(st.integers(-35, 35), min_size=1, max_size=4),
    clip=st.floats(1e-6, 1e6),
)
def test_no_patient_moves_the_sum_by_more_than_the_clip(
    seed: int, count: int, size: int, exponents: list[int], clip: float
) -> None:
    assert largest_influence(bounded, rows_of(seed, count, size, exponents), clip)


@pytest.mark.parametrize("wrong", [unclipped, clipped_by_value])
def test_sums_that_do_not_clip_norms_are_found_out(wrong: Sum) -> None:
    assert not largest_influence(wrong, rows_of(0, 5, 30, [3]), 1.0)


def test_rounding_does_not_add_to_a_patients_influence() -> None:
    rows = torch.full((200, 1), 0.1)
    counts = range(190, 200)
    assert all(largest_influence(bounded, rows[:count], 0.1) for count in counts)
    assert not all(largest_influence(clipped_in_float32, rows[:count], 0.1) for count in counts)


def test_the_sum_does_not_depend_on_the_order_of_patients() -> None:
    rows = rows_of(1, 50, 200, [-3, 0, 2, 5])
    backwards = rows.flip(0)
    assert torch.equal(bounded(rows, 0.7), bounded(backwards, 0.7))
    assert not torch.equal(clipped_in_float32(rows, 0.7), clipped_in_float32(backwards, 0.7))


def test_gradients_below_the_bound_are_summed_as_they_are() -> None:
    rows = rows_of(2, 10, 100, [-3])
    np.testing.assert_allclose(bounded(rows, 1.0), rows.double().sum(0), atol=10 * 2**-22)
    total = BoundedSum(100, 1.0, CPU)
    total.add(rows)
    assert total.result().clipped == 0 and total.result().vector.dtype == torch.float32


@pytest.mark.parametrize(("steps", "size"), [(256, 3000), (1 << 16, 200)])
def test_a_patient_moves_the_integers_of_a_coarse_grid_by_at_most_the_bound(steps: int, size: int) -> None:
    rows, clip = rows_of(4, 40, size, [1]), 0.3

    def units(rows: Tensor) -> list[int]:
        total = BoundedSum(rows.shape[1], clip, CPU, clip / steps)
        total.add(rows)
        found = [float(value) for value in total.result().units]
        assert all(value.is_integer() for value in found)
        rounded = np.rint(total.result().vector.double().numpy() * (steps / clip))
        np.testing.assert_array_equal(rounded, found)
        return [int(value) for value in found]

    def on_the_sum(rows: Tensor) -> list[int]:
        """The usual way: the sum is rounded to the grid."""
        return [int(value) for value in np.rint(bounded(rows, clip).numpy() * (steps / clip))]

    def moved(sum_: Callable[[Tensor], list[int]]) -> float:
        whole = sum_(rows)
        without = (sum_(torch.cat([rows[:n], rows[n + 1 :]])) for n in range(5))
        return max(sum((a - b) ** 2 for a, b in zip(whole, other, strict=True)) for other in without) ** 0.5

    assert 0.9 * steps < moved(units) <= steps
    assert moved(on_the_sum) > steps or size < steps


@pytest.mark.parametrize("step", [0.0, -1.0, 2.0, 1e-12, float("nan")])
def test_a_grid_that_cannot_hold_the_bound_is_refused(step: float) -> None:
    with pytest.raises(StudyError, match="grid"):
        BoundedSum(3, 1.0, CPU, step)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_counts_as_nothing(bad: float) -> None:
    rows = rows_of(3, 6, 20, [0])
    spoilt = rows.clone()
    spoilt[2, 7] = bad
    total = BoundedSum(20, 0.5, CPU)
    total.add(spoilt)
    found = total.result()
    assert torch.equal(found.total, bounded(rows[[0, 1, 3, 4, 5]], 0.5))
    assert (found.patients, found.rejected) == (5, 1)
    assert not bool(clipped_in_float32(spoilt, 0.5).isfinite().all())


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_bounds_nothing_is_refused(clip: float) -> None:
    with pytest.raises(StudyError, match=r"privacy\.clip"):
        BoundedSum(3, clip, CPU)


class ByImage(Loop):
    """Wrong: clips images, so that a patient counts as often as there are images."""

    def clipped_sum(self, network: FlatNetwork, batches: Iterable[PatientBatch], clip: float) -> ClippedSum:
        single = (
            PatientBatch({name: values[n : n + 1] for name, values in batch.arrays.items()}, batch.seed)
            for batch in batches
            for n in range(len(batch.arrays["image"]))
        )
        return super().clipped_sum(network, single, clip)


class ByBatch(Loop):
    """Wrong: clips the mean gradient of all patients of the step, then multiplies it."""

    def clipped_sum(self, network: FlatNetwork, batches: Iterable[PatientBatch], clip: float) -> ClippedSum:
        listed = list(batches)
        joined = {name: np.concatenate([b.arrays[name] for b in listed]) for name in listed[0].arrays}
        mean = super().clipped_sum(network, [PatientBatch(joined)], clip)
        return replace(mean, units=mean.units * len(listed))


def engine_keeps_the_bound(engine: Loop, task: Task, clip: float) -> bool:
    network = built(task)
    batches = images(task, [1, 2, 1, 4])
    together = engine.clipped_sum(network, batches, clip).total
    return all(
        exact_norm_squared(together - engine.clipped_sum(network, [*batches[:n], *batches[n + 1 :]], clip).total)
        <= Fraction(clip) ** 2
        for n in range(len(batches))
    )


@pytest.mark.parametrize(("engine", "kept"), [(Loop, True), (ByImage, False), (ByBatch, False)])
def test_a_patient_with_many_images_moves_the_sum_by_at_most_the_clip(engine: type[Loop], kept: bool) -> None:
    task = se_resnet()
    assert engine_keeps_the_bound(engine(task, CPU), task, 1e-3) is kept


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("task", [se_resnet(), unet()])
def test_an_unreadable_image_leaves_the_others_as_they_are(task: Task, bad: float) -> None:
    network, engine = built(task), Loop(task, CPU)
    batches = images(task, [1, 2, 1])
    found = engine.clipped_sum(network, [batches[0], spoiled(batches[1], bad), batches[2]], 0.1)
    assert torch.equal(found.total, engine.clipped_sum(network, [batches[0], batches[2]], 0.1).total)
    assert (found.patients, found.rejected) == (2, 1)


def test_clipped_gradients_keep_their_direction() -> None:
    task = se_resnet()
    network = built(task)
    batches = images(task, [1, 3, 2])
    wanted = np.zeros(network.layout.size)
    for batch in batches:
        gradient = autograd(task, network, batch)
        wanted += gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
    found = Loop(task, CPU).clipped_sum(network, batches, 0.5)
    np.testing.assert_allclose(found.total, wanted, atol=2e-6)
    assert found.clipped == 3
