"""DGC's memory (algorithms' test t03): at full density it is momentum SGD, nothing is lost, every coordinate is sent in
the end, and it trains better at 99.9 % sparsity than what came before it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import configured, plugin
from toys.problems import curvature, least_squares

from medfl.update.base import Update
from medfl.update.codecs.base import CODECS
from medfl.update.codecs.selection import largest
from medfl.update.memories.base import MEMORIES, SiteState
from medfl.update.memories.dgc import Dgc

Vector = npt.NDArray[np.floating[Any]]
RNG = np.random.default_rng(0)


def dgc(**settings: Any) -> Dgc:
    memory: Dgc = plugin(MEMORIES, "dgc", **settings)
    return memory


class MaskingAll(Dgc):
    """The fake: masks also when everything was sent."""

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        super().after(wanted, sent, state)
        state["memory.momentum"][:] = 0


Sender = Callable[[Update, SiteState], Update]


def exactly(memory: Any, count: int | None = None) -> Sender:
    """Memory and a codec that keeps `count` values (None: all) in whatever precision they have."""

    def send(update: Update, state: SiteState) -> Update:
        wanted = memory.before(update, state)
        indices = None if count is None else largest(wanted.values, count)
        sent = Update(wanted.values if indices is None else wanted.values[indices], wanted.size, indices)
        memory.after(wanted, lambda: sent, state)
        return sent

    return send


def coded(memory: Any, codec: Any) -> Sender:
    """As the pipeline has it."""

    def send(update: Update, state: SiteState) -> Update:
        wanted = memory.before(update, state)
        payload = codec.encode_with(wanted, RNG, state)
        memory.after(wanted, lambda: codec.decode(payload, update.size), state)
        found: Update = codec.decode(payload, update.size)
        return found

    return send


# dense: momentum SGD

PROBLEM = least_squares(4, 50, 40, 1)
RATE = 0.02 / curvature(PROBLEM)


def gradients(x: Vector) -> list[Vector]:
    return [site.features.T @ (site.features @ x - site.targets) / len(site.targets) for site in PROBLEM]


def difference(send: Sender, dtype: type, nesterov: bool = False, steps: int = 200) -> float:
    """Largest distance between momentum SGD and four sites with a memory, over the largest coordinate."""
    exact = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([exact], lr=RATE, momentum=0.9, nesterov=nesterov)
    states = [dict[str, Any]() for _ in PROBLEM]
    x: Vector = np.zeros(50, dtype)
    for _ in range(steps):
        exact.grad = torch.from_numpy(np.mean(gradients(exact.detach().numpy()), axis=0))
        optimizer.step()
        sent = [
            send(Update(gradient.astype(dtype), 50), state)
            for gradient, state in zip(gradients(x), states, strict=True)
        ]
        x = x - dtype(RATE) * np.mean([update.dense() for update in sent], axis=0, dtype=dtype)
    reference = exact.detach().numpy()
    return float(np.abs(x - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_everything_sent_it_is_momentum_sgd(nesterov: bool) -> None:
    assert difference(exactly(dgc(nesterov=nesterov)), np.float64, nesterov) < 1e-12
    # the same over a real codec, in single precision
    full = plugin(CODECS, "topk", density=1, values="fp32")
    assert difference(coded(dgc(nesterov=nesterov), full), np.float32, nesterov) < 1e-5
    masked = MaskingAll(configured(MEMORIES, "dgc", nesterov=nesterov))
    assert not difference(exactly(masked), np.float64, nesterov) < 1e-2


@pytest.mark.parametrize("other", ["momentum", "nesterov"])
def test_other_momentum_is_not_that_momentum(other: str) -> None:
    changed = dgc(momentum=0.8) if other == "momentum" else dgc(nesterov=True)
    assert not difference(exactly(changed), np.float64) < 1e-12


# nothing is lost


def conservation(memory: Any, count: int = 5, steps: int = 100) -> float:
    """Largest |sum sent + v - sum u| over the largest sum."""
    state: SiteState = {}
    send, rng = exactly(memory, count), np.random.default_rng(0)
    sent, accumulated = np.zeros(200), np.zeros(200)
    velocity = np.zeros(200)
    for _ in range(steps):
        gradient = rng.normal(size=200)
        velocity = memory.config.momentum * velocity + gradient
        accumulated += velocity
        found = send(Update(gradient, 200), state)  # type: ignore[arg-type]
        sent[found.indices] += found.values
    return float(np.abs(sent + state["memory.residual"] - accumulated).max() / np.abs(accumulated).max())


class Forgetful(Dgc):
    """The fake: drops what was not sent."""

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        super().after(wanted, sent, state)
        state["memory.residual"] = np.zeros_like(state["memory.residual"])


def test_what_is_sent_and_what_is_kept_are_all_there_was() -> None:
    assert conservation(dgc(masking=False)) < 1e-9
    assert not conservation(Forgetful(configured(MEMORIES, "dgc", masking=False))) < 1e-2


@pytest.mark.parametrize("kind", ["stc", "topk"])
def test_what_a_codec_rounds_off_is_kept(kind: str) -> None:
    state: SiteState = {}
    values = RNG.standard_t(3, 500).astype(np.float32)
    sent = coded(dgc(), plugin(CODECS, kind, density=0.1))(Update(values, 500), state)
    np.testing.assert_allclose(sent.dense() + state["memory.residual"], values, rtol=1e-5, atol=1e-6)
    touched = np.zeros(500, np.bool_)
    touched[sent.indices] = True
    assert not state["memory.momentum"][touched].any()
    np.testing.assert_array_equal(state["memory.momentum"][~touched], values[~touched])


def test_what_a_gate_keeps_back_goes_later() -> None:
    memory, state = dgc(momentum=0), dict[str, Any]()
    kept_back = np.array([1, -2, 3], np.float32)
    memory.before(Update(kept_back, 3), state)
    later = coded(memory, plugin(CODECS, "fp32"))(Update(np.zeros(3, np.float32), 3), state)
    np.testing.assert_array_equal(later.dense(), kept_back)


def test_a_round_that_fails_leaves_the_state_as_it_was() -> None:
    state: SiteState = {}
    send = coded(dgc(), plugin(CODECS, "topk", density=0.2))
    send(Update(RNG.normal(size=50).astype(np.float32), 50), state)
    before, tried = {name: array.copy() for name, array in state.items()}, dict(state)
    send(Update(RNG.normal(size=50).astype(np.float32), 50), tried)
    assert all(np.array_equal(state[name], before[name]) for name in before)
    assert not all(np.array_equal(tried[name], before[name]) for name in before)


def test_an_update_of_some_coordinates_is_remembered_in_those_of_the_vector() -> None:
    state: SiteState = {}
    exactly(dgc(momentum=0), 1)(Update(np.array([5, 1], np.float32), 6, np.array([2, 4])), state)
    assert state["memory.residual"].tolist() == [0, 0, 0, 0, 1, 0]


def test_a_site_is_clipped_to_its_share() -> None:
    gradient = np.full(100, 3, np.float32)
    for sites, length in ((1, 6), (4, 3), (9, 2)):
        wanted = dgc(clip=6.0, sites=sites).before(Update(gradient, 100), {})
        assert wanted.norm() == pytest.approx(length, rel=1e-6)
    assert dgc(clip=31.0).before(Update(gradient, 100), {}).norm() == pytest.approx(30)


# every coordinate is sent in the end

GRADIENT = np.geomspace(1, 100, 1000).astype(np.float32)
BOUND = int(GRADIENT.sum() / (10 * GRADIENT.min()))


def steps_to_reach_all(memory: Any, limit: int) -> tuple[int, int]:
    """Steps until every coordinate was sent at a density of 1 %, and how many were by then."""
    send, state = coded(memory, plugin(CODECS, "topk", values="fp32", density=0.01)), dict[str, Any]()
    reached = np.zeros(1000, np.bool_)
    for step in range(1, limit + 1):
        reached[send(Update(GRADIENT, 1000), state).indices] = True
        if reached.all():
            return step, 1000
    return limit + 1, int(reached.sum())


def test_memory_reaches_every_coordinate() -> None:
    assert pytest.approx(2153, abs=1) == BOUND
    assert steps_to_reach_all(plugin(MEMORIES, "error_feedback"), BOUND)[0] <= BOUND
    assert steps_to_reach_all(dgc(), BOUND)[0] <= BOUND
    assert steps_to_reach_all(plugin(MEMORIES, "none"), 100) == (101, 10)


# training at 99.9 %


def classes(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(10, 32)) * 0.45
    labels = rng.integers(0, 10, rows)
    return torch.from_numpy((means[labels] + rng.normal(size=(rows, 32))).astype(np.float32)), torch.from_numpy(labels)


def training_loss(memory: Any, density: float, server: float, seed: int, steps: int = 240) -> float:
    """Mean loss over the last 40 steps of four workers that send that share of their gradients. server: momentum of
    the coordinator's step."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear
    network = torch.nn.Sequential(layers(32, 128), torch.nn.ReLU(), layers(128, 64), torch.nn.ReLU(), layers(64, 10))
    parameters = list(network.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    send = coded(memory, plugin(CODECS, "topk", values="fp32", density=density))
    states = [dict[str, Any]() for _ in range(4)]
    velocity, losses = np.zeros(size, np.float32), []
    for step in range(steps):
        total = np.zeros(size, np.float32)
        for worker, state in enumerate(states):
            features, labels = classes(32, 10_000 * seed + 4 * step + worker)
            loss = torch.nn.functional.cross_entropy(network(features), labels)
            gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])
            total += send(Update(gradient.numpy(), size), state).dense() / 4
            losses.append(loss.item())
        velocity = server * velocity + total
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(parameters).detach() - 0.02 * torch.from_numpy(velocity), parameters
        )
    return float(np.mean(losses[-160:]))


def test_it_trains_better_than_error_feedback_alone() -> None:
    def over_seeds(memory: Any, density: float, server: float) -> float:
        return float(np.mean([training_loss(memory, density, server, seed) for seed in range(2)]))

    none, feedback = plugin(MEMORIES, "none"), plugin(MEMORIES, "error_feedback")
    dense = over_seeds(none, 1, 0.9)
    deep = over_seeds(dgc(), 0.001, 0)
    naive = over_seeds(feedback, 0.001, 0.9)
    without = over_seeds(none, 0.001, 0.9)
    assert dense < deep < 0.97 * naive
    assert naive < 0.9 * without
