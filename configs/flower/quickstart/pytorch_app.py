"""Flower's PyTorch quickstart over medfl's rounds. `Net`, `load_data`, `train` and `test` are what a user has already;
the images are drawn, so that it runs without a download."""

from collections.abc import Mapping

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from medfl.integrations.flower.apps import client_app, server_app


class Net(nn.Module):
    """The quickstart's network: a small CNN in the manner of LeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(functional.relu(self.conv1(images)))
        hidden = self.pool(functional.relu(self.conv2(hidden)))
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        return self.fc3(functional.relu(self.fc2(hidden)))


def load_data(partition: int) -> tuple[DataLoader, DataLoader]:
    torch.manual_seed(partition)
    labels = torch.arange(80) % 10
    images = torch.randn(80, 3, 32, 32) + labels[:, None, None, None] / 3
    data = TensorDataset(images, labels)
    return DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=40)


def train(net: nn.Module, loader: DataLoader, epochs: int, lr: float) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total, steps = 0.0, 0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
    return total / steps


@torch.no_grad()
def test(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    net.eval()
    loss = correct = seen = 0.0
    for images, labels in loader:
        scores = net(images)
        loss += functional.cross_entropy(scores, labels, reduction="sum").item()
        correct += (scores.argmax(1) == labels).sum().item()
        seen += len(labels)
    return loss / seen, correct / seen


# from here on: medfl


def make(_context: Context) -> nn.Module:
    torch.manual_seed(0)
    return Net()


def train_step(net: nn.Module, context: Context) -> tuple[int, Mapping[str, float]]:
    loader, _ = load_data(int(context.node_config.get("partition-id", 0)))
    settings = context.run_config
    loss = train(net, loader, int(settings["local-epochs"]), float(settings["learning-rate"]))
    return len(loader.dataset), {"loss": loss}


def evaluate_step(net: nn.Module, context: Context) -> tuple[int, Mapping[str, float]]:
    _, loader = load_data(int(context.node_config.get("partition-id", 0)))
    loss, accuracy = test(net, loader)
    return len(loader.dataset), {"loss": loss, "accuracy": accuracy}


client = client_app(make, train_step, evaluate_step)
server = server_app(make, {"regulator": [{"kind": "finite"}], "server": {"kind": "sgd"}})
