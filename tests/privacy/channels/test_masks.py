"""Masks: the sum and nothing but the sum, bit for bit, whoever drops out and whatever the coordinator asks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from toys.secure_sum import LIMIT, Federation, grid, words

from medfl.errors import RunError
from medfl.privacy.channels.base import CoordinatorEnd
from medfl.privacy.channels.masks.coordinator import MasksCoordinator
from medfl.update.base import Payload


def uniform(values: npt.NDArray[np.uint32]) -> bool:
    """Whether the bytes of the words could be uniform (chi-square, one in 10^6 false alarms)."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255))


@settings(max_examples=30)
@given(st.data())
def test_sum_is_the_plain_sum_for_any_survivors(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 8))
    threshold = data.draw(st.sampled_from([0.51, 0.67, 1.0]))
    federation = Federation(count, threshold, size=data.draw(st.sampled_from([0, 1, 7, 64])))
    needed = max(3, int(np.ceil(threshold * count - 1e-9)))
    lost = data.draw(st.permutations(federation.names))
    kept = data.draw(st.integers(needed, count))
    stages = ("masks.keys", "masks.shares", "masks.peers", "seal")
    when = {name: data.draw(st.sampled_from(stages)) for name in lost[kept:]}
    federation.lose({stage: [name for name in when if when[name] == stage] for stage in stages})
    end = federation.coordinator()
    ready = end.prepare(federation.exchange)
    assert set(ready) == set(lost[:kept]) | {name for name in when if when[name] == "seal"}
    updates = {name: federation.updates()[name] for name in data.draw(st.permutations(lost[:kept]))}
    for name, payload in federation.sealed(updates).items():
        end.add(name, payload)
    total = end.open(federation.exchange)
    assert total.dtype == np.int64
    np.testing.assert_array_equal(total, sum(values.astype(np.int64) for values in updates.values()))


def test_noise_is_added_and_the_limit_holds() -> None:
    federation = Federation(3)
    end, plain = federation.collected("abc")
    noise = np.arange(federation.size, dtype=np.int64) - 20
    np.testing.assert_array_equal(end.open(federation.exchange, noise), plain + noise)
    end, plain = federation.collected("abc", round_=2)
    with pytest.raises(RunError, match="round 2: a coordinate of the sum is"):
        end.open(federation.exchange, noise + LIMIT)
    end, _ = federation.collected("abc", round_=3)
    with pytest.raises(RunError, match="noise of 1 values"):
        end.open(federation.exchange, np.zeros(1, np.int64))


def test_a_payload_is_four_bytes_a_value_and_looks_random() -> None:
    federation = Federation(4, size=100_000)
    federation.coordinator().prepare(federation.exchange)
    zeros = np.zeros(federation.size, np.int32)
    payloads = federation.sealed(dict.fromkeys(federation.names, zeros))
    assert all(payload.codec == "masks" and len(payload.buffers[0]) == 4 * zeros.size for payload in payloads.values())
    masks = [words(payload) for payload in payloads.values()]
    assert all(uniform(mask) for mask in masks)
    assert all(uniform(one - other) for i, one in enumerate(masks) for other in masks[:i])
    # no word repeats more often than chance has it: a mask from a small state or a short cycle would
    assert len(np.unique(np.concatenate(masks))) > 4 * zeros.size * (1 - 1e-4)
    # the same assertions fail for no mask, for one that two sites share and for one that repeats
    assert not uniform(words(grid(federation.updates()["a"])))
    assert not uniform(masks[0] - masks[0].copy())
    assert len(np.unique(np.tile(masks[0][: 1 << 15], 3))) < 3 * (1 << 15) * (1 - 1e-4)


def test_masks_are_fresh_every_round_and_run() -> None:
    zeros, seen = np.zeros(64, np.int32), set()
    for federation in (Federation(3, size=64), Federation(3, size=64)):
        for round_, attempt in ((1, 1), (1, 2), (2, 1)):
            federation.coordinator(round_, attempt).prepare(federation.exchange)
            payloads = federation.sealed(dict.fromkeys(federation.names, zeros), round_)
            seen.update(bytes(payload.buffers[0]) for payload in payloads.values())
    assert len(seen) == 18


def test_masks_that_do_not_cancel_are_found_out() -> None:
    """The fake: a coordinator that forgets to take off the masks of pairs with the site that dropped out."""
    federation = Federation(4)
    end, _ = federation.collected("abc")
    assert isinstance(end, MasksCoordinator)
    rebuild = end._rebuild
    end._rebuild = lambda *args: (rebuild(*args)[0], {})  # type: ignore[method-assign]
    with pytest.raises(RunError, match="in size, at most 8000000 is possible"):
        end.open(federation.exchange)


def test_too_few_sites() -> None:
    with pytest.raises(RunError, match="round 7: 2 of 2 sites are in the cohort, 3 are needed"):
        Federation(2).coordinator(7).prepare(Federation(2).exchange)
    for stage in ("masks.keys", "masks.shares", "masks.peers"):
        federation = Federation(4)
        federation.lose({stage: "cd"})
        with pytest.raises(RunError, match=r"round 1: 2 of 4 sites .* 3 are needed"):
            federation.coordinator().prepare(federation.exchange)
    federation = Federation(4)
    end, _ = federation.collected("ab")
    with pytest.raises(RunError, match="2 of 4 sites sent an update"):
        end.open(federation.exchange)
    for stage in ("masks.survivors", "masks.open"):
        federation = Federation(4)
        end, _ = federation.collected("abcd")
        federation.lose({stage: "ab"})
        with pytest.raises(RunError, match=r"2 of 4 sites (agreed|helped) to open the sum"):
            end.open(federation.exchange)


def test_sites_that_leave_during_the_opening_are_still_in_the_sum() -> None:
    federation = Federation(5)
    end, plain = federation.collected("abcde")
    federation.lose({"masks.survivors": "", "masks.open": "c"})
    np.testing.assert_array_equal(end.open(federation.exchange), plain)


def test_a_round_is_opened_once() -> None:
    federation = Federation(3)
    end, _ = federation.collected("abc")
    end.open(federation.exchange)
    with pytest.raises(RunError, match="round 1: there is no sum to open"):
        end.open(federation.exchange)
    with pytest.raises(RunError, match="a, round 1: an update came before"):
        end.add("a", grid(federation.updates()["a"]))


def blob(federation: Federation, round_: int = 1, site: str = "a") -> tuple[CoordinatorEnd, Payload]:
    end = federation.coordinator(round_)
    end.prepare(federation.exchange)
    return end, federation.sealed({site: federation.updates()[site]}, round_)[site]


def changed(payload: Payload, **changes: Any) -> Payload:
    parts = {"codec": payload.codec, "size": payload.size, "buffers": payload.buffers, "meta": payload.meta}
    return Payload(**{**parts, **changes})


def flipped(payload: Payload, bit: int) -> Payload:
    content = bytearray(payload.buffers[0])
    content[bit // 8] ^= 1 << bit % 8
    return changed(payload, buffers=(bytes(content),))


BAD: dict[str, Callable[[Payload], Payload]] = {
    "first bit": lambda p: flipped(p, 0),
    "last bit": lambda p: flipped(p, 8 * len(p.buffers[0]) - 1),
    "cut off": lambda p: changed(p, buffers=(p.buffers[0][:-4],)),
    "too long": lambda p: changed(p, buffers=(bytes(p.buffers[0]) + bytes(4),)),
    "two buffers": lambda p: changed(p, buffers=(p.buffers[0], b"")),
    "no buffer": lambda p: changed(p, buffers=()),
    "size": lambda p: changed(p, size=p.size + 1),
    "codec": lambda p: changed(p, codec="grid"),
    "no signature": lambda p: changed(p, meta={k: v for k, v in p.meta.items() if k != "signature"}),
    "no meta": lambda p: changed(p, meta={}),
    "signature is no text": lambda p: changed(p, meta={**p.meta, "signature": 7}),
    "signature is no hex": lambda p: changed(p, meta={**p.meta, "signature": "xyz"}),
    "round": lambda p: changed(p, meta={**p.meta, "round": 2}),
    "attempt": lambda p: changed(p, meta={**p.meta, "attempt": 2}),
    "run": lambda p: changed(p, meta={**p.meta, "run": "other"}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_blob_that_is_not_whole_is_refused_and_leaves_the_sum(bad: Callable[[Payload], Payload]) -> None:
    federation = Federation(3)
    end, payload = blob(federation)
    with pytest.raises(RunError, match="a, round 1: "):
        end.add("a", bad(payload))
    end.add("a", payload)
    for name in "bc":
        end.add(name, federation.sealed({name: federation.updates()[name]})[name])
    plain = sum(values.astype(np.int64) for values in federation.updates().values())
    np.testing.assert_array_equal(end.open(federation.exchange), plain)


def test_blobs_of_others_duplicates_and_replays() -> None:
    federation = Federation(3)
    end, payload = blob(federation)
    assert end.look("a", payload) is None
    with pytest.raises(RunError, match="b, round 1: the signature is not b's"):
        end.add("b", payload)
    with pytest.raises(RunError, match=r"stranger, round 1: .*did not take part"):
        end.add("stranger", payload)
    end.add("a", payload)
    with pytest.raises(RunError, match="a, round 1: its update was added already"):
        end.add("a", payload)
    later, _ = blob(federation, round_=2, site="b")
    with pytest.raises(RunError, match="a, round 2: its update is of run 'run', round 1, attempt 1"):
        later.add("a", payload)
    with pytest.raises(RunError, match="a, round 2: the signature is not a's"):
        later.add("a", changed(payload, meta={**payload.meta, "round": 2}))
