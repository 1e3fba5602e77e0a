"""Which codecs a memory may stand behind: those whose error is shorter than what they were given."""

from typing import Any

import numpy as np
import pytest
from toys.parts import configured, plugin

from medfl.study.load import study_from_json
from medfl.study.rules import conflicts
from medfl.update.base import Update
from medfl.update.codecs.base import CODECS
from medfl.update.memories.base import MEMORIES, SiteState

SIZE = 4096
STUDY: dict[str, Any] = {
    "name": "test",
    "task": {"kind": "classification", "classes": ["a", "b"]},
    "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [8, 8]}},
}
CASES = [
    ("random_k", {"density": 0.3}),
    ("random_k", {"density": 0.3, "scaled": False}),
    ("random_k", {"density": 0.6}),
    ("qsgd", {"levels": 1}),
    ("qsgd", {"levels": 3}),
    ("qsgd", {}),
    ("sketch", {"bits": 1}),
    ("sketch", {}),
    ("int4", {"rounding": "stochastic"}),
    ("int8", {"rounding": "stochastic"}),
    ("topk", {"density": 0.05}),
    ("stc", {"density": 0.05}),
    ("sign", {}),
]


def residual(kind: str, settings: dict[str, Any], rounds: int = 60) -> float:
    """The longest that what error feedback keeps becomes, in lengths of an update."""
    codec, memory = plugin(CODECS, kind, **settings), plugin(MEMORIES, "error_feedback")
    rng, state, longest = np.random.default_rng(0), dict[str, Any](), 0.0
    kept: SiteState = state
    for _ in range(rounds):
        update = Update(rng.normal(size=SIZE).astype(np.float32), SIZE)
        wanted = memory.before(update, kept)
        with np.errstate(all="ignore"):
            payload = codec.encode_with(wanted, rng, kept)
            if not np.isfinite(codec.decode(payload, SIZE).norm()):
                return np.inf
            memory.after(wanted, lambda sent=payload: codec.decode(sent, SIZE), kept)
        longest = max(longest, max(float(np.linalg.norm(array)) for array in kept.values()) / SIZE**0.5)
    return longest


def refused(kind: str, settings: dict[str, Any]) -> bool:
    update = {"codec_up": configured(CODECS, kind, **settings).model_dump(), "memory": "error_feedback"}
    return any("memory-enlarges" in fault.where for fault in conflicts(study_from_json(STUDY | {"update": update})))


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_a_memory_is_refused_behind_a_codec_just_where_what_it_keeps_grows(kind: str, settings: dict[str, Any]) -> None:
    assert refused(kind, settings) == (residual(kind, settings) > 100)
