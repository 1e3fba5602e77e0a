"""A model and others as one payload: each comes out as it went in, and nothing else does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.beside import joined, parted
from medfl.update.codecs.base import CODECS

SIZE = 7


def coded(value: float, codec: str = "fp32") -> Payload:
    return plugin(CODECS, codec).encode(Update(np.full(SIZE, value, np.float32), SIZE), np.random.default_rng(0))


def values(payload: Payload, codec: str = "fp32") -> Any:
    return plugin(CODECS, codec).decode(payload, SIZE).dense()


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_each_comes_out_as_it_went_in(codec: str) -> None:
    made = joined(coded(1, codec), {"previous": coded(2, codec), "current": coded(3, codec)}, {"since": 5})
    buffers = [memoryview(bytes(buffer)) for buffer in made.buffers]
    model, others, about = parted(Payload.of(made.header(), buffers))
    np.testing.assert_allclose(values(model, codec), 1, rtol=0.01)
    np.testing.assert_allclose(values(others["previous"], codec), 2, rtol=0.01)
    np.testing.assert_allclose(values(others["current"], codec), 3, rtol=0.01)
    assert others.keys() == {"previous", "current"} and about == {"since": 5}


MADE = joined(coded(1), {"previous": coded(2)}, {"since": 5})
LISTED = MADE.meta["parts"]
WRONG: dict[str, Any] = {
    "no list": {"about": {}},
    "no model": {"parts": {"previous": LISTED["previous"]}, "about": {}},
    "no numbers": {"parts": LISTED},
    "numbers that are none": {"parts": LISTED, "about": {"since": "x"}},
    "numbers that no array holds": {"parts": LISTED, "about": {"since": 10**30}},
    "fewer than are there": {"parts": {"model": LISTED["model"]}, "about": {}},
    "more than are there": {"parts": {**LISTED, "current": LISTED["previous"]}, "about": {}},
    "a negative count": {"parts": {**LISTED, "previous": {**LISTED["previous"], "buffers": -1}}, "about": {}},
    "nothing of it": {},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_joined_is_refused(name: str) -> None:
    with pytest.raises(RunError):
        parted(Payload(MADE.codec, SIZE, MADE.buffers, WRONG[name]))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_description_ends_in_a_clean_error(about: Any) -> None:
    for meta in (about, {"parts": about, "about": {}}, {"parts": {"model": about}, "about": {}}):
        if isinstance(meta, dict):
            with pytest.raises(RunError):
                parted(Payload("joined", SIZE, MADE.buffers, meta))
