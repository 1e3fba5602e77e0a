"""The flat vector: packing, views, digests, norms."""

import hashlib
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import RunError
from medfl.update.base import Update
from medfl.update.vector import Layout

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def layout_of(shapes: list[tuple[int, ...]]) -> Layout:
    return Layout.of((f"part{number}", shape) for number, shape in enumerate(shapes))


@given(SHAPES, st.integers(0, 99))
def test_pack_and_views_are_inverse(shapes: list[tuple[int, ...]], seed: int) -> None:
    layout = layout_of(shapes)
    rng = np.random.default_rng(seed)
    tensors = {slot.name: rng.normal(size=slot.shape).astype(np.float32) for slot in layout.slots}
    vector = layout.pack(tensors)
    assert vector.shape == (layout.size,) and vector.dtype == np.float32
    views = layout.views(vector)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(views[name], tensor)
    np.testing.assert_array_equal(layout.pack(views), vector)


def test_views_share_the_memory_of_the_vector() -> None:
    layout = layout_of([(2, 3), (), (4,)])
    vector = np.zeros(layout.size, np.float32)
    views = layout.views(vector)
    views["part0"][1, 2] = 7
    views["part1"][...] = 8
    assert vector.tolist() == [0, 0, 0, 0, 0, 7, 8, 0, 0, 0, 0]
    assert all(np.shares_memory(view, vector) for view in views.values())


def test_pack_copies() -> None:
    layout = layout_of([(3,)])
    source = np.ones(3, np.float32)
    vector = layout.pack({"part0": source})
    source[:] = 5
    assert vector.tolist() == [1, 1, 1]


def test_pack_names_every_tensor_that_is_wrong() -> None:
    layout = layout_of([(2,), (3,), (4,)])
    zeros = np.zeros
    with pytest.raises(RunError) as caught:
        layout.pack({"part0": zeros(2, np.float32), "part1": zeros(4, np.float32), "stranger": zeros(1, np.float32)})
    text = str(caught.value)
    assert "part1" in text and "part2" in text and "stranger" in text and "part0" not in text


def test_views_refuse_another_size() -> None:
    layout = layout_of([(2, 3)])
    for shape in [(5,), (7,), (2, 3)]:
        with pytest.raises(RunError):
            layout.views(np.zeros(shape, np.float32))


@given(SHAPES)
def test_layout_survives_json(shapes: list[tuple[int, ...]]) -> None:
    layout = layout_of(shapes)
    again = Layout.from_json([(str(name), list(shape)) for name, shape in layout.to_json()])  # type: ignore[arg-type]
    assert again == layout and again.digest == layout.digest


def test_digest_tells_names_order_and_shapes_apart() -> None:
    base = [("a", (2, 3)), ("b", (3,))]
    others = [[("a", (3, 2)), ("b", (3,))], [("b", (3,)), ("a", (2, 3))], [("a", (2, 3)), ("c", (3,))]]
    digests = {Layout.of(shapes).digest for shapes in [base, *others]}
    assert len(digests) == 4 and all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in digests)


@pytest.mark.parametrize("size", [3, 70_000])
def test_norm_is_exact_where_float32_is_not(size: int) -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-25, 1.0, 1e25):
        values = (rng.normal(size=size) * scale).astype(np.float32)
        exact = float(np.linalg.norm(values.astype(np.float64)))
        assert Update(values, size).norm() == pytest.approx(exact, rel=1e-12)
        assert Update(values, size).rough_norm() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("size", [10, 70_000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_of_bad_values_is_not_finite(size: int, bad: float) -> None:
    values = np.zeros(size, np.float32)
    values[-1] = bad
    assert not np.isfinite(Update(values, size).norm())
    assert not np.isfinite(Update(values, size).rough_norm())


def test_a_rough_norm_of_a_long_vector_takes_little_memory_wherever_it_lies() -> None:
    """NumPy copies what is not aligned: all of it at once would be two vectors."""
    size = 4_000_000
    values = np.frombuffer(bytes(1) + np.ones(size, np.float32).tobytes(), np.float32, offset=1)
    assert not values.flags.aligned
    tracemalloc.start()
    try:
        assert Update(values, size).rough_norm() == 2000
        assert tracemalloc.get_traced_memory()[1] < 4 * size / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [0.0, 1e-24, 3e19, 3e38])
def test_a_rough_norm_is_exact_where_single_precision_ends(value: float) -> None:
    """The fake, squares in single precision alone, says zero or infinity."""
    update = Update(np.full(10_000, value, np.float32), 10_000)
    with warnings.catch_warnings(action="error"):
        update.rough_norm()
    assert update.rough_norm() == update.norm() == pytest.approx(value * 100, rel=1e-6)
    with np.errstate(over="ignore"):
        fake = float(np.sqrt(np.dot(update.values, update.values)))
    assert fake == 0 if value < 1 else fake == np.inf


def test_sparse_update_is_dense_with_zeros_elsewhere() -> None:
    update = Update(np.array([1, 2], np.float32), 5, np.array([1, 4]))
    assert update.dense().tolist() == [0, 1, 0, 0, 2]
    assert update.norm() == pytest.approx(5**0.5)
