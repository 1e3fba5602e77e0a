"""Changes in place of the model on the way down: all ends have the same vector, whatever was missed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError
from medfl.update.base import Payload
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.down import CHANGES, WHOLE, Changes, receive
from medfl.update.memories.base import SiteState
from medfl.update.wire import parts, unpack

SIZE = 2000


def codec(kind: str = "topk", **settings: Any) -> Codec:
    made: Codec = plugin(CODECS, kind, **({"density": 0.05} | settings if kind != "fp32" else {}))
    return made


def travelled(payload: Payload) -> Payload:
    header, buffers = unpack(b"".join(parts({"payload": payload.header()}, payload.buffers)))
    return Payload.of(header["payload"], buffers)


def length(payload: Payload) -> int:
    return sum(len(buffer) for buffer in payload.buffers)


def walk(
    rounds: int, away: set[tuple[str, int]], kind: str = "topk"
) -> tuple[Changes, dict[str, SiteState], list[str]]:
    rng = np.random.default_rng(0)
    changes, there, model = Changes(codec(kind)), codec(kind), rng.normal(size=SIZE).astype(np.float32)
    states: dict[str, SiteState] = {"a": {}, "b": {}}
    how = []
    for round_ in range(1, rounds + 1):
        known = changes.advance(model, round_, rng)
        for site, state in states.items():
            if (site, round_) in away:
                continue
            payload = travelled(changes.payload(site))
            how.append(payload.codec)
            assert receive(payload, there, SIZE, state).tobytes() == known.tobytes()
            changes.heard(site, True)
        model = model + rng.normal(size=SIZE).astype(np.float32) * 0.1
    return changes, states, how


def test_every_site_has_the_same_vector() -> None:
    _, _, how = walk(12, {("b", 4), ("b", 5), ("b", 9)})
    assert how[:2] == [WHOLE, WHOLE] and set(how[2:]) == {CHANGES}


def test_changes_are_far_smaller_and_what_was_missed_is_made_up() -> None:
    changes, _, _ = walk(6, {("b", 5), ("b", 6)})
    one, two = changes.payload("a"), changes.payload("b")
    assert length(one) == 0, "it has this version"
    assert 0 < length(two) < 0.2 * 4 * SIZE


def test_who_was_away_for_long_gets_the_whole() -> None:
    changes, states, how = walk(60, {("b", round_) for round_ in range(2, 60)})
    assert how[-1] == WHOLE and len(states) == 2
    assert length(changes.payload("a")) == 0


def test_nothing_is_lost() -> None:
    """What is left out of one change is in the next: with a still model `known` arrives at it."""
    rng = np.random.default_rng(1)
    changes, model = Changes(codec()), np.zeros(SIZE, np.float32)
    changes.advance(model, 1, rng)
    model = rng.normal(size=SIZE).astype(np.float32)
    for round_ in range(2, 26):
        known = changes.advance(model, round_, rng)
    # half precision of what is left each time
    np.testing.assert_allclose(known, model, atol=1e-3)


def test_a_site_without_the_base_says_so_and_gets_the_whole_next() -> None:
    changes, _, _ = walk(3, {("b", 3)})
    with pytest.raises(RunError, match="came to a site that has round None"):
        receive(changes.payload("b"), codec(), SIZE, {})
    changes.heard("b", False)
    assert changes.payload("b").codec == WHOLE


def test_a_restored_coordinator_has_the_same_vector() -> None:
    changes, _, _ = walk(5, set())
    again = Changes(codec())
    again.restore(*changes.state())
    model = np.ones(SIZE, np.float32)
    for each in (changes, again):
        each.advance(model, 6, np.random.default_rng(3))
    assert changes.known is not None and again.known is not None
    assert changes.known.tobytes() == again.known.tobytes()
    assert again.payload("a").codec == WHOLE


@given(
    st.dictionaries(st.sampled_from(["version", "since", "parts"]), st.none() | st.integers(-2, 9) | st.text()),
    st.lists(st.binary(max_size=40), max_size=3),
    st.sampled_from([WHOLE, CHANGES, "topk"]),
)
def test_anything_else_is_refused(meta: dict[str, Any], buffers: list[bytes], kind: str) -> None:
    state: SiteState = {"down.known": np.zeros(5, np.float32), "down.version": np.array([3])}
    try:
        found = receive(Payload(kind, 5, tuple(buffers), meta), codec(), 5, state)
    except RunError as error:
        assert str(error)
    else:
        assert found.shape == (5,)
