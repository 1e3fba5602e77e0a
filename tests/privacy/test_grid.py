"""The integer grid: what travels is bounded in exact arithmetic, and comes back within half a unit."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medfl.errors import RunError, StudyError
from medfl.privacy.grid import NOISE_TAIL, SUM_LIMIT, Grid, weight_of

FloatVector = npt.NDArray[np.float32]
VALUES = (
    st.floats(-1e6, 1e6, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.5])
)
VECTORS = arrays(np.float32, st.integers(1, 60), elements=VALUES)
GRIDS = st.builds(Grid, st.sampled_from([0.1, 1.0, 3.0, 1e-3, 777.0]), st.sampled_from([2**k for k in range(8, 20)]))


def squared(values: npt.NDArray[Any]) -> int:
    """The squared norm in Python's unbounded integers."""
    return sum(int(value) ** 2 for value in values)


@settings(max_examples=300)
@given(GRIDS, VECTORS, st.sampled_from([1.0, 0.5, 1 / 3, 0.0]))
def test_the_integer_norm_is_never_over_the_bound(grid: Grid, vector: FloatVector, weight: float) -> None:
    values = grid.encode(vector, weight)
    assert values.dtype == np.int32 and values.shape == vector.shape
    assert squared(values) <= grid.bound**2
    assert grid.holds(values)


def worst(size: int, bound: int) -> FloatVector:
    """A vector of norm about 1 whose coordinates on the grid, but for zeros, all lie just above half a unit."""
    value = int(np.ceil(bound / np.sqrt(size))) + 0.501
    vector = np.zeros(size, np.float32)
    vector[: max(1, int((bound / value) ** 2))] = value / bound
    return vector


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 65_536, 65_537, 1_000_000])
@pytest.mark.parametrize("bound", [2**12, 2**18])
def test_vectors_at_the_bound(size: int, bound: int) -> None:
    grid, rng = Grid(1.0, bound), np.random.default_rng(size)
    directions = [worst(size, bound), np.ones(size, np.float32), rng.standard_normal(size).astype(np.float32)]
    naive = 0
    for vector in directions:
        for scale in (1.0, 1 - 1e-7, 1 + 1e-7, 50.0):
            at = (scale * vector / np.linalg.norm(vector.astype(np.float64))).astype(np.float32)
            values = grid.encode(at)
            assert int(np.dot(values.astype(object), values)) <= bound**2 if size < 2000 else grid.holds(values)
            # the bound is used: little of the vector is lost to it
            assert np.linalg.norm(values) > bound - 1.01 * np.sqrt(size)
            plain = np.rint(at.astype(np.float64) / max(1.0, np.linalg.norm(at.astype(np.float64))) * bound)
            naive += int((plain**2).sum() > bound**2)
    # the fake, a clip in floating point and then rounding, passes the bound
    assert size < 1000 or naive > 0


@given(GRIDS, arrays(np.int32, st.integers(0, 30), elements=st.integers(-(2**20), 2**20)))
def test_holds_is_exact(grid: Grid, values: npt.NDArray[np.int32]) -> None:
    assert grid.holds(values) == (squared(values) <= grid.bound**2)


def test_holds_at_its_edge() -> None:
    grid = Grid(1.0, 2**18)
    edge = np.full(4, 2**17, np.int32)
    assert grid.holds(edge)
    edge[0] += 1
    assert not grid.holds(edge)
    assert not grid.holds(np.full(100_000, -(2**31), np.int32))


@settings(max_examples=200)
@given(GRIDS, VECTORS)
def test_round_trip(grid: Grid, vector: FloatVector) -> None:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    assume(norm <= grid.clip * (1 - np.sqrt(vector.size) / grid.bound))
    back = grid.decode(grid.encode(vector))
    assert back.dtype == np.float32
    assert np.abs(back.astype(np.float64) - vector).max() <= grid.step * 0.5 * (1 + 1e-6) + 1e-7 * grid.clip
    # a grid point comes back as itself
    np.testing.assert_array_equal(grid.encode(back), grid.encode(vector))


@given(GRIDS, VECTORS, st.sampled_from([1.0, 0.25]))
def test_a_long_vector_keeps_its_direction(grid: Grid, vector: FloatVector, weight: float) -> None:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    assume(norm > grid.clip)
    expected = weight * grid.clip / norm * vector.astype(np.float64)
    moved = np.abs(grid.decode(grid.encode(vector, weight)).astype(np.float64) - expected)
    assert moved.max() <= grid.step * (1 + np.sqrt(vector.size))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5, 99_999])
def test_values_that_are_not_finite_are_refused(bad: float, position: int) -> None:
    vector = np.zeros(100_000, np.float32)
    vector[position] = bad
    with pytest.raises(RunError, match="not finite"):
        Grid(1.0, 256).encode(vector)
    with pytest.raises(RunError, match="not finite"):
        Grid(1.0, 256).quantise(vector, 100)


def test_the_largest_floats_are_clipped() -> None:
    vector = np.full(1000, np.finfo(np.float32).max)
    values = Grid(1.0, 2**12).encode(vector)
    assert squared(values) <= 2**24 and values.min() > 100
    assert not Grid(1.0, 2**12).encode(np.full(9, 1e-45, np.float32)).any()


def test_too_many_values_for_a_coarse_grid() -> None:
    vector = np.zeros(400_000, np.float32)
    # within the clip, and each of these is rounded from just over a half up to one
    vector[:250_000] = 0.51 / 256
    with pytest.raises(RunError, match="400000 values do not fit a grid of 256 units"):
        Grid(1.0, 256).encode(vector)


@given(st.integers(1, 10_000), st.floats(0, 200), st.sampled_from([SUM_LIMIT, 100_000]))
def test_fit_leaves_room_for_all_sites_and_the_noise(sites: int, noise: float, limit: int) -> None:
    def needs(bound: int) -> float:
        return bound * (sites + NOISE_TAIL * noise)

    try:
        grid = Grid.fit(2.0, sites, noise, limit)
    except StudyError as error:
        assert needs(256) > limit * (1 - 1e-12)
        assert f"{sites} sites" in str(error)
        return
    assert needs(grid.bound) <= limit * (1 + 1e-12)
    # and is the finest power of two that does
    assert needs(2 * grid.bound) > limit * (1 - 1e-12)
    assert grid.bound & (grid.bound - 1) == 0 and grid.step * grid.bound == 2.0


@given(st.floats(0, 100), st.integers(1, 1000))
def test_shares_of_gradient_sums_fit_with_the_noise(noise: float, sites: int) -> None:
    grid = Grid.for_gradients(1.0, noise)
    share = grid.share(sites, noise)
    assert share >= 64 * grid.bound // sites - 1
    assert sites * share + NOISE_TAIL * noise * grid.bound <= SUM_LIMIT * (1 + 1e-12)


@given(GRIDS, VECTORS, st.integers(0, 1000))
def test_quantise_holds_every_coordinate_and_does_not_clip(grid: Grid, vector: FloatVector, limit: int) -> None:
    values = grid.quantise(vector, limit)
    plain = np.rint(vector.astype(np.float64) / grid.step)
    assert np.abs(values).max(initial=0) <= limit
    inside = np.abs(plain) <= limit
    assert np.abs(values[inside] - plain[inside]).max(initial=0) <= 1
    assert (np.sign(values[~inside]) * limit == values[~inside]).all()


@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_weights_are_between_0_and_1(cases: int, cap: float) -> None:
    assert 0 <= weight_of(cases, cap) <= 1
    assert weight_of(50, 100) == 0.5 and weight_of(200, 100) == 1 and weight_of(5, 0) == 1
