"""Low-rank factors (algorithms' test t07): B is a left inverse, A is drawn evenly, and nothing is lost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.parts import pipeline, plugin

from medfl.errors import RunError, StudyError
from medfl.update.base import Payload, Update, Upload
from medfl.update.codecs.base import CODECS
from medfl.update.matrices import Matrix
from medfl.update.memories.base import SiteState
from medfl.update.parts import Basis, embedded, taken
from medfl.update.submodels.base import SUBMODELS, Choice, Setup
from medfl.update.submodels.low_rank import Factors, LowRank
from medfl.update.vector import FloatVector, Layout

LAYOUT = Layout.of([("bias", (7,)), ("conv", (12, 3, 2, 2)), ("tiny", (4, 9)), ("head", (8, 20)), ("end", (3,))])
RANK = 4
LOW = {"conv": (12, 12), "head": (8, 20)}
SIZE = RANK * (12 + 20) + 7 + 4 * 9 + 3


def low_rank(seed: int = 0, layout: Layout = LAYOUT, **config: Any) -> LowRank:
    made: LowRank = plugin(SUBMODELS, "low_rank", **config)
    made.bind(Setup(layout, seed, _unasked, _unasked))
    return made


def _unasked() -> Any:
    raise AssertionError("factors need no more than the layout")


def factors(round_: int = 1, site: str = "x", **config: Any) -> Factors:
    return low_rank(**config).part(Choice(site, round_))


def draw(size: int, seed: int = 0) -> FloatVector:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def there_and_back(part: Factors, vector: FloatVector) -> FloatVector:
    """What the coordinator makes of a vector."""
    values = taken(vector, part)
    return embedded(Update(values, values.size), part, vector.size).dense()


def not_orthonormal(part: Factors) -> Factors:
    """The fake: A as it is drawn."""
    rng = np.random.default_rng(0)
    bases = [Basis(basis.matrix, rng.normal(size=basis.columns.shape).astype(np.float32) / 3) for basis in part.bases]
    return Factors(part.whole, tuple(bases))


# a left inverse, and a projection


def inverts(part: Factors) -> bool:
    """Whether B comes back from A B, and A B from B."""
    values = draw(part.size)
    vector = embedded(Update(values, values.size), part, LAYOUT.size).dense()
    again = there_and_back(part, vector)
    return np.allclose(taken(vector, part), values, atol=2e-6) and np.allclose(again, vector, atol=2e-6)


def test_b_of_an_update_in_the_range_of_a_rebuilds_it() -> None:
    assert inverts(factors())
    assert not inverts(not_orthonormal(factors()))


def test_any_other_update_is_projected_and_small_tensors_are_whole() -> None:
    part, vector = factors(), draw(LAYOUT.size)
    found, given_ = LAYOUT.views(there_and_back(part, vector)), LAYOUT.views(vector)
    for basis, (name, shape) in zip(part.bases, LOW.items(), strict=True):
        a, matrix = basis.columns.astype(np.float64), given_[name].reshape(shape)
        assert a.shape == (shape[0], RANK)
        expected = a @ np.linalg.lstsq(a, matrix, rcond=None)[0]
        np.testing.assert_allclose(found[name].reshape(shape), expected, atol=2e-6)
        assert np.linalg.norm(expected - matrix) > 0.3 * np.linalg.norm(matrix), "A^+ W is exact only within the range"
    for name in ("bias", "tiny", "end"):
        assert found[name].tobytes() == given_[name].tobytes()


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "topk"])
def test_only_b_and_small_tensors_are_on_the_wire(codec: str) -> None:
    part = factors()
    assert part.size == SIZE == taken(draw(LAYOUT.size), part).size
    way = pipeline(codec, "error_feedback")
    payload = way.run(draw(LAYOUT.size), upload(part, 1), {}, np.random.default_rng(0))
    whole = way.run(draw(LAYOUT.size), Upload("x", 1, 0, draw(LAYOUT.size)), {}, np.random.default_rng(0))
    assert payload is not None and whole is not None and payload.size == SIZE
    if codec in ("fp32", "fp16"):
        assert length(payload) == (4 if codec == "fp32" else 2) * SIZE
    assert length(payload) < length(whole)
    sent = embedded(way.codec.decode(payload, part.size), part, LAYOUT.size)
    assert sent.indices is None, "every coordinate is known: none is another site's alone"


def length(payload: Payload) -> int:
    return sum(len(buffer) for buffer in payload.buffers)


def upload(part: Factors, round_: int, trains: bool = True) -> Upload:
    return Upload("x", round_, round_ - 1, np.zeros(LAYOUT.size, np.float32), part, part if trains else None)


def test_the_clip_of_b_is_the_clip_of_the_update() -> None:
    part, values = factors(), draw(SIZE)
    vector = embedded(Update(values, SIZE), part, LAYOUT.size)
    assert vector.norm() == pytest.approx(Update(values, SIZE).norm(), rel=1e-6)


def test_a_network_without_a_matrix_to_make_smaller_is_refused() -> None:
    with pytest.raises(StudyError, match=r"update\.submodel\.rank"):
        factors(rank=12)
    assert len(factors(rank=11).bases) == 1 and len(factors(rank=1).bases) == 3


# how A is drawn


def test_a_is_orthonormal_and_depends_on_seed_round_and_site() -> None:
    drawn = [factors(), factors(2), factors(site="y"), factors(seed=1)]
    for part in drawn:
        for basis in part.bases:
            np.testing.assert_allclose(basis.columns.T @ basis.columns, np.eye(RANK), atol=1e-6)
    assert len({basis.columns.tobytes() for part in drawn for basis in part.bases}) == 8
    assert factors().bases[0].columns.tobytes() == factors().bases[0].columns.tobytes()


def test_a_shared_a_is_the_same_at_all_sites_of_a_round() -> None:
    here, there = factors(shared=True), factors(site="y", shared=True)
    assert all(
        one.columns.tobytes() == other.columns.tobytes() for one, other in zip(here.bases, there.bases, strict=True)
    )
    assert factors(2, shared=True).bases[0].columns.tobytes() != here.bases[0].columns.tobytes()


def test_the_stream_of_a_is_fixed_for_good() -> None:
    # both ends draw by themselves: another stream in a later version would misplace every value
    found = low_rank(7, Layout.of([("w", (3, 5))]), rank=1).part(Choice("hospital-a", 3)).bases[0].columns
    np.testing.assert_allclose(found[:, 0], [0.477851, 0.269782, 0.835988], atol=1e-6)


Drawn = Callable[[int], npt.NDArray[np.float32]]


def on_average(drawn: Drawn, rows: int = 10, draws: int = 4000) -> tuple[float, float]:
    """How far the mean of rows / rank A A^T u is from u, and its variance, both by u's length."""
    vector, total, spread = draw(rows, 3), np.zeros(rows), 0.0
    for round_ in range(draws):
        a = drawn(round_)
        scaled = rows / a.shape[1] * (a @ (a.T @ vector))
        total += scaled
        spread += float(np.square(scaled - vector).sum())
    norm = float(np.linalg.norm(vector))
    return float(np.linalg.norm(total / draws - vector)) / norm, spread / draws / norm**2


def test_scaled_by_rows_over_rank_the_projection_is_unbiased_with_the_variance_it_says() -> None:
    made = low_rank(layout=Layout.of([("w", (10, 1))]), rank=4)
    bias, variance = on_average(lambda round_: made.part(Choice("x", round_)).bases[0].columns)
    # 4000 draws of variance 1.5
    assert bias < 0.06
    assert variance == pytest.approx(10 / 4 - 1, abs=0.05)
    first = np.eye(10, dtype=np.float32)[:, :4]
    assert not on_average(lambda _: first, draws=100)[0] < 0.06


# what waits


class Repeated(LowRank):
    """The fake: the same A in every round."""

    def part(self, choice: Choice) -> Factors:
        return super().part(Choice(choice.site, 1))


def waiting(made: LowRank, rounds: int = 30) -> tuple[float, float]:
    """How much of one update is neither sent nor remembered after some rounds, and how much still waits; of it all."""
    made.bind(Setup(LAYOUT, 0, _unasked, _unasked))
    state: SiteState = {}
    way, first, total = pipeline("fp32", "error_feedback"), draw(LAYOUT.size), np.zeros(LAYOUT.size)
    for round_ in range(1, rounds + 1):
        part = made.part(Choice("x", round_))
        delta = first if round_ == 1 else np.zeros_like(first)
        payload = way.run(delta, upload(part, round_, trains=False), state, np.random.default_rng(0))
        assert payload is not None
        total += embedded(way.codec.decode(payload, part.size), part, LAYOUT.size).dense()
        for basis in part.bases:
            assert np.abs(basis.columns.T @ basis.matrix.of(state["memory.residual"])).max() < 1e-5
    lost = np.linalg.norm(first - total - state["memory.residual"])
    norm = np.linalg.norm(first)
    return float(lost / norm), float(np.linalg.norm(state["memory.residual"]) / norm)


def test_what_lies_outside_the_range_waits_for_an_a_that_reaches_it() -> None:
    config = plugin(SUBMODELS, "low_rank").config
    lost, left = waiting(LowRank(config))
    assert lost < 1e-6 and left < 0.02
    lost, left = waiting(Repeated(config))
    assert lost < 1e-6 and not left < 0.02


# what a peer may send


@given(st.sampled_from(["fp32", "int8", "topk"]), st.binary(max_size=4 * SIZE + 8), st.integers(0, SIZE + 2))
def test_any_payload_is_an_update_of_the_network_or_refused(codec: str, raw: bytes, size: int) -> None:
    part, made = factors(), plugin(CODECS, codec)
    try:
        update = made.decode(Payload(codec, size, (raw,)), part.size)
        found = embedded(update, part, LAYOUT.size)
    except RunError:
        return
    assert found.values.shape == (LAYOUT.size,) and found.indices is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, SIZE - 1])
def test_what_is_not_finite_stays_so(bad: float, place: int) -> None:
    values = draw(SIZE)
    values[place] = bad
    assert not np.isfinite(embedded(Update(values, SIZE), factors(), LAYOUT.size).norm())


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, LAYOUT.size])
def test_b_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(RunError, match=f"has {SIZE}"):
        embedded(Update(draw(size), size), factors(), LAYOUT.size)


def test_a_vector_of_another_network_is_refused() -> None:
    part, other = factors(), draw(LAYOUT.size + 1)
    for refused in (
        lambda: taken(other, part),
        lambda: embedded(Update(draw(SIZE), SIZE), part, other.size),
        lambda: part.subspace(other.size),
    ):
        with pytest.raises(RunError, match=f"{other.size} values"):
            refused()


def test_sparse_values_of_b_are_put_where_they_belong() -> None:
    indices = np.array([0, 5, SIZE - 1])
    sparse = Update(draw(3), SIZE, indices)
    dense = Update(sparse.dense(), SIZE)
    assert embedded(sparse, factors(), LAYOUT.size).dense().tolist() == (
        embedded(dense, factors(), LAYOUT.size).dense().tolist()
    )


def test_a_matrix_is_a_view_of_the_vector() -> None:
    vector = np.arange(20, dtype=np.float32)
    view = Matrix(3, 4, 5).of(vector)
    view[0, 1] = -1
    assert view.shape == (3, 4) and vector[6] == -1
