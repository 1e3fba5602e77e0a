"""Memories and the order of the way up."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.plugins import PluginConfig
from medfl.privacy.codec import GridCodec
from medfl.privacy.grid import Grid
from medfl.update.base import Payload, Update, Upload
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.gates.base import GATES, UploadGate
from medfl.update.memories.base import MEMORIES, Memory, SiteState
from medfl.update.memories.error_feedback import ErrorFeedback, ErrorFeedbackConfig
from medfl.update.parts import Coordinates
from medfl.update.pipeline import UploadPipeline
from medfl.update.vector import FloatVector

RNG = np.random.default_rng(0)
SIZE = 40


class Coarse(Codec):
    """Rounds to whole numbers: loses much."""

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return Payload("coarse", update.size, (np.round(update.dense()).astype(np.float32).tobytes(),))

    def decode(self, payload: Payload, size: int) -> Update:
        return Update(np.frombuffer(payload.buffers[0], np.float32), size)


class Forgetful(ErrorFeedback):
    """The fake: drops its residual every round."""

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        state["memory.residual"] = np.zeros(wanted.size, np.float32)


def upload(round_: int) -> Upload:
    return Upload("a", round_, round_ - 1, np.zeros(SIZE, np.float32))


def pipeline(memory: Memory, codec: Codec | None = None) -> UploadPipeline:
    return UploadPipeline(
        GATES.build(GATES.default("always")),
        memory,
        codec or Coarse(PluginConfig(kind="coarse")),
    )


def error_feedback(decay: float = 1.0) -> ErrorFeedback:
    return ErrorFeedback(ErrorFeedbackConfig(decay=decay))


def sent_by(way: UploadPipeline, updates: list[FloatVector], state: SiteState) -> FloatVector:
    total = np.zeros(SIZE, np.float64)
    for round_, update in enumerate(updates, 1):
        payload = way.run(update, upload(round_), state, RNG)
        assert payload is not None
        total += way.codec.decode(payload, SIZE).dense()
    return total.astype(np.float32)


def updates_of(seed: int, rounds: int = 12) -> list[FloatVector]:
    rng = np.random.default_rng(seed)
    return [(0.3 * rng.normal(size=SIZE)).astype(np.float32) for _ in range(rounds)]


def missing(memory: ErrorFeedback, updates: list[FloatVector]) -> float:
    """Largest part of the sum of updates that is neither sent nor remembered."""
    state: SiteState = {}
    sent = sent_by(pipeline(memory), updates, state)
    return float(np.abs(np.sum(updates, axis=0) - sent - state["memory.residual"]).max())


@given(st.integers(0, 1000))
def test_error_feedback_loses_nothing(seed: int) -> None:
    assert missing(error_feedback(), updates_of(seed)) < 1e-5


def test_a_memory_that_drops_its_residual_loses_mass() -> None:
    assert missing(Forgetful(ErrorFeedbackConfig()), updates_of(0)) > 0.5


def test_decay_forgets_the_residual() -> None:
    updates = [np.full(SIZE, 0.4, np.float32), np.zeros(SIZE, np.float32)]
    state: SiteState = {}
    sent_by(pipeline(error_feedback(0.5)), updates, state)
    np.testing.assert_allclose(state["memory.residual"], 0.1, rtol=1e-6)


def test_without_memory_nothing_is_kept() -> None:
    state: SiteState = {}
    sent_by(pipeline(MEMORIES.build(MEMORIES.default("none"))), updates_of(1), state)
    assert state == {}


def test_the_memory_keeps_what_the_clip_cut_off_and_what_is_sent_is_bounded() -> None:
    state: SiteState = {}
    way = pipeline(error_feedback(), GridCodec(Grid(2.0, 1 << 20)))
    delta = np.full(SIZE, 3.0, np.float32)
    for round_ in range(1, 6):
        before = state.get("memory.residual", np.zeros(SIZE, np.float32)).copy()
        payload = way.run(delta, upload(round_), state, RNG)
        assert payload is not None
        # a clip before the memory would let more than the bound through
        sent = way.codec.decode(payload, SIZE)
        assert sent.norm() <= 2.0 * (1 + 1e-6)
        np.testing.assert_allclose(sent.dense() + state["memory.residual"], delta + before, rtol=1e-5)


def test_the_residual_does_not_alias_the_update_or_the_payload() -> None:
    state: SiteState = {}
    way = UploadPipeline(
        GATES.build(GATES.default("always")),
        error_feedback(),
        CODECS.build(CODECS.default("fp32")),
    )
    delta = np.ones(SIZE, np.float32)
    payload = way.run(delta, upload(1), state, RNG)
    assert payload is not None
    delta[:] = 9
    assert not state["memory.residual"].any()


def test_the_order_of_the_way_up() -> None:
    calls: list[str] = []

    class Gate(UploadGate):
        def before(self, update: Update, upload: Upload, state: SiteState) -> Update:
            calls.append(f"news {update.values.size}")
            return update

        def allow(self, news: Update, sent: Callable[[], Update], upload: Upload, state: SiteState) -> bool:
            calls.append(f"gate {news.values.size}")
            return upload.round == 1

        def after(self, sent: Callable[[], Update], upload: Upload, state: SiteState) -> None:
            calls.append("gate after")

    class Noted(Memory):
        def before(self, update: Update, state: SiteState) -> Update:
            calls.append("before")
            return update

        def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
            calls.append(f"after {sent().size}")

    class Code(Coarse):
        def encode(self, update: Update, rng: np.random.Generator) -> Payload:
            calls.append("encode")
            return super().encode(update, rng)

    nothing = PluginConfig(kind="test")
    way = UploadPipeline(Gate(nothing), Noted(nothing), Code(nothing))
    delta = np.arange(SIZE, dtype=np.float32)
    odd = Coordinates(np.arange(1, SIZE, 2))
    payload = way.run(delta, replace(upload(1), sends=odd, trains=odd), {}, RNG)
    assert calls == ["news 20", "before", "encode", "gate 20", "after 40", "gate after"]
    assert payload is not None
    np.testing.assert_array_equal(way.codec.decode(payload, odd.size).dense(), delta[odd.indices])
    calls.clear()
    assert way.run(delta, upload(2), {}, RNG) is None
    assert calls == ["news 40", "before", "encode", "gate 40"]


@pytest.mark.parametrize("trains", [True, False])
def test_a_memory_keeps_what_trained_outside_the_part_that_is_sent(trains: bool) -> None:
    state: SiteState = {}
    way, odd, even = pipeline(error_feedback()), *(Coordinates(np.arange(start, SIZE, 2)) for start in (1, 0))
    first = replace(upload(1), sends=odd, trains=odd if trains else None)
    payload = way.run(np.full(SIZE, 3.25, np.float32), first, state, RNG)
    assert payload is not None and payload.size == odd.size
    assert state["memory.residual"][odd.indices].tolist() == [0.25] * odd.size
    assert state["memory.residual"][even.indices].tolist() == [0.0 if trains else 3.25] * even.size
    second = replace(upload(2), sends=even, trains=even if trains else None)
    payload = way.run(np.zeros(SIZE, np.float32), second, state, RNG)
    assert payload is not None
    assert way.codec.decode(payload, even.size).dense().tolist() == [0.0 if trains else 3.0] * even.size
    assert state["memory.residual"][odd.indices].tolist() == [0.25] * odd.size, "it waits until it is sent"
