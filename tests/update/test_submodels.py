"""Sub-models: what a choice means at both ends, what the coordinator learns, and what a peer may not say."""

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError, StudyError
from medfl.update.base import Update
from medfl.update.memories.base import SiteState
from medfl.update.parts import Coordinates, Part, embedded, taken
from medfl.update.submodels.afd import Afd, AfdChooser, _Course
from medfl.update.submodels.base import SUBMODELS, Choice, Setup, SubModel
from medfl.update.submodels.bits import packed, unpacked
from medfl.update.submodels.lottery import KNOWN, MASK, Lottery, LotteryChooser, _smallest
from medfl.update.submodels.units import WHOLE, UnitLayer, Units
from medfl.update.vector import Layout

LAYOUT = Layout.of(
    [("a.weight", (8, 3, 2)), ("a.bias", (8,)), ("b.weight", (4, 8)), ("b.bias", (4,)), ("c.weight", (2, 4))]
)
EIGHT, FOUR = np.arange(8), np.arange(8, 12)
UNITS = Units(
    LAYOUT,
    (UnitLayer("a.weight", 0, 8), UnitLayer("b.weight", 8, 12)),
    {
        ("a.weight", 0): EIGHT,
        ("a.bias", 0): EIGHT,
        ("b.weight", 1): EIGHT,
        ("b.weight", 0): FOUR,
        ("b.bias", 0): FOUR,
        ("c.weight", 1): FOUR,
    },
    {"c.weight": "it makes the network's output"},
)
INITIAL = np.random.default_rng(1).normal(size=LAYOUT.size).astype(np.float32)
MODEL = np.random.default_rng(2).normal(size=LAYOUT.size).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def submodel(kind: str, seed: int = 0, layout: Layout = LAYOUT, **config: Any) -> Any:
    made: SubModel = plugin(SUBMODELS, kind, **config)
    made.bind(Setup(layout, seed, lambda: UNITS, lambda: INITIAL.copy()))
    return made


def travelled(choice: Choice) -> Choice:
    return Choice(choice.site, choice.round, json.loads(json.dumps(dict(choice.content))))


def values_of(part: Part | None) -> npt.NDArray[np.float32]:
    """What travels of a vector of different values, which tells parts apart."""
    return taken(MODEL, part)


def unmeasured(model: Any) -> float:
    raise AssertionError(f"{model} is not to be measured")


# units


def test_the_coordinates_of_units_are_those_of_the_sliced_tensors() -> None:
    kept = rng().random(UNITS.count) < 0.6
    views = LAYOUT.views(np.arange(LAYOUT.size).astype(np.float32))
    a, b = kept[:8], kept[8:]
    expected = [views["a.weight"][a], views["a.bias"][a], views["b.weight"][b][:, a], views["b.bias"][b]]
    expected.append(views["c.weight"][:, b])
    assert UNITS.coordinates(kept).tolist() == np.concatenate([part.ravel() for part in expected]).tolist()


def test_everything_is_kept_when_all_units_are() -> None:
    assert UNITS.mask(np.ones(12, np.bool_)).all()


def test_an_axis_that_is_partly_whole_keeps_that_part() -> None:
    layout = Layout.of([("a", (4, 2, 3)), ("b", (2, 4))])
    units = Units(layout, (UnitLayer("a", 0, 2),), {("b", 1): np.array([0, WHOLE, 1, WHOLE])}, {})
    mask = layout.views(units.mask(np.array([False, True])).astype(np.float32))
    assert mask["a"].all() and mask["b"].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]


def test_the_digest_tells_maps_apart() -> None:
    other = Units(LAYOUT, UNITS.layers, {**UNITS.axes, ("a.bias", 0): EIGHT[::-1]}, {})
    assert other.digest != UNITS.digest == Units(LAYOUT, UNITS.layers, dict(UNITS.axes), {}).digest


@given(st.lists(st.booleans(), max_size=40))
def test_bits_come_back(bits: list[bool]) -> None:
    inside = np.array(bits, np.bool_)
    assert unpacked(packed(inside).tobytes(), inside.size, "here").tolist() == bits


@given(st.binary(max_size=6), st.integers(0, 40))
def test_any_bytes_are_a_set_or_refused(raw: bytes, count: int) -> None:
    try:
        inside = unpacked(raw, count, "here")
    except RunError as error:
        assert "here" in str(error)
    else:
        assert inside.shape == (count,) and packed(inside).tobytes() == raw


# all of them


@pytest.mark.parametrize("kind", sorted(SUBMODELS.targets))
def test_both_ends_mean_the_same_part(kind: str) -> None:
    here, there = submodel(kind), submodel(kind)
    chooser, states = here.chooser(), {"x": SiteState_(), "y": SiteState_()}
    for round_ in range(1, 6):
        for site, state in states.items():
            choice = chooser.choose(site, round_, rng(round_))
            down = chooser.down(choice)
            at_site = there.down(travelled(choice), state)
            assert (down is None) == (at_site is None)
            values = values_of(down)
            assert values.tolist() == values_of(at_site).tolist()
            received = embedded(Update(values, values.size), at_site, LAYOUT.size).dense()
            start = there.begin(travelled(choice), received, state, lambda _: 0.9)
            up = chooser.up(choice, there.notice(travelled(choice), start, lambda: MODEL))
            assert (up is None) == (start.sends is None)
            assert values_of(up).tolist() == values_of(start.sends).tolist()
            assert up is None or (up.size == values_of(up).size and increasing(up))
            assert start.trains is None or start.trains is start.sends
        chooser.learn(round_, {"x": 1 / round_, "y": 1.0})


def increasing(part: Part) -> bool:
    return not isinstance(part, Coordinates) or bool((np.diff(part.indices) > 0).all())


def SiteState_() -> SiteState:
    return {}


@pytest.mark.parametrize("kind", sorted(SUBMODELS.targets))
def test_a_chooser_goes_on_exactly_from_its_state(kind: str) -> None:
    def play(interrupt: bool) -> list[Any]:
        chooser, states, found = submodel(kind).chooser(), {"x": SiteState_(), "y": SiteState_()}, []
        for round_ in range(1, 8):
            if interrupt:
                plain, arrays = chooser.state()
                chooser = submodel(kind).chooser()
                kept = {name: np.frombuffer(array.tobytes(), array.dtype) for name, array in arrays.items()}
                chooser.restore(json.loads(json.dumps(plain)), kept)
            for site, state in states.items():
                choice = chooser.choose(site, round_, rng(round_))
                start = submodel(kind).begin(choice, MODEL.copy(), state, lambda _: 0.9)
                notice = submodel(kind).notice(choice, start, lambda: MODEL * rng(len(found)).normal(size=LAYOUT.size))
                up = chooser.up(choice, notice)
                found.append([dict(choice.content), values_of(up).tolist(), notice])
            chooser.learn(round_, {"x": 1 + (-1) ** round_ / (2 + round_), "y": 1 / round_})
        return found

    assert play(True) == play(False)


@pytest.mark.parametrize("kind", ["full", "afd", "seeded_mask", "low_rank"])
def test_a_site_without_a_mask_of_its_own_says_nothing(kind: str) -> None:
    chooser = submodel(kind).chooser()
    choice = chooser.choose("x", 1, rng())
    with pytest.raises(RunError, match="site x, round 1"):
        chooser.up(choice, b"\0" * 10)


def test_values_are_put_where_they_belong() -> None:
    where = Coordinates(np.array([1, 3, 4]))
    assert taken(np.arange(5, dtype=np.float32), where).tolist() == [1, 3, 4]
    assert embedded(Update(np.float32([5, 6, 7]), 3), where, 6).dense().tolist() == [0, 5, 0, 6, 7, 0]
    sparse = Update(np.float32([5, 6]), 3, np.array([0, 2]))
    assert embedded(sparse, where, 6).dense().tolist() == [0, 5, 0, 0, 6, 0]
    assert embedded(sparse, None, 3) is sparse
    for wrong in (Coordinates(np.array([1])), None):
        with pytest.raises(RunError):
            embedded(sparse, wrong, 6)


def test_a_sub_model_must_be_told_of_the_network() -> None:
    with pytest.raises(RunError, match="bind"):
        plugin(SUBMODELS, "seeded_mask").part(Choice("x", 1))
    assert plugin(SUBMODELS, "full").part(Choice("x", 1)) is None


# adaptive federated dropout


def kept_of(chooser: AfdChooser, site: str, round_: int, seed: int | None = None) -> npt.NDArray[np.bool_]:
    choice = chooser.choose(site, round_, rng(round_ if seed is None else seed))
    return chooser.submodel.kept(travelled(choice))


def test_each_layer_loses_its_share_and_never_all() -> None:
    afd: Afd = submodel("afd", drop=0.25)
    assert [afd.dropped(n) for n in (1, 2, 3, 4, 6, 8, 10, 64)] == [0, 0, 1, 1, 1, 2, 2, 16]
    assert [submodel("afd", drop=0.99).dropped(n) for n in (1, 2, 3, 64)] == [0, 1, 2, 63]
    kept = kept_of(afd.chooser(), "x", 1)
    assert kept[:8].sum() == 6 and kept[8:].sum() == 3


def test_the_score_rules_are_exact() -> None:
    chooser: AfdChooser = submodel("afd", max_reuse=9).chooser()
    first = kept_of(chooser, "x", 1)
    chooser.learn(1, {"x": 2.0})
    assert (chooser._courses["x"].scores == 1).all()  # nothing to compare with yet
    second = kept_of(chooser, "x", 2)
    assert (second != first).any()
    chooser.learn(2, {"x": 1.5})
    assert (chooser._courses["x"].scores == np.where(second, 1 + 0.5 / 2.0, 1)).all()
    third = kept_of(chooser, "x", 3)
    assert (third == second).all()
    chooser.learn(3, {"x": 1.2})
    scores = np.where(second, 1 + 0.5 / 2.0 + (1.5 - 1.2) / 1.5, 1)
    assert (chooser._courses["x"].scores == scores).all()
    kept_of(chooser, "x", 4)
    chooser.learn(4, {"x": 1.9})
    assert (chooser._courses["x"].scores == scores).all()
    assert (kept_of(chooser, "x", 5) != second).any()
    chooser.learn(5, {"x": 1.7})  # compared with the round before, not with the best
    assert (chooser._courses["x"].scores > scores).any()


def test_a_rewarded_set_is_used_again_a_bounded_number_of_times() -> None:
    chooser: AfdChooser = submodel("afd", max_reuse=2).chooser()
    sets = []
    for round_ in range(1, 9):
        sets.append(kept_of(chooser, "x", round_).tolist())
        chooser.learn(round_, {"x": 1 / round_})
    # the first has nothing to compare with; then each set and two more rounds of it
    assert sets[1] == sets[2] == sets[3] != sets[4] and sets[4] == sets[5] == sets[6] != sets[7]
    assert sets[0] != sets[1]


def test_multi_has_a_set_for_each_site_and_single_one_for_all() -> None:
    multi, single = submodel("afd").chooser(), submodel("afd", mode="single").chooser()
    assert (kept_of(multi, "x", 1, 1) != kept_of(multi, "y", 1, 2)).any()
    assert (kept_of(single, "x", 1, 1) == kept_of(single, "y", 1, 2)).all()
    kept = kept_of(single, "x", 1)
    single.learn(1, {"x": 2.0, "y": 4.0})
    kept = kept_of(single, "x", 2)
    single.learn(2, {"x": 0.5, "y": 1.0, "z": float("nan")})
    scores = single.state()[1]["scores."]
    assert (scores == np.where(kept, 1 + (3.0 - 0.75) / 3.0, 1)).all()


def test_asked_again_the_choice_is_the_same() -> None:
    chooser = submodel("afd").chooser()
    assert chooser.choose("x", 1, rng(1)) == chooser.choose("x", 1, rng(2))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_teaches_nothing(loss: float) -> None:
    course = _Course(np.ones(2), np.array([True, False]), loss=1.0, recorded=True)
    course.learn(loss)
    assert (course.scores == 1).all() and course.loss == 1.0 and not course.recorded


def test_a_loss_of_another_round_teaches_nothing() -> None:
    chooser = submodel("afd").chooser()
    for round_ in (1, 2):
        kept_of(chooser, "x", round_)
        chooser.learn(7, {"x": 1 / round_})
    assert (chooser.state()[1]["scores.x"] == 1).all()


def drawn_share(frozen: bool) -> float:
    """How often a filter of score 5 is in, among seven of score 1, where six of eight are drawn."""
    chooser: AfdChooser = submodel("afd", drop=0.75).chooser()
    scores = np.ones(12)
    scores[3] = 1 if frozen else 5
    return float(np.mean([chooser._draw(scores, rng(seed))[3] for seed in range(2000)]))


def test_filters_are_drawn_by_their_scores_without_replacement() -> None:
    # two of eight: 5/12 first, or one of the seven and then 5/11; uniform it would be 2/8
    expected = 5 / 12 + 7 / 12 * 5 / 11
    assert abs(drawn_share(frozen=False) - expected) < 0.04
    assert not abs(drawn_share(frozen=True) - expected) < 0.04


class Frozen(AfdChooser):
    """The fake: random federated dropout."""

    def learn(self, round_: int, losses: Any) -> None:
        pass


def preference(chooser: AfdChooser) -> float:
    """How much oftener than the other filters of its layer one is in without which the loss is twice as high."""
    found, noise = [], rng(5)
    for round_ in range(1, 401):
        kept = kept_of(chooser, "x", round_)
        found.append(kept[:8])
        chooser.learn(round_, {"x": (1.0 if kept[3] else 2.0) * noise.uniform(0.9, 1.1)})
    share = np.mean(found, axis=0)
    return float(share[3] - np.delete(share, 3).mean())


def test_filters_that_matter_are_kept_oftener() -> None:
    assert preference(submodel("afd", drop=0.5).chooser()) > 0.25
    assert not preference(Frozen(submodel("afd", drop=0.5))) > 0.1


def test_a_network_without_filters_to_spare_is_refused() -> None:
    with pytest.raises(StudyError, match=r"update\.submodel"):
        submodel("afd", drop=0.05).chooser().choose("x", 1, rng())


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"kept": 3},
        {"kept": "?"},
        {"kept": "äöü"},
        {"kept": ""},
        {"kept": base64.b64encode(b"\xff\xf0").decode()},
        {"kept": base64.b64encode(b"\xfc\xef").decode()},
        {"kept": base64.b64encode(b"\xfc\xe0\x00").decode()},
        {"units": "0" * 16},
        {"units": None},
    ],
)
def test_what_is_no_choice_is_refused(wrong: dict[str, Any]) -> None:
    afd = submodel("afd")
    right = dict(afd.chooser().choose("x", 3, rng()).content)
    content = (right | wrong) if wrong else {"units": right["units"]}
    with pytest.raises(RunError, match="site x, round 3"):
        afd.part(Choice("x", 3, content))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=3)


@pytest.mark.parametrize("kind", ["afd", "lottery"])
@given(st.dictionaries(st.sampled_from(["units", "kept", "mask"]), JSON | st.just(UNITS.digest[:16])))
def test_any_content_is_a_choice_or_refused(kind: str, content: dict[str, Any]) -> None:
    try:
        found = submodel(kind).down(Choice("x", 1, content), {})
    except RunError as error:
        assert "site x, round 1" in str(error)
    else:
        assert found is None or found.indices.max() < LAYOUT.size


# seeded masks

LARGE = Layout.of([("w", (300, 700))])


def mask(site: str = "x", round_: int = 1, **settings: Any) -> npt.NDArray[np.bool_]:
    inside = np.zeros(LARGE.size, np.bool_)
    inside[submodel("seeded_mask", layout=LARGE, **settings).part(Choice(site, round_)).indices] = True
    return inside


def test_a_mask_has_its_share_and_depends_on_seed_round_and_site() -> None:
    masks = [mask(), mask(site="y"), mask(round_=2), mask(seed=1)]
    for inside in masks:
        assert abs(inside.mean() - 0.1) < 0.005
    for number, inside in enumerate(masks):
        for other in masks[:number]:
            # independent masks share a hundredth
            assert abs((inside & other).mean() - 0.01) < 0.002
    assert (mask() == mask()).all()
    assert mask(share=1.0).all()


def test_a_shared_mask_is_the_same_at_all_sites_of_a_round() -> None:
    assert (mask(shared=True) == mask(site="y", shared=True)).all()
    assert (mask(shared=True) != mask(round_=2, shared=True)).any()


def test_over_the_rounds_every_coordinate_is_sent() -> None:
    assert np.any([mask(round_=round_, share=0.3) for round_ in range(1, 41)], axis=0).all()
    assert not np.any([mask(seed=round_ % 2, share=0.3) for round_ in range(1, 41)], axis=0).all()


def test_the_stream_of_masks_is_fixed_for_good() -> None:
    # both ends draw by themselves: another stream in a later version would misplace every value
    found = submodel("seeded_mask", seed=7, share=0.2).part(Choice("hospital-a", 3)).indices
    assert found.tolist() == [
        0,
        7,
        8,
        12,
        15,
        19,
        27,
        28,
        34,
        35,
        36,
        38,
        42,
        47,
        50,
        52,
        63,
        64,
        68,
        82,
        83,
        90,
        91,
        92,
        95,
    ]


def test_what_trains_is_what_the_study_says() -> None:
    for trains in (True, False):
        there = submodel("seeded_mask", trains=trains)
        start = there.begin(Choice("x", 1), MODEL, {}, unmeasured)
        assert start.values is MODEL and start.sends is not None
        assert (start.trains is not None) == trains
        assert there.down(Choice("x", 1), {}) is None is there.chooser().down(Choice("x", 1))


# LotteryFL


def pruning(
    metric: float = 0.9, rounds: int = 20, **config: Any
) -> tuple[Lottery, LotteryChooser, SiteState, list[Any]]:
    lottery = submodel("lottery", **config)
    chooser, state, starts = lottery.chooser(), SiteState_(), []
    for round_ in range(1, rounds + 1):
        choice = chooser.choose("x", round_, rng())
        received = np.where(chooser_mask(lottery.down(choice, state)), MODEL, np.float32(0))
        start = lottery.begin(choice, received, state, lambda _: metric)
        assert (
            np.flatnonzero(chooser_mask(chooser.up(choice, start.notice))) == np.flatnonzero(chooser_mask(start.sends))
        ).all()
        starts.append(start)
    return lottery, chooser, state, starts


def chooser_mask(part: Any) -> npt.NDArray[np.bool_]:
    inside = np.zeros(LAYOUT.size, np.bool_)
    inside[... if part is None else part.indices] = True
    return inside


def test_the_smallest_weights_go_and_the_rest_begins_anew() -> None:
    lottery, _, _, starts = pruning(rate=0.2, target=0.3, rounds=1)
    weights = np.flatnonzero(lottery.prunable)
    gone = np.setdiff1d(np.arange(LAYOUT.size), starts[0].sends.indices)
    assert gone.size == int(0.2 * weights.size) and np.isin(gone, weights).all()
    left = np.intersect1d(weights, starts[0].sends.indices)
    assert np.abs(MODEL[gone]).max() < np.abs(MODEL[left]).min()
    assert (starts[0].values == np.where(chooser_mask(starts[0].sends), INITIAL, 0)).all()
    assert starts[0].trains is starts[0].sends


def test_pruning_ends_at_the_target_and_the_mask_travels_when_it_changes() -> None:
    lottery, _, state, starts = pruning(rate=0.3, target=0.4)
    weights = np.flatnonzero(lottery.prunable)
    kept = [np.isin(weights, start.sends.indices).mean() for start in starts]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == np.ceil(0.4 * weights.size) / weights.size
    changed = [len(set(pair)) > 1 for pair in zip([1.0, *kept], kept, strict=False)]
    assert [bool(start.notice) for start in starts] == changed and not changed[-1]
    assert all(len(start.notice) in (0, -(-LAYOUT.size // 8)) for start in starts)
    assert (starts[-1].values == np.where(chooser_mask(starts[-1].sends), MODEL, 0)).all()
    assert (lottery.personal(MODEL, state) == starts[-1].values).all()


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), min_size=1, max_size=20), st.data())
def test_the_smallest_are_found_also_among_equals(values: list[float], data: st.DataObject) -> None:
    vector, kept = (
        np.float32(values),
        np.array(data.draw(st.lists(st.booleans(), min_size=20, max_size=20)))[: len(values)],
    )
    kept[0] = True
    count = data.draw(st.integers(1, int(kept.sum())))
    found = _smallest(vector, kept, count)
    assert found.sum() == count and not (found & ~kept).any()
    assert np.abs(vector[found]).max() <= np.abs(vector[kept & ~found]).min(initial=np.inf)


def test_biases_are_never_pruned() -> None:
    _, _, _, starts = pruning(rate=0.5, target=0.1)
    views = LAYOUT.views(chooser_mask(starts[-1].sends).astype(np.float32))
    assert views["a.bias"].all() and views["b.bias"].all() and not views["a.weight"].all()


def test_a_site_below_the_threshold_keeps_everything() -> None:
    lottery, _, state, starts = pruning(metric=0.5, threshold=0.5)
    assert all(start.sends is None and start.notice == b"" and MASK not in state for start in starts)
    assert (lottery.personal(MODEL, state) == MODEL).all()


def test_a_site_that_cannot_measure_is_told_so() -> None:
    with pytest.raises(RunError, match="validation"):
        pruning(metric=float("nan"))


def test_a_reply_that_was_lost_is_made_good() -> None:
    lottery = submodel("lottery")
    chooser, state = lottery.chooser(), SiteState_()
    for round_ in (1, 2, 3):
        choice = chooser.choose("x", round_, rng())
        start = lottery.begin(choice, MODEL, state, lambda _: 0.9)
        if round_ == 1:
            chooser.up(choice, start.notice)
        assert start.notice
    assert KNOWN in state
    choice = chooser.choose("x", 4, rng())
    down, here = chooser.down(choice), lottery.down(choice, state)
    assert down is not None and here is not None and (down.indices == here.indices).all()
    start = lottery.begin(choice, MODEL, state, lambda _: 0.1)
    assert np.isin(start.sends.indices, down.indices).all() and start.sends.size < down.size and start.notice
    assert (chooser.up(choice, start.notice).indices == start.sends.indices).all()
    choice = chooser.choose("x", 5, rng())
    assert lottery.begin(choice, MODEL, state, lambda _: 0.1).notice == b""


def test_a_site_without_its_mask_is_refused() -> None:
    lottery, chooser, _, _ = pruning(rounds=2)
    choice = chooser.choose("x", 3, rng())
    with pytest.raises(RunError, match="same mask"):
        lottery.down(choice, {})


def refused_notices(chooser: LotteryChooser, choice: Choice) -> list[bytes]:
    size = LAYOUT.size
    before = chooser_mask(chooser.down(choice))
    more = ~before | (np.arange(size) < 5)
    return [
        b"\0",
        b"\0" * -(-size // 8),
        packed(more).tobytes(),
        b"\xff" * -(-size // 8),
        packed(before).tobytes() + b"\0",
    ]


def test_a_mask_that_is_none_is_refused_and_changes_nothing() -> None:
    _, chooser, _, _ = pruning(rounds=2)
    choice = chooser.choose("x", 3, rng())
    before = chooser.state()[1]["mask.x"].tobytes()
    for notice in refused_notices(chooser, choice):
        with pytest.raises(RunError, match="site x, round 3"):
            chooser.up(choice, notice)
    assert chooser.state()[1]["mask.x"].tobytes() == before


@settings(max_examples=50)
@given(st.binary(max_size=20))
def test_any_notice_is_a_mask_or_refused(notice: bytes) -> None:
    chooser = submodel("lottery").chooser()
    choice = chooser.choose("x", 1, rng())
    try:
        found = chooser.up(choice, notice)
    except RunError as error:
        assert "site x, round 1" in str(error)
    else:
        assert found is None or (0 < found.size <= LAYOUT.size and found.indices.max() < LAYOUT.size)


# the last aggregate


def test_the_places_of_the_last_aggregate_are_the_same_for_all_and_hold_what_moved_most() -> None:
    made = submodel("last_aggregate", share=0.25, explore=0.5)
    chooser, moved = made.chooser(), np.zeros(LAYOUT.size, np.float32)
    first = made.part(travelled(chooser.choose("x", 1, rng()))).indices
    assert first.size == made.count == LAYOUT.size // 4
    moved[[3, 50, 7]] = 5, -9, 1
    chooser.moved(moved)
    here, there = (chooser.choose(site, 2, rng(seed)) for site, seed in (("x", 1), ("y", 2)))
    places = made.part(travelled(here)).indices
    assert places.tolist() == made.part(there).indices.tolist() != first.tolist()
    assert {3, 50, 7} <= set(places.tolist())
    again = submodel("last_aggregate", share=0.25, explore=0.5).chooser()
    again.restore(*chooser.state())
    assert again.choose("z", 2, rng()).content == here.content


def test_with_a_memory_every_coordinate_is_sent_in_time() -> None:
    made = submodel("last_aggregate", share=0.1, explore=0.25)
    chooser, sent = made.chooser(), set[int]()
    for round_ in range(1, 400):
        places = made.part(chooser.choose("x", round_, rng())).indices
        sent |= set(places.tolist())
        change = np.zeros(LAYOUT.size, np.float32)
        change[places] = 1
        chooser.moved(change)
    assert len(sent) == LAYOUT.size


@pytest.mark.parametrize("content", [{}, {"places": 3}, {"places": "%"}, {"places": "AAAA"}])
def test_places_that_are_none_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(RunError):
        submodel("last_aggregate", share=0.25).part(Choice("x", 1, content))


@pytest.mark.parametrize("mode", ["multi", "single"])
def test_losses_that_are_none_move_no_scores(mode: str) -> None:
    chooser = submodel("afd", drop=0.5, mode=mode).chooser()
    for round_, loss in enumerate((1.0, -1e308, 1.7e308, float("nan")), 1):
        for site in ("x", "y"):
            chooser.choose(site, round_, rng())
        chooser.learn(round_, {"x": loss, "y": loss})
    assert all(course.scores.tolist() == [1.0] * UNITS.count for course in chooser._courses.values())
