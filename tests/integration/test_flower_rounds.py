"""medfl's rounds over clients of another make, and modules as one vector; without Flower."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from medfl.errors import RunError
from medfl.integrations.flower.modules import layout_of, pack, unpack
from medfl.integrations.flower.rounds import Answer, Rounds, What, build_parts, check_answer
from medfl.update.vector import FloatVector

SIZE = 1000
START = np.full(SIZE, 10, np.float32)
"""Far from 0: an update that is larger than the model is refused."""
EXAMPLES = {"1": 10, "2": 30, "3": 7}


class Clients:
    """Each moves the model by its own step. order: in which they answer."""

    def __init__(self, order: Sequence[str], **instead: Answer) -> None:
        self._order = order
        self._instead = {name.removeprefix("n"): answer for name, answer in instead.items()}

    def step(self, node: str) -> FloatVector:
        return np.random.default_rng(int(node)).normal(size=SIZE).astype(np.float32)

    def ask(self, what: What, nodes: Sequence[str], model: FloatVector, round_: int) -> Iterator[Answer]:
        for node in self._order:
            metrics = {"accuracy": int(node) / 4}
            vector = model + self.step(node) if what == "train" else None
            yield self._instead.get(node) or Answer(node, EXAMPLES[node], metrics, vector)


def after(clients: Clients, rounds: int = 1) -> FloatVector:
    played = Rounds(build_parts({}), 0, START.copy(), clients.ask)
    for _ in range(rounds):
        played.play(list(EXAMPLES))
    return played.federation.model - START


def test_a_round_is_the_mean_weighted_by_examples() -> None:
    clients = Clients(["1", "2", "3"])
    expected = sum(EXAMPLES[node] * clients.step(node) for node in EXAMPLES) / sum(EXAMPLES.values())
    assert np.allclose(after(clients), expected, atol=1e-5)
    unweighted = sum(clients.step(node) for node in EXAMPLES) / 3
    assert not np.allclose(after(clients), unweighted, atol=1e-2)


def test_the_order_of_arrival_changes_no_bit() -> None:
    assert after(Clients(["3", "1", "2"]), 3).tobytes() == after(Clients(["1", "2", "3"]), 3).tobytes()
    # the sum itself is not that kind: added as they come, the bits differ
    first, second = (
        sum((np.float32(EXAMPLES[n]) * Clients([]).step(n) for n in order), np.zeros(SIZE, np.float32))
        for order in (["1", "2", "3"], ["3", "1", "2"])
    )
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    "answer",
    [
        Answer("2", failure="away"),
        Answer("2", 30, {}, np.zeros(SIZE + 1, np.float32)),
        Answer("2", 30, {}, np.full(SIZE, np.nan, np.float32)),
    ],
    ids=["failure", "shape", "not finite"],
)
def test_a_bad_answer_costs_one_client_and_not_the_round(answer: Answer) -> None:
    clients = Clients(["1", "2", "3"], n2=answer)
    expected = (10 * clients.step("1") + 7 * clients.step("3")) / 17
    assert np.allclose(after(clients), expected, atol=1e-5)


def test_a_client_that_never_answers_is_a_failure() -> None:
    played = Rounds(build_parts({}), 0, START.copy(), Clients(["1", "3"]).ask)
    outcome = played.play(list(EXAMPLES))
    assert "did not answer" in outcome.sites["2"].failure
    assert outcome.moved


def test_metrics_are_weighted_by_examples() -> None:
    played = Rounds(build_parts({}), 0, START.copy(), Clients(["1", "2", "3"]).ask)
    expected = sum(EXAMPLES[node] * int(node) / 4 for node in EXAMPLES) / 47
    assert played.evaluate(list(EXAMPLES)) == pytest.approx({"accuracy": expected})


@pytest.mark.parametrize("said", [(0, {}), (2.5, {}), (3, {"loss": "low"}), (None, {})])
def test_what_a_user_returns_is_checked(said: tuple) -> None:
    with pytest.raises(RunError):
        check_answer(*said)


def test_a_module_comes_back_from_its_vector() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 2).half())
    module[1](module[0](torch.randn(2, 1, 6, 6)))
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 2).half())
    vector = pack(module)
    assert vector.size == layout_of(module).size
    unpack(other, vector)
    there, here = other.state_dict(), module.state_dict()
    for name, tensor in here.items():
        if tensor.is_floating_point():
            assert torch.equal(there[name], tensor), name
    # a counter is no state that could be averaged
    assert int(there["1.num_batches_tracked"]) == 0 != int(here["1.num_batches_tracked"])
    with pytest.raises(RunError):
        unpack(other, vector[:-1])
    with pytest.raises(RunError):
        pack(nn.Flatten())
