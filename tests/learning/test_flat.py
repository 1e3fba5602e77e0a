"""The network over one flat tensor: views stay views, buffers are refused, the weights are the layout's."""

import numpy as np
import pytest
import torch
from torch import nn
from toys.tasks import Classifier

from medfl.errors import RunError, StudyError
from medfl.learning.flat import FlatNetwork, initial_vector, seeded
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer, clip_gradient

CPU = torch.device("cpu")
X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Net(nn.Module):
    """Linear layers and a group norm; one weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = nn.GroupNorm(2, 8)
        self.tied = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.tied.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.tanh(self.tied(self.norm(self.first(x)))))


def flat() -> FlatNetwork:
    return FlatNetwork(seeded(Net, 0), CPU)


def is_view(network: FlatNetwork) -> bool:
    """Whether every parameter and gradient still lies where the layout says."""
    start, slope = network.parameters.data_ptr(), network.gradient.data_ptr()
    for (name, parameter), slot in zip(network.module.named_parameters(), network.layout.slots, strict=True):
        if name != slot.name or parameter.grad is None:
            return False
        if parameter.data_ptr() != start + 4 * slot.offset or parameter.grad.data_ptr() != slope + 4 * slot.offset:
            return False
    return True


def backward(network: FlatNetwork) -> None:
    network.module(X).square().mean().backward()


def test_flattening_keeps_the_network() -> None:
    plain, moved = seeded(Net, 0), flat()
    torch.testing.assert_close(moved.module(X), plain(X), rtol=0, atol=0)
    assert moved.layout.size == sum(parameter.numel() for parameter in plain.parameters())
    packed = moved.layout.pack({name: value.detach().numpy() for name, value in plain.named_parameters()})
    np.testing.assert_array_equal(moved.store(), packed)


@pytest.mark.parametrize("optimizer", [SgdOptimizer(momentum=0.9), AdamOptimizer(weight_decay=0.1)])
def test_views_stay_views(optimizer: SgdOptimizer | AdamOptimizer) -> None:
    network = flat()
    built = optimizer.build(network.parameters, 0.1)
    for _ in range(3):
        network.gradient.zero_()
        backward(network)
        clip_gradient(network.gradient, 1.0)
        built.step()
        assert is_view(network)
    network.load(np.zeros(network.layout.size, np.float32))
    assert is_view(network) and not network.module(X).any()


@pytest.mark.parametrize(
    "optimizer",
    [
        SgdOptimizer(momentum=0.9, weight_decay=0.01),
        SgdOptimizer(momentum=0.9, nesterov=True),
        AdamOptimizer(weight_decay=0.01),
        AdamOptimizer(beta1=0.5, beta2=0.9),
    ],
    ids=repr,
)
def test_flat_training_equals_training_by_tensor(optimizer: SgdOptimizer | AdamOptimizer) -> None:
    network, plain = flat(), seeded(Net, 0)
    built = optimizer.build(network.parameters, 0.05)
    if isinstance(optimizer, SgdOptimizer):
        other: torch.optim.Optimizer = torch.optim.SGD(
            plain.parameters(), 0.05, 0.9, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay
        )
    else:
        betas = optimizer.beta1, optimizer.beta2
        other = torch.optim.AdamW(plain.parameters(), 0.05, betas, weight_decay=optimizer.weight_decay)
    for _ in range(5):
        network.gradient.zero_()
        backward(network)
        built.step()
        other.zero_grad()
        plain(X).square().mean().backward()
        other.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(dict(network.module.named_parameters())[name], value, rtol=1e-6, atol=1e-7)


def test_the_gradient_survives_being_dropped() -> None:
    """As zero_grad of torch's optimisers does, which rules may bring."""
    network = flat()
    built = SgdOptimizer().build(network.parameters, 0.1)
    network.parameters.grad = None
    network.gradient.zero_()
    backward(network)
    before = network.store()
    built.step()
    assert network.gradient.any() and (network.store() != before).any() and is_view(network)


def test_load_and_store_copy() -> None:
    network = flat()
    vector = network.store()
    kept = vector.copy()
    network.load(vector)
    vector[:] = 3
    np.testing.assert_array_equal(network.store(), kept)
    stored = network.store()
    network.load(np.zeros_like(stored))
    np.testing.assert_array_equal(stored, kept)


def test_load_takes_read_only_memory_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    network = flat()
    vector = np.frombuffer(np.arange(network.layout.size, dtype=np.float32).tobytes(), np.float32)
    network.load(vector)
    np.testing.assert_array_equal(network.store(), vector)
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(1,), (3,), ()])
def test_a_vector_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    network = flat()
    before = network.store()
    with pytest.raises(RunError, match="values"):
        network.load(np.ones(shape, np.float32))
    np.testing.assert_array_equal(network.store(), before)


def test_buffers_are_refused_by_name() -> None:
    with pytest.raises(StudyError, match=r"1\.running_mean") as caught:
        FlatNetwork(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), CPU)
    assert "GroupNorm" in str(caught.value)


def test_the_vector_is_float32_whatever_torch_defaults_to() -> None:
    module = seeded(Net, 0)
    torch.set_default_dtype(torch.float64)
    try:
        network = FlatNetwork(module, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert network.parameters.dtype == torch.float32 and network.store().dtype == np.float32


def test_seeded_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seeded(Net, 1)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_initial_vector_depends_on_the_seed_alone() -> None:
    task = Classifier(4, 3)
    first, layout = initial_vector(task, 7)
    torch.rand(5)
    again, _ = initial_vector(task, 7)
    other, _ = initial_vector(task, 8)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (layout.size,) and (first != other).any()


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_gradient_bounds_the_norm(limit: float) -> None:
    gradient = torch.arange(10, dtype=torch.float32)
    before = gradient.clone()
    clip_gradient(gradient, limit)
    expected = before * min(1.0, limit / float(before.norm()))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_views_stay_views_on_a_gpu() -> None:
    network = FlatNetwork(seeded(Net, 0), torch.device("cuda"))
    built = AdamOptimizer().build(network.parameters, 0.1)
    network.gradient.zero_()
    network.module(X.cuda()).square().mean().backward()
    built.step()
    assert is_view(network) and network.store().dtype == np.float32
