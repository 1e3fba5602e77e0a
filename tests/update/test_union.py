"""SAFER's supports (algorithms' test t11): how much of the sum each one carries, what the coordinator takes from a
peer, and what a site can tell of the others."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import configured, pipeline, plugin

from medfl.errors import RunError, StudyError
from medfl.update.base import Upload
from medfl.update.codecs.indices import most_bytes, pack_indices
from medfl.update.codecs.selection import largest
from medfl.update.parts import embedded
from medfl.update.submodels.base import SUBMODELS, Choice, Setup, Start, SubModel
from medfl.update.submodels.places import MOST_BYTES
from medfl.update.submodels.union import Union
from medfl.update.submodels.units import Units
from medfl.update.vector import FloatVector, Layout

SITES = ("a", "b", "c", "d", "e")
SIZE, K = 20_000, 200
RNG = np.random.default_rng(0)


def submodel(kind: str = "union", size: int = SIZE, **config: Any) -> Any:
    made: SubModel = plugin(SUBMODELS, kind, **config)
    layout = Layout.of([("weight", (size,))])
    made.bind(Setup(layout, 0, lambda: Units(layout, (), {}, {}), lambda: np.zeros(size, np.float32)))
    return made


def updates(seed: int = 0) -> list[FloatVector]:
    """Test t11: a sparse part that the sites have in common (2 %, scale 5) and noise of .3 at each."""
    rng = np.random.default_rng(seed)
    common = np.zeros(SIZE)
    common[rng.choice(SIZE, SIZE // 50, replace=False)] = rng.normal(0, 5, SIZE // 50)
    return [(common + rng.normal(0, 0.3, SIZE)).astype(np.float32) for _ in SITES]


def asks(made: Union, update: FloatVector) -> bytes:
    return made.notice(Choice("", 1), Start(update), lambda: update)


def round_of(chooser: Any, number: int, notices: Mapping[str, bytes], admitted: Sequence[str] = SITES) -> None:
    for site, notice in notices.items():
        chooser.up(chooser.choose(site, number, RNG), notice)
    chooser.learn(number, dict.fromkeys(admitted, 1.0))


def united(made: Union, found: Sequence[FloatVector]) -> npt.NDArray[np.int64]:
    """The places of the second round."""
    chooser = made.chooser()
    round_of(chooser, 1, {site: asks(made, update) for site, update in zip(SITES, found, strict=True)})
    return made.part(chooser.choose("a", 2, RNG)).indices


def energy(places: npt.NDArray[np.int64], found: Sequence[FloatVector]) -> float:
    """The share of the mean update's squared length at these places."""
    mean = np.mean(found, axis=0, dtype=np.float64)
    return float((mean[places] ** 2).sum() / (mean**2).sum())


class First(Union):
    """The fake: asks for the first k coordinates."""

    def notice(self, choice: Choice, start: Start, ahead: Callable[[], FloatVector]) -> bytes:
        return pack_indices(np.arange(self.count))


def test_the_union_carries_the_most_energy() -> None:
    found, made = updates(), submodel()
    union = united(made, found)
    aggregate = submodel("last_aggregate", share=0.01, explore=1 / K)
    chooser = aggregate.chooser()
    chooser.moved(np.mean(found, axis=0))
    last = energy(aggregate.part(chooser.choose("a", 2, RNG)).indices, found)
    seeded = energy(submodel("seeded_mask", share=0.01, shared=True).part(Choice("a", 2)).indices, found)
    assert K < union.size < 1.2 * K, "sites whose updates are alike ask for nearly the same"
    assert energy(union, found) == pytest.approx(0.92, abs=0.02)
    assert last == pytest.approx(0.90, abs=0.02) and energy(union, found) > last
    assert seeded < 0.1
    wrong = First(configured(SUBMODELS, "union"))
    wrong.bind(made.setup)
    assert not energy(united(wrong, found), found) > 0.1


def test_asking_and_sending_cost_what_the_test_measured() -> None:
    """800 bytes for the places and 2,580 / 3 for a share of the values; places travel packed here."""
    found, made = updates(), submodel()
    asked, sent = max(len(asks(made, update)) for update in found), 4 * united(made, found).size
    assert asked < 2 * K and sent == pytest.approx(2580 / 3, rel=0.1)


@dataclass
class Site:
    """Makes the same change in every round, with error feedback. forgets: the fake that asks by the change alone."""

    change: FloatVector
    forgets: bool = False
    state: dict[str, Any] = field(default_factory=dict)

    def play(self, made: Union, choice: Choice) -> tuple[FloatVector, bytes]:
        start = made.begin(choice, np.zeros_like(self.change), self.state, lambda _: 0.0)
        way = pipeline(memory="error_feedback")
        upload = Upload(choice.site, choice.round, 0, start.values, start.sends, start.trains)
        payload = way.run(self.change, upload, self.state, RNG)
        assert payload is not None and start.sends is not None
        update = embedded(way.codec.decode(payload, start.sends.size), start.sends, self.change.size)
        kept = dict(self.state)
        ahead = {} if self.forgets else self.state
        notice = made.notice(choice, start, lambda: way.ahead(self.change, upload, ahead))
        assert all(self.state[name] is kept[name] for name in kept), "what is asked changes no memory"
        return update.dense(), notice


def never_sent(forgets: bool) -> int:
    made = submodel(size=300, share=0.05, limit=0.2)
    sites = {
        name: Site(np.random.default_rng(n).lognormal(0, 1, 300).astype(np.float32), forgets)
        for n, name in enumerate(SITES)
    }
    chooser, total = made.chooser(), np.zeros(300)
    for round_ in range(1, 60):
        notices = {}
        for name, site in sites.items():
            update, notices[name] = site.play(made, chooser.choose(name, round_, RNG))
            total += update
        round_of(chooser, round_, notices)
    return int((total == 0).sum())


def test_what_waits_at_a_site_is_asked_for_in_time() -> None:
    assert never_sent(forgets=False) == 0
    assert never_sent(forgets=True) > 0


def test_a_round_ahead_costs_nothing_but_a_round() -> None:
    """What sites ask for is what they then have to send, where their change stays the same."""
    made = submodel(size=300, share=0.05, limit=1)
    sites = {name: Site(np.random.default_rng(n).normal(size=300).astype(np.float32)) for n, name in enumerate(SITES)}
    chooser = made.chooser()
    for round_ in range(1, 6):
        wanted = [site.state.get("memory.residual", 0) + site.change for site in sites.values()]
        choice = chooser.choose("a", round_, RNG)
        places = made.part(choice).indices
        own = np.unique(np.concatenate([largest(each, made.count) for each in wanted]))
        assert round_ == 1 or places.tolist() == own.tolist()
        notices = {name: site.play(made, Choice(name, round_, choice.content))[1] for name, site in sites.items()}
        round_of(chooser, round_, notices)


# the coordinator's end


def content(choice: Choice) -> Mapping[str, Any]:
    return dict(json.loads(json.dumps(dict(choice.content))))


def test_the_places_are_the_same_for_all_and_the_first_are_drawn() -> None:
    made = submodel()
    chooser = made.chooser()
    first = [chooser.choose(site, 1, np.random.default_rng(n)) for n, site in enumerate(SITES)]
    assert all(content(choice) == content(first[0]) for choice in first)
    assert made.part(first[0]).indices.size == K
    assert content(made.chooser().choose("e", 1, RNG)) == content(first[0]), "from the study's seed alone"
    assert content(made.chooser().choose("e", 2, RNG)) != content(first[0])


def test_only_admitted_sites_are_asked_and_a_round_without_any_draws_anew() -> None:
    made, found = submodel(), updates()
    own = pack_indices(np.arange(K))
    notices = {site: asks(made, update) for site, update in zip(SITES, found, strict=True)}
    chooser = made.chooser()
    round_of(chooser, 1, notices | {"c": own}, admitted=("a", "b"))
    places = made.part(chooser.choose("a", 2, RNG)).indices
    expected = np.unique(np.concatenate([largest(found[n], K) for n in (0, 1)]))
    assert places.tolist() == expected.tolist()
    round_of(chooser, 2, notices, admitted=())
    assert content(chooser.choose("a", 3, RNG)) == content(made.chooser().choose("a", 3, RNG))


def test_a_hostile_site_adds_no_more_than_its_own_places() -> None:
    made, found = submodel(), updates()
    honest = united(made, [*found[:4], found[0]])
    attacked = found[0].copy()
    attacked[:K] = np.inf
    assert united(made, [*found[:4], attacked]).size <= honest.size + K
    # where there is no room, what one site alone asks for goes first
    tight = submodel(limit=0.01)
    places = united(tight, [found[0], found[0], found[0], found[0], attacked])
    assert places.tolist() == largest(found[0], K).tolist()


def test_a_union_is_never_above_its_limit_and_of_equals_some_are_drawn() -> None:
    made = submodel(limit=0.02)
    apart = [np.roll(np.repeat(np.float32([1, 0]), [K, SIZE - K]), 1000 * n) for n in range(5)]
    places = united(made, apart)
    assert places.size == made.most == 2 * K and np.unique(places // 1000).tolist() == [0, 1, 2, 3, 4]
    assert united(submodel(), apart).size == 5 * K


@pytest.mark.parametrize(
    "notice",
    [
        b"",
        b"x",
        pack_indices(np.arange(K - 1)),
        pack_indices(np.arange(K + 1)),
        pack_indices(np.arange(SIZE - K + 1, SIZE + 1)),
        pack_indices(np.arange(K)) + b"x",
        zstandard.compress(bytes(1 << 26)),
    ],
    ids=["none", "text", "fewer", "more", "outside", "extra", "bomb"],
)
def test_what_a_site_may_not_ask_for_is_refused_and_changes_nothing(notice: bytes) -> None:
    made, found = submodel(), updates()
    chooser = made.chooser()
    good = asks(made, found[0])
    with pytest.raises(RunError, match="site b, round 1: does not ask for 200 of 20000 coordinates"):
        chooser.up(chooser.choose("b", 1, RNG), notice)
    round_of(chooser, 1, {"a": good})
    assert made.part(chooser.choose("a", 2, RNG)).indices.tolist() == largest(found[0], K).tolist()


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_notice_is_a_support_or_refused(notice: bytes) -> None:
    made = submodel(size=100, share=0.05)
    chooser = made.chooser()
    choice = chooser.choose("x", 1, RNG)
    try:
        chooser.up(choice, notice)
    except RunError as error:
        assert "site x, round 1" in str(error)
    else:
        round_of(chooser, 1, {}, admitted=("x",))
        places = made.part(chooser.choose("x", 2, RNG)).indices
        assert places.size == made.count and (np.diff(places) > 0).all() and places.max() < 100


@pytest.mark.parametrize(
    "change",
    [{"count": 0}, {"count": 2001}, {"count": True}, {"count": None}, {"count": 199}, {"places": 3}, {"places": "%"}],
    ids=str,
)
def test_an_order_that_asks_for_more_than_the_study_is_refused(change: dict[str, Any]) -> None:
    made = submodel()
    fair = content(made.chooser().choose("a", 1, RNG))
    assert made.part(Choice("a", 1, fair)).indices.size == K
    with pytest.raises(RunError):
        made.part(Choice("a", 1, {**fair, **change}))


def test_a_union_that_might_not_fit_an_order_is_refused_before_the_first() -> None:
    size = 30_000_000
    with pytest.raises(StudyError, match="lets a round name 3000000 places"):
        submodel(size=size).chooser().choose("a", 1, RNG)
    assert submodel(size=size, limit=0.03).chooser().choose("a", 1, RNG).content["count"] == size // 100
    with pytest.raises(ValidationError, match="at least share"):
        configured(SUBMODELS, "union", share=0.2, limit=0.1)


@pytest.mark.parametrize("gap", [1, 255, 256, 257, 40_000, 65_535, 65_536, 200_000])
def test_no_places_take_more_bytes_than_said(gap: int) -> None:
    rng = np.random.default_rng(gap)
    places = np.cumsum(rng.integers(1, gap + 1, 5000))
    assert len(pack_indices(places)) <= most_bytes(places.size, int(places[-1]) + 1)
    assert most_bytes(2000, SIZE) < MOST_BYTES


def test_what_it_keeps_between_rounds_is_the_union_and_nobodys_name() -> None:
    made, found = submodel(), updates()
    chooser = made.chooser()
    round_of(chooser, 1, {site: asks(made, update) for site, update in zip(SITES, found, strict=True)})
    plain, arrays = chooser.state()
    assert not plain and list(arrays) == ["union"] and not chooser._proposals
    again = made.chooser()
    again.restore(plain, arrays)
    assert content(again.choose("a", 2, RNG)) == content(chooser.choose("a", 2, RNG))


def view(made: Union, found: Mapping[str, FloatVector]) -> Mapping[str, Any]:
    """All that a site is told."""
    chooser = made.chooser()
    round_of(chooser, 1, {site: asks(made, update) for site, update in found.items()})
    return content(chooser.choose("a", 2, RNG))


def test_a_site_cannot_tell_which_of_the_others_asked() -> None:
    """What one of three sees is the same when the other two change places; of two it sees the other's by subtraction,
    and that is all that is claimed."""
    made = submodel()
    a, b, c = (np.random.default_rng(n).normal(size=SIZE).astype(np.float32) for n in range(3))
    assert view(made, {"a": a, "b": b, "c": c}) == view(made, {"a": a, "b": c, "c": b})
    told = made.part(Choice("a", 2, view(made, {"a": a, "b": b}))).indices
    assert set(told) - set(largest(a, K)) == set(largest(b, K)) - set(largest(a, K))

    def ordered(found: Mapping[str, FloatVector]) -> list[int]:
        """The fake: the sites' places one after the other."""
        return [place for update in found.values() for place in largest(update, K).tolist()]

    assert ordered({"a": a, "b": b, "c": c}) != ordered({"a": a, "b": c, "c": b})


def test_only_this_sub_model_tells_places() -> None:
    assert [kind for kind in SUBMODELS.targets if "tells-places" in SUBMODELS.default(kind).traits()] == ["union"]
