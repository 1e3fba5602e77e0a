"""Networks that travel in part (algorithms' tests t08 and t13): bytes, what moves and what does not, what it brings."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from toys.partly import Partly, few_classes
from toys.parts import plugin

from medfl.update.base import Update
from medfl.update.parts import Coordinates
from medfl.update.submodels.afd import AfdChooser
from medfl.update.submodels.base import SUBMODELS, Choice, Chooser, Measure, Start
from medfl.update.submodels.lottery import Lottery
from medfl.update.vector import FloatVector


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cnn() -> nn.Module:
    """16 and 32 filters, 64 units, 10 classes, for images of 12 x 12."""
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 10))


def images(kind: str, made: type[Partly] = Partly, seed: int = 0, spread: float = 1.0, **config: Any) -> Partly:
    """16 sites with 3 of 10 classes each, 5 of them a round."""
    holdings = few_classes(16, 10, 3, 120, (1, 12, 12), spread, seed)
    return made(cnn, holdings, plugin(SUBMODELS, kind, **config), drawn=5, epochs=2, batch=20, rate=0.05, seed=seed)


def rows(kind: str, seed: int = 0, **config: Any) -> Partly:
    """12 sites with 2 of 10 classes each, half of them a round."""
    holdings = few_classes(12, 10, 2, 60, (40,), 0.55, seed)
    return Partly(perceptron, holdings, plugin(SUBMODELS, kind, **config), 6, epochs=3, batch=20, rate=0.1, seed=seed)


class Watched(Chooser):
    """Passes everything on, and notes what the sites of a round own."""

    def __init__(self, inner: Chooser, size: int) -> None:
        super().__init__(inner.submodel)
        self.inner = inner
        self.owned = np.zeros(size, np.bool_)

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        return self.inner.choose(site, round_, rng)

    def down(self, choice: Choice) -> Any:
        return self.inner.down(choice)

    def up(self, choice: Choice, notice: bytes) -> Any:
        found = self.inner.up(choice, notice)
        self.owned[... if found is None else found.indices] = True
        return found

    def learn(self, round_: int, losses: Any) -> None:
        self.inner.learn(round_, losses)


def moved_and_owned(federation: Partly, rounds: int = 3) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """For each round, which coordinates changed by a bit, and which any of its sites trained."""
    watched = Watched(federation.chooser, federation.size)
    federation.chooser, found = watched, []
    for _ in range(rounds):
        watched.owned[:] = False
        before = federation.model.copy()
        federation.round()
        found.append((before.view(np.int32) != federation.model.view(np.int32), watched.owned.copy()))
    return found


class ZerosAveraged(Partly):
    """The fake: sites send whole weights, with zeros for the filters that they did not have."""

    def visit(self, number: int, rng: np.random.Generator) -> tuple[Update, float]:
        update, loss = super().visit(number, rng)
        assert update.indices is not None
        dense = -self.model
        dense[update.indices] = update.values
        return Update(dense, self.size), loss


def untouched(federation: Partly) -> bool:
    return all(not (moved & ~owned).any() for moved, owned in moved_and_owned(federation))


# adaptive federated dropout


@pytest.mark.parametrize("mode", ["multi", "single"])
def test_a_quarter_less_filters_is_four_tenths_less_bytes_both_ways(mode: str) -> None:
    federation = images("afd", mode=mode, drop=0.25)
    federation.round()
    dense = 4 * federation.size * federation.drawn
    # 0.75 squared inside, 0.75 at the ends
    assert 0.55 < federation.up_bytes / dense < 0.58
    assert 0.55 < federation.down_bytes / dense < 0.58
    whole = images("full")
    whole.round()
    assert whole.up_bytes == dense


@pytest.mark.parametrize("mode", ["multi", "single"])
def test_what_no_site_trained_stays_as_it_is_bit_for_bit(mode: str) -> None:
    made = moved_and_owned(images("afd", mode=mode, drop=0.5))
    for moved, owned in made:
        assert not (moved & ~owned).any() and moved.sum() > 0.5 * owned.sum()
    assert any(not owned.all() for _, owned in made)
    assert not untouched(images("afd", ZerosAveraged, mode=mode, drop=0.5))


def test_zeros_in_place_of_the_owners_mean_unlearn() -> None:
    right, wrong = images("afd", spread=1.5), images("afd", ZerosAveraged, spread=1.5)
    for _ in range(5):
        right.round()
        wrong.round()
    assert np.linalg.norm(wrong.model - right.model) > 0.3 * np.linalg.norm(right.model)
    assert np.linalg.norm(wrong.model) < 0.8 * np.linalg.norm(right.model)


class Frozen(AfdChooser):
    """Random federated dropout: nothing is learned of the losses."""

    def learn(self, round_: int, losses: Any) -> None:
        pass


def early(kind: str, rounds: int = 26, frozen: bool = False, **config: Any) -> float:
    """Mean accuracy over the first rounds, and over three problems."""
    found = []
    for seed in range(3):
        federation = images(kind, seed=seed, **config)
        if frozen:
            federation.chooser = Frozen(federation.submodel)  # type: ignore[arg-type]
        for _ in range(rounds):
            federation.round()
            found.append(federation.overall())
    return float(np.mean(found))


@pytest.mark.slow
def test_choosing_filters_by_the_losses_helps_early_on() -> None:
    whole, multi, single = early("full"), early("afd"), early("afd", mode="single")
    assert whole > multi + 0.05
    assert multi > single + 0.02
    assert multi > early("afd", frozen=True) + 0.01
    assert single > early("afd", frozen=True, mode="single") + 0.01


# seeded masks


def test_a_seeded_mask_sends_its_share_and_still_learns() -> None:
    made = {}
    for name, config in {"own": {}, "shared": {"shared": True}, "all train": {"trains": False}}.items():
        federation = rows("seeded_mask", share=0.3, **config)
        start = federation.overall()
        for _ in range(12):
            federation.round()
        made[name] = federation.overall()
        dense = 4 * federation.size * federation.drawn * 12
        assert abs(federation.up_bytes / dense - 0.3) < 0.01 and federation.down_bytes >= dense
        assert made[name] > start + 0.3


@pytest.mark.parametrize("shared", [True, False])
def test_only_the_masks_of_the_round_move(shared: bool) -> None:
    federation = rows("seeded_mask", share=0.1, shared=shared)
    for moved, owned in moved_and_owned(federation):
        assert not (moved & ~owned).any()
        expected = 0.1 if shared else 1 - 0.9**federation.drawn
        assert abs(owned.mean() - expected) < 0.02


# LotteryFL


def personal(kind: str, **config: Any) -> tuple[float, float]:
    """Mean accuracy of the sites' own models on their own cases, over two problems; bytes up by a whole model's."""
    found, share = [], []
    for seed in range(2):
        federation = rows(kind, seed, **config)
        for _ in range(45):
            federation.round()
        found.append(federation.personal())
        share.append(federation.up_bytes / (4 * federation.size * federation.trained))
    return float(np.mean(found)), float(np.mean(share))


def test_tickets_fit_their_sites_better_for_fewer_bytes() -> None:
    (whole, all_bytes), (ticket, bytes_) = personal("full"), personal("lottery", target=0.3)
    assert ticket > whole + 0.02
    assert all_bytes == 1 and bytes_ < 0.6


class NotReset(Lottery):
    """The fake: a site that prunes goes on from the weights that it has."""

    def begin(self, choice: Choice, received: FloatVector, state: Any, measure: Measure) -> Start:
        start = super().begin(choice, received, state, measure)
        return Start(self.personal(received, state), start.trains, start.sends, start.notice)


def begins_anew(submodel: Lottery) -> bool:
    """Whether a site that prunes starts from the first model, and at zero where it pruned."""
    federation = rows("full")
    federation.submodel = submodel
    federation.__post_init__()
    for _ in range(3):
        federation.round()
    choice = federation.chooser.choose("s0", 4, np.random.default_rng(0))
    state = dict(federation.states[0])
    received = submodel.personal(federation.model, state)
    start = submodel.begin(choice, received, state, lambda _: 1.0)
    assert start.notice and isinstance(start.sends, Coordinates)
    expected = np.zeros(federation.size, np.float32)
    expected[start.sends.indices] = federation.first[start.sends.indices]
    return bool((start.values == expected).all())


def test_a_ticket_begins_anew_from_the_first_model() -> None:
    assert begins_anew(plugin(SUBMODELS, "lottery"))
    assert not begins_anew(NotReset(plugin(SUBMODELS, "lottery").config))


def test_weights_that_nobody_owns_stay_as_they_are() -> None:
    federation = rows("lottery", target=0.1, rate=0.5)
    for _ in range(25):
        federation.round()
    made = moved_and_owned(federation)
    assert any(not owned.all() for _, owned in made)
    assert all(not (moved & ~owned).any() for moved, owned in made)
