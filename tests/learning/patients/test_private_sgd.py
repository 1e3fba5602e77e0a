"""DP-SGD steps: sum, noise, public denominator, then what does not depend on patients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import CPU, plugin
from toys.patients import PatientImages, autograd, built, se_resnet, unet

from medfl.errors import RunError, StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer
from medfl.learning.patients.base import PatientBatch
from medfl.learning.patients.loop import Loop
from medfl.learning.patients.private_sgd import PrivateSgd
from medfl.learning.patients.sampling import PatientIndex, PatientSampler, Sampling
from medfl.learning.rules.base import RULES, LocalContext, LocalRule
from medfl.privacy.ledger.base import BudgetError

TASK = se_resnet()
CLIP, PATIENTS, LEARNING_RATE = 0.2, 40.0, 0.5
Vector = npt.NDArray[np.float64]


def samples() -> PatientImages:
    """Five patients, one of them with three images."""
    rng = np.random.default_rng(0)
    owners = ["p0", "p1", "p1", "p1", "p2", "p3", "p4"]
    return PatientImages(
        {"image": rng.random((7, 1, 12, 12), dtype=np.float32), "label": rng.integers(0, 2, 7)}, owners
    )


def private(rate: float = 1.0, source: Callable[[int], bytes] | None = None, clip: float = CLIP) -> PrivateSgd:
    data = samples()
    extra = {} if source is None else {"source": source}
    sampler = PatientSampler(data, PatientIndex.of(data), Sampling(rate), **extra)
    return PrivateSgd(Loop(TASK, CPU), sampler, clip, PATIENTS)


def context(network: FlatNetwork, steps: int = 1, **values: float) -> LocalContext:
    numbers = {name.replace("__", "."): value for name, value in values.items()}
    anchor = network.parameters.detach().clone()
    return LocalContext("a", 1, TASK, network, anchor, None, {}, numbers, steps, CPU)


class Noise:
    """The same noise for everyone who asks, counted."""

    def __init__(self, deviation: float = 0.0, allowed: int = 10**6) -> None:
        self.deviation, self.allowed = deviation, allowed
        self.drawn: list[Vector] = []

    def __call__(self, size: int) -> Vector:
        if len(self.drawn) == self.allowed:
            raise BudgetError.at("privacy", "the next charge would pass the budget")
        rng = np.random.default_rng(len(self.drawn))
        self.drawn.append(rng.normal(0, self.deviation, size))
        return self.drawn[-1]


def train(
    made: PrivateSgd,
    network: FlatNetwork,
    noise: Noise,
    steps: int = 1,
    rules: list[LocalRule] | None = None,
    optimizer: SgdOptimizer | AdamOptimizer | None = None,
    begun: LocalContext | None = None,
    **values: float,
) -> None:
    found = (optimizer or SgdOptimizer()).build(network.parameters, LEARNING_RATE)
    begun = begun or context(network, steps, **values)
    assert made.train(begun, rules or [], found, noise, np.random.default_rng(0)) is None, "no loss leaves"


def clipped(network: FlatNetwork, clip: float = CLIP) -> Vector:
    """The sum of all patients' clipped gradients by brute force."""
    data, total = samples(), np.zeros(network.layout.size)
    for patient in PatientIndex.of(data).patients:
        gradient = autograd(TASK, network, PatientBatch(data.batch(np.concatenate(patient.images))))
        total += gradient * min(1.0, clip / float(np.linalg.norm(gradient)))
    return total


def everyone(count: int) -> bytes:
    return bytes(count)


def nobody(count: int) -> bytes:
    return b"\xff" * count


def test_a_step_is_the_noisy_sum_over_the_public_denominator() -> None:
    network, noise = built(TASK), Noise(0.3)
    start, wanted = network.store(), clipped(network)
    train(private(0.25, everyone), network, noise)
    step = -LEARNING_RATE * (wanted + noise.drawn[0]) / (0.25 * PATIENTS)
    np.testing.assert_allclose(network.store() - start, step, atol=1e-6)


def test_a_step_without_patients_is_a_step_of_noise() -> None:
    network, noise = built(TASK), Noise(0.3)
    start = network.store()
    train(private(0.25, nobody), network, noise, steps=2)
    assert len(noise.drawn) == 2
    step = -LEARNING_RATE * (noise.drawn[0] + noise.drawn[1]) / (0.25 * PATIENTS)
    np.testing.assert_allclose(network.store() - start, step, atol=1e-6)


def test_sum_and_noise_are_added_on_one_grid() -> None:
    """Integer noise hides a sum of integers; a sum between the grid's points would show through it."""
    steps = 1 << 10
    made = private()
    made = PrivateSgd(made.engine, made.sampler, CLIP, 1.0, step=CLIP / steps)
    network = built(TASK)

    def noise(size: int) -> Vector:
        return np.random.default_rng(0).integers(-steps, steps, size) * (CLIP / steps)

    optimizer = SgdOptimizer().build(network.parameters, 1.0)
    made.train(context(network), [], optimizer, noise, np.random.default_rng(0))
    units = network.gradient.double().numpy() * (steps / CLIP)
    np.testing.assert_allclose(units, np.rint(units), atol=1e-3)
    loose = clipped(built(TASK)) * (steps / CLIP)
    assert np.abs(loose - np.rint(loose)).max() > 0.4


def test_the_denominator_does_not_count_patients() -> None:
    assert private(0.25).denominator == 0.25 * PATIENTS


@pytest.mark.parametrize("optimizer", [SgdOptimizer(momentum=0.9), AdamOptimizer()])
def test_without_noise_or_clip_the_loss_falls(optimizer: SgdOptimizer | AdamOptimizer) -> None:
    network = built(TASK)
    everything = TASK.to_device(samples().batch(range(7)), CPU)

    def loss() -> float:
        return TASK.loss(network.module, everything).item()

    before, good = loss(), private()
    made = PrivateSgd(good.engine, good.sampler, 10.0, 5)
    found = optimizer.build(network.parameters, 0.05)
    made.train(context(network, 40), [], found, Noise(), np.random.default_rng(0))
    assert loss() < 0.7 * before


MU, DRIFT = 50.0, 0.1


def drifted(network: FlatNetwork) -> LocalContext:
    """A model far from where it started, so that the proximal term outweighs every gradient."""
    begun = context(network, fedprox__mu=MU)
    with torch.no_grad():
        network.parameters.add_(DRIFT)
    return begun


class ProximalTask:
    """Wrong: FedProx as part of the loss, which puts it under the clip."""

    def __init__(self, begun: LocalContext) -> None:
        self.begun = begun
        self.to_device = TASK.to_device

    def loss(self, module: torch.nn.Module, batch: Any) -> torch.Tensor:
        parts = torch.split(self.begun.anchor, [p.numel() for p in module.parameters()])
        drift = sum(((p.flatten() - a) ** 2).sum() for p, a in zip(module.parameters(), parts, strict=True))
        return TASK.loss(module, batch) + MU / 2 * drift


def proximal_step(before_the_clip: bool) -> tuple[Vector, Vector]:
    """(the step made, the step wanted)."""
    network = built(TASK)
    begun = drifted(network)
    wanted = clipped(network) / PATIENTS + MU * DRIFT
    start, made = network.store(), private()
    if before_the_clip:
        wrong: Any = ProximalTask(begun)
        train(PrivateSgd(Loop(wrong, CPU), made.sampler, CLIP, PATIENTS), network, Noise(), begun=begun)
    else:
        train(made, network, Noise(), rules=[plugin(RULES, "fedprox")], begun=begun)
    return (network.store() - start).astype(np.float64), -LEARNING_RATE * wanted


def test_the_proximal_term_comes_after_the_noise_and_is_not_clipped() -> None:
    np.testing.assert_allclose(*proximal_step(before_the_clip=False), atol=1e-4)


def test_a_proximal_term_under_the_clip_is_found_out() -> None:
    made, wanted = proximal_step(before_the_clip=True)
    assert np.linalg.norm(made - wanted) > 0.5 * np.linalg.norm(wanted)


def test_weight_decay_comes_after_the_noise() -> None:
    network, noise = built(TASK), Noise(0.1)
    start, wanted = network.store().astype(np.float64), clipped(network)
    train(private(), network, noise, optimizer=SgdOptimizer(weight_decay=0.7))
    step = -LEARNING_RATE * ((wanted + noise.drawn[0]) / PATIENTS + 0.7 * start)
    np.testing.assert_allclose(network.store() - start, step, atol=1e-5)


def test_a_refused_charge_leaves_the_last_finished_step() -> None:
    stopped, finished = built(TASK), built(TASK)
    with pytest.raises(BudgetError):
        train(private(), stopped, Noise(0.1, allowed=2), steps=5)
    train(private(), finished, Noise(0.1), steps=2)
    np.testing.assert_array_equal(stopped.store(), finished.store())


def test_steps_are_reported_and_noise_is_drawn_once_a_step() -> None:
    network, noise, seen = built(TASK), Noise(0.1), []
    optimizer = SgdOptimizer().build(network.parameters, 0.1)
    rng = np.random.default_rng(0)
    private().train(context(network, 3), [], optimizer, noise, rng, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)] and len(noise.drawn) == 3


def test_a_rule_with_its_own_loss_is_refused() -> None:
    network = built(TASK)
    with pytest.raises(StudyError, match=r"local\.rules\.distillation"):
        train(private(), network, Noise(), rules=[plugin(RULES, "distillation")])


def test_noise_that_is_no_vector_of_the_models_size_is_refused() -> None:
    network = built(TASK)
    start = network.store()
    for wrong in (lambda size: np.zeros(size - 1), lambda size: np.full(size, np.nan), lambda size: np.zeros(1)):
        with pytest.raises(RunError, match="noise"):
            private().train(
                context(network), [], SgdOptimizer().build(network.parameters, 0.1), wrong, np.random.default_rng(0)
            )
    np.testing.assert_array_equal(network.store(), start)


def test_all_faults_are_named() -> None:
    good = private()
    with pytest.raises(StudyError) as caught:
        PrivateSgd(good.engine, good.sampler, 0.0, float("nan"))
    assert len(caught.value.faults) == 2


def test_a_share_is_the_clipped_sum_itself() -> None:
    network = built(TASK)
    start, wanted = network.store(), clipped(network)
    found = private(0.25, everyone).share(network, np.random.default_rng(0))
    assert found.dtype == np.float32 and found.shape == (network.layout.size,)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_array_equal(network.store(), start)
    assert not private(0.25, nobody).share(network, np.random.default_rng(0)).any()
    coarse = private(0.25, everyone).share(network, np.random.default_rng(0), CLIP / 1024) * (1024 / CLIP)
    np.testing.assert_allclose(coarse, np.rint(coarse), atol=1e-3)


def test_rejected_patients_are_told_to_the_site(caplog: pytest.LogCaptureFixture) -> None:
    made, network = private(), built(TASK)
    data: Any = made.sampler._samples
    data.arrays["image"][2, 0, 0, 0] = np.nan
    data.arrays["image"][6, 0, 0, 0] = np.inf
    train(made, network, Noise())
    assert np.isfinite(network.store()).all()
    assert "2 patients counted as 0" in caplog.text


def test_segmentation_trains_privately() -> None:
    task = unet()
    rng = np.random.default_rng(0)
    data = PatientImages(
        {
            "image": rng.random((4, 1, 9, 9), dtype=np.float32),
            "label": rng.integers(0, 2, (4, 9, 9)).astype(np.uint8),
        },
        ["a", "b", "b", "c"],
    )
    network = built(task)
    start = network.store()
    sampler = PatientSampler(data, PatientIndex.of(data), Sampling(1.0))
    made = PrivateSgd(Loop(task, CPU), sampler, 1.0, 3)
    optimizer = SgdOptimizer().build(network.parameters, 0.1)
    made.train(context(network, 2), [], optimizer, Noise(0.01), np.random.default_rng(0))
    moved = network.store() - start
    assert np.isfinite(moved).all() and 0 < np.linalg.norm(moved) <= 0.1 * 2 * (1 + 0.01 * len(moved) ** 0.5)
