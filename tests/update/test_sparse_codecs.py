"""Sparse codecs: which values are kept, how positions and values travel, and what of an update survives."""

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import configured, plugin

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs import selection
from medfl.update.codecs.base import CODECS
from medfl.update.codecs.indices import pack_indices, unpack_indices
from medfl.update.codecs.personal_topk import PersonalTopK
from medfl.update.codecs.random_k import RandomK, random_places
from medfl.update.codecs.selection import largest, negative, positive
from medfl.update.codecs.sparse import pack_values, unpack_values
from medfl.update.codecs.sparse_binary import SparseBinary
from medfl.update.codecs.stc import pack_golomb, unpack_golomb
from medfl.update.codecs.topk import TopK
from medfl.update.vector import Layout
from medfl.update.wire import parts, unpack

Vector = npt.NDArray[np.float32]
KINDS = ("topk", "personal_topk", "random_k", "stc", "sparse_binary")
RNG = np.random.default_rng(0)


def settings_of(kind: str, **changes: Any) -> Any:
    return configured(CODECS, kind, **changes)


def heavy(size: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def bytes_of(payload: Payload) -> int:
    return sum(len(buffer) for buffer in payload.buffers)


def through(codec: Any, values: Vector, rng: np.random.Generator = RNG) -> Vector:
    found: Vector = codec.decode(codec.encode(Update(values, values.size), rng), values.size).dense()
    return found


# positions


@given(st.sets(st.integers(0, 300_000), max_size=60), st.integers(0, 200_000))
@settings(max_examples=200)
def test_positions_come_back(places: set[int], beyond: int) -> None:
    indices = np.array(sorted(places), np.int64)
    size = max(places, default=0) + 1 + beyond
    assert np.array_equal(unpack_indices(pack_indices(indices), indices.size, size), indices)


def test_positions_far_apart_and_across_blocks() -> None:
    size = 10**10
    for indices in (np.array([0, 65534, 65535 * 2, size - 1]), np.arange(0, size, 10**5), np.arange(70_000)):
        assert np.array_equal(unpack_indices(pack_indices(indices), indices.size, size), indices)


def test_positions_cost_less_than_their_entropy_and_a_tenth() -> None:
    size, count = 4 * 10**6, 4 * 10**4
    share = count / size
    entropy = size * (-share * math.log2(share) - (1 - share) * math.log2(1 - share)) / 8
    packed = len(pack_indices(np.sort(RNG.choice(size, count, replace=False))))
    assert packed < 1.1 * entropy
    assert not len(np.sort(RNG.choice(size, count, replace=False)).astype(np.int32).tobytes()) < 1.1 * entropy


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"nothing of the kind",
        zstandard.compress(bytes(7)),
        zstandard.compress(bytes(9)),
        zstandard.compress(bytes(8)) + b"x",
        zstandard.compress(bytes(8))[:-1],
        # a gap of 100 in a vector of 50
        zstandard.compress(bytes([0, 0, 100, 0]) + bytes(4)),
        # a large gap without its rest, and a rest without a large gap
        zstandard.compress(b"\xff" * 8),
        zstandard.compress(bytes(8) + bytes(8)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8)),
    ],
    ids=["empty", "text", "short", "long", "extra", "cut", "outside", "no-rest", "rest", "undeclared"],
)
def test_positions_that_are_none_are_refused(packed: bytes) -> None:
    with pytest.raises(RunError):
        unpack_indices(packed, 4, 50)


def test_a_bomb_is_refused_before_it_expands() -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    assert len(bomb) < 1 << 15
    with pytest.raises(RunError, match="would expand to 268435456 bytes"):
        unpack_indices(bomb, 4, 10**6)


@pytest.mark.parametrize("share", [0.01, 0.0025, 0.001])
def test_golomb_is_within_a_hundredth_of_the_entropy(share: float) -> None:
    size = 4 * 10**6
    indices = np.flatnonzero(RNG.random(size) < share)
    codec = plugin(CODECS, "stc", coding="golomb", density=indices.size / size)
    values = np.zeros(size, np.float32)
    values[indices] = RNG.choice([-1, 1], indices.size)
    payload = codec.encode(Update(values, size), RNG)
    bits = 8 * bytes_of(payload) / indices.size
    entropy = 1 - math.log2(share) - (1 - share) / share * math.log2(1 - share)
    assert bits < 1.01 * entropy
    assert bits == pytest.approx({0.01: 9.108, 0.0025: 11.114, 0.001: 12.504}[share], rel=0.01)
    # one bit an entry more, as a published counter has it, would not do
    assert not bits + 1 < 1.01 * entropy
    np.testing.assert_array_equal(codec.decode(payload, size).dense(), values)


@given(st.sets(st.integers(0, 5000), max_size=60), st.integers(0, 12))
def test_golomb_comes_back_whatever_the_parameter(places: set[int], bits: int) -> None:
    indices = np.array(sorted(places), np.int64)
    found = unpack_golomb(pack_golomb(indices, bits), indices.size, 5001, bits)
    assert np.array_equal(found, indices)


# selection


def sorted_choice(values: Vector, count: int) -> npt.NDArray[np.int64]:
    """The k largest by a stable sort: ties from the lowest index, NaN first, then infinity."""
    magnitudes = np.where(np.isnan(values), np.inf, np.abs(values.astype(np.float64)))
    order = np.lexsort((np.arange(values.size), ~np.isnan(values), -magnitudes))
    return np.sort(order[:count])


@pytest.mark.parametrize("size", [1, 7, 1000, 300_001])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 1.0])
def test_selection_is_that_of_a_sort(size: int, share: float) -> None:
    count = math.ceil(share * size)
    for values in (heavy(size), np.round(heavy(size)), np.zeros(size, np.float32), np.ones(size, np.float32)):
        np.testing.assert_array_equal(largest(values, count), sorted_choice(values, count))


def misleading(size: int, *, shown: bool) -> Vector:
    """Large values nowhere, or everywhere, that the strided sample looks."""
    values = np.linspace(1, 2, size, dtype=np.float32)
    seen = np.zeros(size, np.bool_)
    seen[:: size // selection._SAMPLE | 1] = True
    values[seen if shown else ~seen] *= 1000
    return values


@pytest.mark.parametrize("shown", [True, False])
def test_a_sample_that_misleads_costs_no_value(shown: bool) -> None:
    values = misleading(800_000, shown=shown)
    expected = sorted_choice(values, 8000)
    np.testing.assert_array_equal(largest(values, 8000), expected)
    # the fake: whatever passes the sampled threshold, and no second look
    trusting = selection._candidates(values.view(np.uint32), 8000, selection.magnitude)
    assert trusting is None or not np.array_equal(trusting[:8000], expected)


def test_what_is_not_finite_is_always_selected() -> None:
    values = heavy(300_000)
    values[[5, 77_777, 299_999]] = [np.nan, -np.inf, np.inf]
    assert {5, 77_777, 299_999} <= set(largest(values, 30))
    assert largest(values, 1).tolist() == [5]


def test_one_sign_alone() -> None:
    values = np.array([3, -5, 1, -2, 0, 4], np.float32)
    assert largest(values, 2, positive).tolist() == [0, 5]
    assert largest(values, 2, negative).tolist() == [1, 3]


# values


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.0), ("fp16", 2**-11), ("int8", 0.5 / 127)])
def test_kept_values_keep_their_precision(precision: Any, bound: float) -> None:
    values = heavy(1000)
    back = unpack_values(pack_values(values, precision), values.size, precision)
    ceiling = np.abs(values)
    if precision == "int8":
        ceiling = np.repeat([block.max() for block in np.split(ceiling, [256, 512, 768])], [256, 256, 256, 232])
    assert (np.abs(back - values) <= 1.001 * bound * ceiling + 1e-9).all()
    assert not (np.abs(back - values) <= 0.5 * bound * ceiling + 1e-9).all() or precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_kept_values_at_the_edge(precision: Any) -> None:
    largest_float = np.finfo(np.float32).max
    values = np.array([np.nan, np.inf, -np.inf, largest_float, -largest_float, 1e-45, 0], np.float32)
    back = unpack_values(pack_values(values, precision), values.size, precision)
    assert np.array_equal(np.isfinite(values), np.isfinite(back))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 1e38])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    codes, _ = pack_values(heavy(300), "int8")
    with pytest.raises(RunError, match="scales"):
        unpack_values((codes, np.array([1, scale], np.float32).data.cast("B")), 300, "int8")


# all of them


def test_settings_that_are_no_share_are_refused() -> None:
    for density in (0, -0.1, 1.5, {"kind": "warmup", "values": [0.5, 0]}, {"kind": "warmup", "values": [2, 0.5]}):
        with pytest.raises(ValidationError, match="above 0 and at most 1"):
            configured(CODECS, "topk", density=density)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_moves_and_any_count_is_decoded(kind: str) -> None:
    values = heavy(1000)
    codec = plugin(CODECS, kind, density={"kind": "warmup"})
    later = codec.at({f"{kind}.density": 0.001, "other.density": 0.5})
    assert (codec.count(1000), later.count(1000)) == (250, 1)
    assert codec.at({}) is codec
    payload = codec.encode(Update(values, 1000), RNG)
    assert np.array_equal(later.decode(payload, 1000).dense(), codec.decode(payload, 1000).dense())
    for density in (0.0, 1.01, math.nan):
        with pytest.raises(RunError, match=f"{kind}.density"):
            codec.at({f"{kind}.density": density})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_smallest_vectors(kind: str, size: int) -> None:
    values = np.ones(size, np.float32)
    assert through(plugin(CODECS, kind), values).shape == (size,)
    np.testing.assert_allclose(through(plugin(CODECS, kind, density=1), values), values)


@pytest.mark.parametrize("kind", ["topk", "personal_topk", "stc", "sparse_binary"])
def test_an_update_of_some_coordinates_keeps_to_them(kind: str) -> None:
    """Of a sub-model's update nothing else is chosen, and the density counts its own coordinates."""
    own = np.sort(RNG.choice(5000, 1000, replace=False))
    codec = plugin(CODECS, kind, density=0.1)
    back = codec.decode(codec.encode(Update(heavy(1000), 5000, own), RNG), 5000)
    assert 20 <= back.indices.size <= 200 and set(back.indices) <= set(own)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    ("topk", {"values": "int8"}),
    ("topk", {"values": "fp32", "density": 1}),
    ("stc", {"coding": "golomb"}),
]


@pytest.mark.parametrize(("kind", "changes"), SETTINGS)
def test_the_message_is_all_that_the_receiver_needs(kind: str, changes: dict[str, Any]) -> None:
    codec = plugin(CODECS, kind, **changes)
    payload = codec.encode(Update(heavy(3000), 3000), RNG)
    header, buffers = unpack(b"".join(parts({"payload": payload.header()}, payload.buffers)))
    back = plugin(CODECS, kind, **changes).decode(Payload.of(header["payload"], buffers), 3000)
    np.testing.assert_array_equal(back.dense(), codec.decode(payload, 3000).dense())


@pytest.mark.parametrize(("kind", "changes"), [*SETTINGS, ("topk", {"density": 0.25}), ("random_k", {"density": 0.25})])
def test_memory_is_bounded(kind: str, changes: dict[str, Any]) -> None:
    size = 1_000_000
    codec, update = plugin(CODECS, kind, **changes), Update(heavy(size), size)
    codec.decode(codec.encode(update, RNG), size)
    tracemalloc.start()
    payload = codec.encode(update, RNG)
    encoding = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    codec.decode(payload, size)
    decoding = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    # beside it, what no size changes: a block and a sample
    assert max(encoding, decoding) < 1.5 * 4 * size + 2**20


def contraction(codec: Any, draws: int = 30) -> float:
    """Mean of |Q(v) - v|^2 / |v|^2."""
    values = heavy(2000)
    rng = np.random.default_rng(1)
    lost = [np.linalg.norm(through(codec, values, rng) - values) ** 2 for _ in range(draws)]
    return float(np.mean(lost) / np.linalg.norm(values) ** 2)


@pytest.mark.parametrize(
    ("kind", "changes"), [("topk", {}), ("personal_topk", {}), ("random_k", {"scaled": False}), ("random_k", {})]
)
def test_what_is_lost_is_what_omega_says(kind: str, changes: dict[str, Any]) -> None:
    codec = plugin(CODECS, kind, density=0.05, **changes)
    omega = codec.omega(2000)
    bound = omega if changes == {} and kind == "random_k" else 1 - 1 / (1 + omega)
    assert contraction(codec) < 1.1 * bound
    assert kind != "random_k" or contraction(codec) > 0.9 * bound


class FirstK(TopK):
    """The fake: the first k in place of the largest."""

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        first = Update(np.where(np.arange(update.size) < self.count(update.size), update.values, 0), update.size)
        return super().encode(first, rng)


def test_topk_keeps_most_of_the_energy() -> None:
    config = settings_of("topk", density=0.05)
    assert contraction(TopK(config), 1) < 0.6
    assert not contraction(FirstK(config), 1) < 0.6


def test_topk_takes_the_bytes_of_its_values_and_less_than_one_for_a_position() -> None:
    values = heavy(100_000)
    for precision, width in (("fp32", 4), ("fp16", 2), ("int8", 1 + 4 / 256)):
        payload = plugin(CODECS, "topk", values=precision).encode(Update(values, values.size), RNG)
        assert 1000 * width < bytes_of(payload) < 1000 * (width + 1.2)


# personalised


def spread(size: int, share: float, seed: int) -> Vector:
    """Noise, and a share of the values a hundred times as large."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size)
    values[rng.random(size) < share] *= 100
    return values.astype(np.float32)


def rounds_of(
    codec: PersonalTopK, share: float, rounds: int, lowest: float = 0
) -> tuple[npt.NDArray[np.int64], float, dict[str, Any]]:
    """How many values travelled in each round, the mean of their bytes, and the state at the end. lowest: of rho."""
    state: dict[str, Any] = {}
    payloads = []
    for number in range(rounds):
        payloads.append(codec.encode_with(Update(spread(20_000, share, number), 20_000), RNG, state))
        state["codec.rho"] = np.maximum(state["codec.rho"], lowest)
    return (
        np.array([payload.meta["k"] for payload in payloads]),
        float(np.mean([bytes_of(payload) for payload in payloads])),
        state,
    )


def test_a_site_sends_what_it_needs_within_its_budget() -> None:
    codec = plugin(CODECS, "personal_topk", density=0.02)
    narrow, few, _ = rounds_of(codec, 0.002, 30)
    wide, many, state = rounds_of(codec, 0.05, 200)
    assert narrow.min() >= 100 and wide.max() <= 800
    assert narrow.mean() < 0.6 * wide.mean()
    assert few < many < 1.01 * codec.budget(20_000)
    assert many > 0.8 * codec.budget(20_000)
    assert list(state) == ["codec.rho"] and 0 < state["codec.rho"][0] <= 0.999


def test_flat_updates_keep_to_the_budget_too() -> None:
    codec = plugin(CODECS, "personal_topk", density=0.01)
    assert rounds_of(codec, 0.0, 30)[1] < 1.02 * codec.budget(20_000)
    # the fake: rho never falls below 0.3, and 1 % of noise holds a third of that
    assert not rounds_of(codec, 0.0, 30, lowest=0.3)[1] < 1.5 * codec.budget(20_000)


def test_no_tensor_starves() -> None:
    layout = Layout.of([("large", (1000,)), ("small", (30, 10)), ("tiny", (5,))])
    values = heavy(layout.size)
    values[:1000] *= 1000
    codec = plugin(CODECS, "personal_topk", density=0.02, floor=0.01)
    with pytest.raises(RunError, match="layout"):
        codec.encode(Update(values, values.size), RNG)
    codec.bind(layout)
    found = codec.decode(codec.encode(Update(values, values.size), RNG), values.size).indices
    assert np.histogram(found, [0, 1000, 1300, 1305])[0].tolist()[1:] == [3, 1]
    assert {1000 + int(place) for place in largest(values[1000:1300], 3)} <= set(found)
    without = plugin(CODECS, "personal_topk", density=0.02)
    assert (without.decode(without.encode(Update(values, values.size), RNG), values.size).indices < 1000).all()


# random


def test_places_are_the_same_everywhere() -> None:
    """A site and a coordinator with other versions of numpy must draw the same."""
    assert random_places(12345, 5, 1000).tolist() == [73, 125, 328, 572, 984]
    assert set(random_places(7, 995, 1000)) == set(range(1000)) - set(random_places(7, 5, 1000))


def test_every_place_is_as_likely() -> None:
    hits = np.zeros(40)
    for seed in range(4000):
        places = random_places(seed, 15, 40)
        assert places.size == 15
        hits[places] += 1
    # 1500 expected, standard deviation 31
    assert np.abs(hits - 1500).max() < 130


class OneSeed(RandomK):
    """The fake: every site draws the same places."""

    def seed(self, rng: np.random.Generator) -> int:
        return 1


def mean_error(codec: RandomK, sites: int = 400) -> float:
    """Relative distance between an update and the mean of what many sites send of it."""
    values = heavy(500)
    rng = np.random.default_rng(3)
    mean = np.mean([through(codec, values, rng) for _ in range(sites)], axis=0)
    return float(np.linalg.norm(mean - values) / np.linalg.norm(values))


def test_random_k_is_right_on_average_and_only_with_a_seed_a_site() -> None:
    config = settings_of("random_k", density=0.1, values="fp32")
    # sqrt((1 / 0.1 - 1) / 400) = 0.15
    assert mean_error(RandomK(config)) < 0.2
    assert not mean_error(OneSeed(config)) < 1
    unscaled = settings_of("random_k", density=0.1, scaled=False)
    assert not mean_error(RandomK(unscaled)) < 0.2
    assert "unbiased" in config.traits() and "unbiased" not in unscaled.traits()


def test_random_k_sends_a_seed_and_no_position() -> None:
    values = heavy(10_000)
    codec = plugin(CODECS, "random_k", values="fp32")
    payload = codec.encode(Update(values, values.size), np.random.default_rng(0))
    assert [len(buffer) for buffer in payload.buffers] == [8, 400]
    again = codec.encode(Update(values, values.size), np.random.default_rng(0))
    assert [bytes(buffer) for buffer in again.buffers] == [bytes(buffer) for buffer in payload.buffers]


# ternary and binary


@pytest.mark.parametrize("coding", ["planes", "golomb"])
def test_stc_sends_signs_and_one_mean(coding: str) -> None:
    values = heavy(10_000)
    back = through(plugin(CODECS, "stc", coding=coding), values)
    kept = sorted_choice(values, 100)
    assert np.array_equal(np.flatnonzero(back), kept)
    np.testing.assert_array_equal(np.sign(back[kept]), np.sign(values[kept]))
    np.testing.assert_allclose(np.abs(back[kept]), np.abs(values[kept]).mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["stc", "sparse_binary"])
def test_zeros_do_not_become_a_mean(kind: str) -> None:
    values = np.zeros(1000, np.float32)
    values[[3, 500]] = 2
    assert np.array_equal(through(plugin(CODECS, kind), values), values)
    assert not through(plugin(CODECS, kind), np.zeros(1000, np.float32)).any()


def test_planes_are_smaller_than_golomb_where_large_values_cluster() -> None:
    values = heavy(200_000) * np.repeat(np.geomspace(1, 100, 20), 10_000).astype(np.float32)
    update = Update(values, values.size)
    planes, golomb = (
        bytes_of(plugin(CODECS, "stc", coding=coding).encode(update, RNG)) for coding in ("planes", "golomb")
    )
    assert planes < 0.9 * golomb


class Weaker(SparseBinary):
    """The fake: the weaker sign."""

    def decode(self, payload: Payload, size: int) -> Update:
        back = super().decode(payload, size)
        return Update(-back.values, size, back.indices)


def test_the_stronger_sign_alone_travels() -> None:
    values = heavy(10_000)
    values[values > 0] *= 2
    update = Update(values, values.size)
    config = settings_of("sparse_binary")
    for sign in (1, -1):
        back = through(SparseBinary(config), sign * values)
        assert np.unique(back[back != 0]).size == 1 and (sign * back >= 0).all()
        assert np.array_equal(np.flatnonzero(back), np.sort(np.argsort(-values, kind="stable")[:100]))
        assert np.linalg.norm(sign * values - back) < np.linalg.norm(values)
        weaker = through(Weaker(config), sign * values)
        assert not np.linalg.norm(sign * values - weaker) < np.linalg.norm(values)
    ternary = plugin(CODECS, "stc", coding="planes").encode(update, RNG)
    assert bytes_of(SparseBinary(config).encode(update, RNG)) < bytes_of(ternary)


@pytest.mark.parametrize("mean", [math.nan, math.inf, "1", True, [1], 1e39, 10**400])
@pytest.mark.parametrize("kind", ["stc", "sparse_binary"])
def test_means_that_are_none_are_refused(kind: str, mean: Any) -> None:
    codec = plugin(CODECS, kind)
    good = codec.encode(Update(heavy(1000), 1000), RNG)
    with pytest.raises(RunError, match="mean"):
        codec.decode(Payload(kind, 1000, good.buffers, {**good.meta, "mean": mean}), 1000)


@pytest.mark.parametrize("count", [-1, 1001, 1.0, True, None, "10", 2**70])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_that_are_none_are_refused(kind: str, count: Any) -> None:
    codec = plugin(CODECS, kind)
    good = codec.encode(Update(heavy(1000), 1000), RNG)
    with pytest.raises(RunError, match="kept values"):
        codec.decode(Payload(kind, 1000, good.buffers, {**good.meta, "k": count}), 1000)
