"""PowerSGD (algorithms' test t07): nearly the best low-rank approximation, because it starts where it ended."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS
from medfl.update.codecs.powersgd import PowerSgd
from medfl.update.memories.base import MEMORIES, Memory
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import parts, unpack

Matrix = npt.NDArray[np.float32]
NETWORK = Layout.of(
    [
        ("stem.bias", (16,)),
        ("stem.weight", (32, 3, 3, 3)),
        ("tiny", (4, 4)),
        ("scale", ()),
        ("head.weight", (64, 96)),
        ("head.bias", (64,)),
        ("row", (1, 200)),
    ]
)
LOW = {"stem.weight": (32, 27), "head.weight": (64, 96)}


def decaying(seed: int = 0) -> Matrix:
    """256 x 128 of rank 8 with singular values that fall, and noise .02."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(256, 8)), rng.normal(size=(8, 128))
    return (left * 0.6 ** np.arange(8) @ right + 0.02 * rng.normal(size=(256, 128))).astype(np.float32)


def codec(layout: Layout | None = None, rank: int = 4) -> PowerSgd:
    made: PowerSgd = plugin(CODECS, "powersgd", rank=rank)
    made.bind(layout or Layout.of([("weight", (256, 128))]))
    return made


def sent(made: PowerSgd, vector: FloatVector, state: Any, seed: int = 0) -> FloatVector:
    payload = made.encode_with(Update(vector, vector.size), np.random.default_rng(seed), state)
    return made.decode(travelled(payload), vector.size).values


def travelled(payload: Payload) -> Payload:
    header, buffers = unpack(b"".join(parts({"payload": payload.header()}, payload.buffers)))
    return Payload.of(header["payload"], buffers)


def error(found: Matrix, matrix: Matrix) -> float:
    return float(np.linalg.norm(found.ravel() - matrix.ravel()) / np.linalg.norm(matrix))


def best(matrix: Matrix, rank: int = 4) -> float:
    energy = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return float(np.sqrt(energy[rank:].sum() / energy.sum()))


def random_factor(matrix: Matrix, rng: np.random.Generator) -> Matrix:
    """The fake: W = A B with a random A, as low-rank structured updates have it."""
    random = rng.normal(size=(len(matrix), 4))
    found: Matrix = random @ np.linalg.lstsq(random, matrix, rcond=None)[0]
    return found


def errors(matrix: Matrix, rounds: int, cold: bool = False) -> list[float]:
    """Error of each round. cold: the fake that starts at random in each."""
    made, state, found = codec(), {}, []  # type: ignore[var-annotated]
    for round_ in range(rounds):
        found.append(error(sent(made, matrix.ravel(), {} if cold else state, round_), matrix))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_warm_start_reaches_the_best_approximation_of_its_rank(seed: int) -> None:
    matrix = decaying(seed)
    limit = 1.01 * best(matrix)
    course = errors(matrix, 8)
    assert course[0] > 1.15 * best(matrix)
    assert course[-1] < limit
    # neither a start at random in each round nor a random factor gets there
    assert min(errors(matrix, 8, cold=True)) > limit
    assert error(random_factor(matrix, np.random.default_rng(seed)), matrix) > 0.9


def test_a_slowly_moving_matrix_is_followed() -> None:
    first, second = decaying(1), decaying(2)
    made, state = codec(), {}  # type: ignore[var-annotated]
    for round_ in range(60):
        matrix = (1 - round_ / 60) * first + round_ / 60 * second
        found = error(sent(made, matrix.ravel(), state, round_), matrix)
        assert round_ < 10 or found < 1.1 * best(matrix)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 1e34])
def test_any_scale_is_as_well(scale: float) -> None:
    matrix = (decaying() * np.float32(scale)).astype(np.float32)
    made, state = codec(), {}  # type: ignore[var-annotated]
    for round_ in range(6):
        found = sent(made, matrix.ravel(), state, round_)
    assert error(found.astype(np.float64) / scale, matrix.astype(np.float64) / scale) < 1.05 * best(decaying())


def test_a_matrix_of_lower_rank_comes_back() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(256, 3)) @ rng.normal(size=(3, 128))).astype(np.float32)
    assert errors(matrix, 1)[0] < 1e-5


def test_nothing_stays_nothing_and_does_not_end_the_warm_start() -> None:
    made, state = codec(), {}  # type: ignore[var-annotated]
    assert not sent(made, np.zeros(256 * 128, np.float32), state).any()
    one = np.zeros((256, 128), np.float32)
    one[3, 5] = 1
    sent(made, one.ravel(), state)
    matrix = decaying()
    found = [error(sent(made, matrix.ravel(), state, round_), matrix) for round_ in range(8)]
    assert found[-1] < 1.02 * best(matrix)


# what travels


def test_bytes_are_counted_and_small_tensors_travel_whole() -> None:
    vector = np.random.default_rng(3).normal(size=NETWORK.size).astype(np.float32)
    made = codec(NETWORK)
    payload = made.encode(Update(vector, vector.size), np.random.default_rng(0))
    whole = NETWORK.size - sum(rows * columns for rows, columns in LOW.values())
    factors = sum(4 * (rows + columns) for rows, columns in LOW.values())
    assert sum(len(buffer) for buffer in payload.buffers) == 4 * (whole + factors)
    found, exact = NETWORK.views(made.decode(payload, vector.size).values), NETWORK.views(vector)
    for name in exact:
        assert np.array_equal(found[name], exact[name]) == (name not in LOW), name


def test_a_convolution_is_the_matrix_of_its_filters() -> None:
    rng = np.random.default_rng(4)
    vector = rng.normal(size=NETWORK.size).astype(np.float32)
    filters = (rng.normal(size=(32, 4)) @ rng.normal(size=(4, 27))).astype(np.float32)
    NETWORK.views(vector)["stem.weight"][:] = filters.reshape(32, 3, 3, 3)
    found = NETWORK.views(sent(codec(NETWORK), vector, {}))["stem.weight"]
    np.testing.assert_allclose(found, filters.reshape(32, 3, 3, 3), atol=1e-4)


def test_without_a_layout_everything_is_exact() -> None:
    vector = np.random.default_rng(3).normal(size=300).astype(np.float32)
    made: PowerSgd = plugin(CODECS, "powersgd")
    state: dict[str, Any] = {}
    assert sent(made, vector, state).tobytes() == vector.tobytes() and not state
    assert made.omega(300) == 0


def test_the_declared_omega_holds_for_the_hardest_matrix() -> None:
    """All directions alike: only r / min(m, n) of the energy can be kept, and on average is."""
    made, kept = codec(Layout.of([("weight", (64, 64))])), []
    flat = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(np.float32)
    for seed in range(20):
        kept.append(1 - error(sent(made, flat.ravel(), {}, seed), flat) ** 2)
    delta = 1 / (1 + made.omega(64 * 64))
    assert delta == pytest.approx(4 / 64)
    assert np.mean(kept) == pytest.approx(delta, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 100, NETWORK.size - 1])
def test_what_is_not_finite_is_seen_and_not_remembered(bad: float, place: int) -> None:
    vector = np.random.default_rng(3).normal(size=NETWORK.size).astype(np.float32)
    made, state = codec(NETWORK), {}  # type: ignore[var-annotated]
    sent(made, vector, state)
    vector[place] = bad
    assert not np.isfinite(Update(sent(made, vector, state), vector.size).norm())
    assert np.isfinite(state["codec.q"]).all()


@given(st.lists(st.binary(max_size=64), max_size=2), st.integers(0, 80))
def test_any_bytes_are_refused_or_decoded(buffers: list[bytes], size: int) -> None:
    made = codec(Layout.of([("weight", (16, 32)), ("bias", (8,))]), rank=1)
    for given_ in (tuple(buffers), (b"".join(buffers)[:1] * (4 * (48 + 8)),)):
        for claimed in (size, 520):
            try:
                update = made.decode(Payload("powersgd", claimed, given_), claimed)
            except RunError as fault:
                assert str(fault)
            else:
                assert claimed == 520 and update.values.shape == (520,)


def test_another_network_is_refused() -> None:
    with pytest.raises(RunError, match="has 7 values, the network has 32768"):
        codec().encode(Update(np.ones(7, np.float32), 7), np.random.default_rng(0))
    with pytest.raises(RunError, match=r"codec\.q: has shape \(3,\)"):
        sent(codec(), decaying().ravel(), {"codec.q": np.ones(3, np.float32)})


# state and memory


def test_the_same_state_and_generator_give_the_same_bytes_and_no_state_is_shared() -> None:
    made, vector = codec(), decaying().ravel()
    first: dict[str, Any] = {}
    sent(made, vector, first)
    before = first["codec.q"].copy()
    second = {"codec.q": before.copy()}
    one = made.encode_with(Update(vector, vector.size), np.random.default_rng(1), first)
    two = codec().encode_with(Update(vector, vector.size), np.random.default_rng(2), second)
    assert bytes(one.buffers[0]) == bytes(two.buffers[0])
    assert first["codec.q"].tobytes() == second["codec.q"].tobytes() != before.tobytes()


def mean_error(memory: Memory, rounds: int = 200) -> float:
    """The same update of rank 16 in every round, sent at rank 2: error of the mean of what arrived."""
    rng = np.random.default_rng(0)
    vector = (rng.normal(size=(32, 16)) @ rng.normal(size=(16, 48))).astype(np.float32).ravel()
    made, total = codec(Layout.of([("weight", (32, 48))]), rank=2), np.zeros(vector.size)
    state: dict[str, Any] = {}
    for round_ in range(rounds):
        wanted = memory.before(Update(vector, vector.size), state)
        arrived = Update(sent(made, wanted.dense(), state, round_), vector.size)
        memory.after(wanted, lambda arrived=arrived: arrived, state)  # type: ignore[misc]
        total += arrived.values
    return float(np.linalg.norm(total / rounds - vector) / np.linalg.norm(vector))


def test_error_feedback_sends_what_the_rank_leaves_out() -> None:
    assert mean_error(plugin(MEMORIES, "error_feedback")) < 0.05
    # without a memory the same directions are lost in every round
    assert mean_error(plugin(MEMORIES, "none")) > 0.7
