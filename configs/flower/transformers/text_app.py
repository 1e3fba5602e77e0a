"""Flower's Hugging Face quickstart over medfl's rounds, offline: a two-layer BERT with random weights in place of a
downloaded one, and drawn token ids in place of a data set. With both installed, swap `make` and `batches`."""

from collections.abc import Iterator, Mapping

import torch
from flwr.app import Context
from torch import Tensor, nn

from medfl.integrations.flower.apps import client_app, server_app

WORDS, LENGTH, EXAMPLES = 64, 12, 64


def make(_context: Context) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(
        BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=2, **sizes)
    )


def batches(partition: int) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(partition)
    words = torch.randint(4, WORDS, (EXAMPLES, LENGTH), generator=draw)
    labels = (words[:, 0] >= WORDS // 2).long()
    yield from zip(words.split(16), labels.split(16), strict=True)


def train_step(model: nn.Module, context: Context) -> tuple[int, Mapping[str, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(context.run_config["learning-rate"]) / 20)
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(int(context.run_config["local-epochs"])):
        for words, labels in batches(int(context.node_config.get("partition-id", 0))):
            optimizer.zero_grad()
            loss = model(input_ids=words, labels=labels).loss
            loss.backward()
            optimizer.step()
    return EXAMPLES, {"loss": loss.item()}


@torch.no_grad()
def evaluate_step(model: nn.Module, context: Context) -> tuple[int, Mapping[str, float]]:
    model.eval()
    partition = int(context.node_config.get("partition-id", 0))
    found = [(model(input_ids=words).logits.argmax(1) == labels).sum().item() for words, labels in batches(partition)]
    return EXAMPLES, {"accuracy": sum(found) / EXAMPLES}


client = client_app(make, train_step, evaluate_step)
server = server_app(make, {"server": {"kind": "sgd"}})
