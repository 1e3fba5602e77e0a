"""All engines give the gradients that autograd gives, and the choice among them refuses those that would not."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys.parts import CPU
from toys.patients import autograd, built, images, retina_net, se_resnet, spoiled, unet
from toys.tasks import Classifier

from medfl.errors import StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients import vectorised
from medfl.learning.patients.base import PatientBatch, PatientEngine
from medfl.learning.patients.choice import choose, fault
from medfl.learning.patients.loop import Loop
from medfl.learning.patients.vectorised import Opacus, Vectorised, Vmap
from medfl.tasks.base import Task

COUNTS = [1, 3, 1, 2, 1]
SEPARABLE = [
    pytest.param(se_resnet(), id="se-resnet group"),
    pytest.param(unet(), id="unet 2d instance"),
    pytest.param(unet(network={"norm": "group"}), id="unet 2d group"),
    pytest.param(unet(3), id="unet 3d instance"),
]


def engine(kind: type[PatientEngine], task: Task) -> Any:
    if kind is Opacus:
        pytest.importorskip("opacus")
    return kind(task, CPU)


def gradients(made: PatientEngine, network: FlatNetwork, batches: Iterable[PatientBatch]) -> Tensor:
    return torch.cat([rows.clone() for rows in made.gradients(network, batches)])


def size_of(task: Task) -> int:
    return 8 if task.config.spatial_dims == 3 else 12


@pytest.mark.parametrize("kind", [Loop, Vmap, Opacus])
@pytest.mark.parametrize("task", SEPARABLE)
def test_gradients_are_autograds(task: Task, kind: type[PatientEngine]) -> None:
    network, batches = built(task), images(task, COUNTS, size_of(task))
    found = gradients(engine(kind, task), network, batches).numpy()
    wanted = np.stack([autograd(task, network, batch) for batch in batches])
    # single precision: a ReLU at its kink may fall to either side
    np.testing.assert_array_less(np.linalg.norm(found - wanted, axis=1), 5e-3 * np.linalg.norm(wanted, axis=1))


@pytest.mark.parametrize("kind", [Vmap, Opacus])
@pytest.mark.parametrize("task", SEPARABLE)
def test_accelerators_are_valid_for_separable_losses(task: Task, kind: type[Vectorised]) -> None:
    network = built(task)
    assert fault(engine(kind, task), network, images(task, COUNTS, size_of(task))) is None


@pytest.mark.parametrize("kind", [Loop, Vmap, Opacus])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_unreadable_image_spoils_no_other(kind: type[PatientEngine], bad: float) -> None:
    task = se_resnet()
    network, batches = built(task), images(task, COUNTS)
    made = engine(kind, task)
    found = made.clipped_sum(network, [spoiled(batches[0], bad), *batches[1:]], 0.1)
    without = made.clipped_sum(network, batches[1:], 0.1)
    assert (found.patients, found.rejected) == (4, 1)
    np.testing.assert_allclose(found.total, without.total, atol=1e-6)


@pytest.mark.parametrize("kind", [Loop, Vmap, Opacus])
def test_nobody_drawn_is_a_sum_of_zeros(kind: type[PatientEngine]) -> None:
    task = se_resnet()
    network = built(task)
    found = engine(kind, task).clipped_sum(network, iter(()), 1.0)
    assert found.total.shape == (network.layout.size,) and not found.total.any()
    assert (found.patients, found.clipped, found.rejected) == (0, 0, 0)


@pytest.mark.parametrize(("images_", "bytes_"), [(1, 2**28), (4, 2**28), (64, 1)])
def test_chunks_of_any_size_give_the_same_sum(monkeypatch: pytest.MonkeyPatch, images_: int, bytes_: int) -> None:
    task = se_resnet()
    network, batches = built(task), images(task, [1, 1, 3, 1, 2, 1, 7])
    whole = Vmap(task, CPU).clipped_sum(network, batches, 0.1)
    monkeypatch.setattr(vectorised, "MOST_IMAGES", images_)
    monkeypatch.setattr(vectorised, "GRADIENT_BYTES", bytes_)
    parts = Vmap(task, CPU).clipped_sum(network, batches, 0.1)
    np.testing.assert_allclose(parts.total, whole.total, atol=1e-6)
    assert parts.patients == whole.patients == 7


def test_patients_whose_images_differ_in_shape_are_summed_too() -> None:
    task = unet()
    small, large = images(task, [1, 1], 8), images(task, [1, 2], 12)
    both = {name: [*small[0].arrays[name], *large[0].arrays[name]] for name in ("image", "label")}
    batches = [small[0], PatientBatch(both), large[1], small[1]]
    network = built(task)
    found = gradients(Vmap(task, CPU), network, batches)
    np.testing.assert_allclose(found, gradients(Loop(task, CPU), network, batches), rtol=1e-3, atol=1e-5)


def traces(network: FlatNetwork) -> Any:
    parts = {name: (type(part), sorted(part.__dict__)) for name, part in network.module.named_modules()}
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in network.module.modules()]
    on_parameters = [sorted(parameter.__dict__) for parameter in network.module.parameters()]
    places = [parameter.data_ptr() for parameter in network.module.parameters()]
    return parts, hooks, on_parameters, places, network.store().tobytes(), network.module.training


@pytest.mark.parametrize("kind", [Loop, Vmap, Opacus])
@pytest.mark.parametrize("task", [se_resnet(), unet()])
def test_the_network_is_left_as_it_was(task: Task, kind: type[PatientEngine]) -> None:
    network = built(task)
    before = traces(network)
    engine(kind, task).clipped_sum(network, images(task, COUNTS), 1.0)
    assert traces(network) == before
    assert all("_module" not in name for name, _ in network.module.named_parameters())
    gradient = network.gradient.fill_(3.0)
    assert all(bool((p.grad == 3).all()) for p in network.module.parameters() if p.grad is not None)
    assert gradient.data_ptr() == next(network.module.parameters()).grad.data_ptr()  # type: ignore[union-attr]


class Sequentially(Loop):
    """Wrong: what is drawn at random for a patient depends on who came before."""

    def gradients(self, network: FlatNetwork, batches: Iterable[PatientBatch]) -> Iterator[Tensor]:
        torch.manual_seed(0)
        for batch in batches:
            network.gradient.zero_()
            arrays = self.task.to_device(batch.arrays, self.device)
            self.task.loss(network.module, arrays).backward()  # type: ignore[no-untyped-call]
            yield network.gradient[None]


@pytest.mark.parametrize(("kind", "apart"), [(Loop, True), (Sequentially, False)])
def test_patients_of_a_retina_net_do_not_reach_each_other(kind: type[Loop], apart: bool) -> None:
    """The sum is the sum of its parts, bit for bit, although the loss samples anchors at random."""
    task = retina_net(class_loss="bce_hard_negative", sampler={"samples": 8, "min_negatives": 4})
    network, made = built(task), kind(task, CPU)
    batches = images(task, [1, 2, 1], 24)
    whole = made.clipped_sum(network, batches, 0.1)
    assert (whole.patients, whole.rejected) == (3, 0) and whole.total.norm() > 0
    parts = made.clipped_sum(network, batches[1:], 0.1).units + made.clipped_sum(network, batches[:1], 0.1).units
    assert torch.equal(whole.units, parts) is apart


def test_a_diverged_retina_net_rejects_patients_rather_than_stopping() -> None:
    task = retina_net()
    network, batches = built(task), images(task, [1, 1], 24)
    found = Loop(task, CPU).clipped_sum(network, [spoiled(batches[0], np.nan), batches[1]], 0.1)
    assert (found.patients, found.rejected) == (1, 1)
    assert torch.equal(found.total, Loop(task, CPU).clipped_sum(network, batches[1:], 0.1).total)


@pytest.mark.parametrize("kind", [Vmap, Opacus])
@pytest.mark.parametrize("task", [retina_net(), unet(batch_dice=True), unet(3, batch_dice=True)])
def test_losses_that_mix_images_are_refused_in_words(task: Task, kind: type[Vectorised]) -> None:
    made = engine(kind, task)
    reason = fault(made, built(task), images(task, [1, 1, 2], 24 if task.config.kind == "detection" else 8))
    assert reason is not None and "not separable" in reason


class Odd(Classifier):
    """A classifier around a layer that some engine cannot take."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__(6)
        self.layer = layer

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), self.layer(), nn.Linear(5, 2))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return F.relu_(x)


class Centred(nn.Module):
    """Mixes the samples of a batch, as BatchNorm does."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def rows(counts: list[int], seed: int = 0) -> list[PatientBatch]:
    rng = np.random.default_rng(seed)
    return [
        PatientBatch({"features": rng.normal(size=(n, 6)).astype(np.float32), "targets": rng.integers(0, 2, n)}, n)
        for n in counts
    ]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_network_is_left_as_it_was_by_an_engine_that_fails(where: str) -> None:
    task, batch = (retina_net(), images(retina_net(), [2], 16)[0])
    if where == "backward":
        task, batch = Odd(InPlace), rows([2])[0]
    network, opacus = built(task), engine(Opacus, task)
    before = traces(network)
    with pytest.raises((ValueError, RuntimeError)):
        opacus.per_sample(network.module, task.to_device(batch.arrays, CPU))
    assert traces(network) == before


@pytest.mark.parametrize(
    ("kind", "layer", "words"),
    [
        (Opacus, InPlace, "acts in place"),
        (Opacus, Centred, "not separable"),
        (Vmap, Centred, "not separable"),
        (Opacus, Dropping, ""),
        (Vmap, Dropping, ""),
    ],
)
def test_layers_that_an_engine_cannot_take_are_refused(
    kind: type[Vectorised], layer: type[nn.Module], words: str
) -> None:
    task = Odd(layer)
    reason = fault(engine(kind, task), built(task), rows([2, 3]))
    assert reason is not None and words in reason


def test_an_in_place_activation_is_no_obstacle_where_nothing_is_saved_by_hooks() -> None:
    task = Odd(InPlace)
    assert fault(Vmap(task, CPU), built(task), rows([2, 3])) is None


class Halved(Vmap):
    """Wrong by a factor."""

    def per_sample(self, module: nn.Module, batch: Any) -> list[Tensor]:
        return [found / 2 for found in super().per_sample(module, batch)]


class Averaged(Vmap):
    """Wrong: every sample gets the mean gradient of the batch."""

    def per_sample(self, module: nn.Module, batch: Any) -> list[Tensor]:
        return [found.mean(0, keepdim=True).expand_as(found) for found in super().per_sample(module, batch)]


@pytest.mark.parametrize("wrong", [Halved, Averaged])
def test_an_engine_with_wrong_gradients_is_found_out(wrong: type[Vectorised]) -> None:
    task = se_resnet()
    reason = fault(wrong(task, CPU), built(task), images(task, [1, 1]))
    assert reason is not None and "differ from the loop's" in reason


def test_auto_takes_the_accelerator_where_it_is_valid_and_says_why_not() -> None:
    def chosen(task: Task, size: int = 12, counts: list[int] = [1, 1]) -> tuple[str, str]:  # noqa: B006
        made, reason = choose("auto", built(task), task, images(task, counts, size))
        return made.name, reason

    assert chosen(se_resnet())[0] == "vmap"
    assert chosen(unet(3), 8)[0] == "vmap"
    assert chosen(unet(batch_dice=True), counts=[2, 2]) == ("loop", chosen(unet(batch_dice=True), counts=[2, 2])[1])
    assert "not separable" in chosen(unet(batch_dice=True))[1]
    assert "size" in chosen(se_resnet(), 96)[1]
    assert "two patients" in chosen(se_resnet(), counts=[4])[1]
    assert chosen(retina_net(), 24)[0] == "loop"


def test_a_named_engine_is_used_or_refused() -> None:
    pytest.importorskip("opacus")
    task = se_resnet()
    examples = images(task, [1, 1])
    assert [choose(name, built(task), task, examples)[0].name for name in ("loop", "vmap", "opacus")] == [
        "loop",
        "vmap",
        "opacus",
    ]
    mixed = unet(batch_dice=True)
    with pytest.raises(StudyError, match="opacus is not valid here: the loss is not separable"):
        choose("opacus", built(mixed), mixed, images(mixed, [1, 1]))


def test_opacus_is_asked_for_by_name_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.grad_sample.grad_sample_module", None)
    with pytest.raises(StudyError, match=r"pip install 'medfl\[dp\]'"):
        Opacus(se_resnet(), CPU)


def test_the_check_leaves_network_and_randomness_alone() -> None:
    task = se_resnet()
    network = built(task)
    torch.manual_seed(7)
    before, state = traces(network), torch.random.get_rng_state()
    choose("auto", network, task, images(task, [1, 1]))
    assert traces(network) == before and torch.equal(torch.random.get_rng_state(), state)
