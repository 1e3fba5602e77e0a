"""The plug-ins of the local step and of the way up over least squares, in float64: for optima that float32 cannot
reach."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update, Upload
from medfl.update.codecs.base import Codec
from medfl.update.gates.base import StandIn
from medfl.update.pipeline import UploadPipeline
from toys.problems import Array, SiteRows, optimum


class Lossless(Codec):
    """Keeps float64."""

    def __init__(self) -> None:
        super().__init__(PluginConfig(kind="lossless"))

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return Payload("lossless", update.size, (np.array(update.dense(), np.float64).tobytes(),))

    def decode(self, payload: Payload, size: int) -> Update:
        return Update(np.frombuffer(payload.buffers[0], np.float64), size)  # type: ignore[arg-type]


@dataclass
class Flat:
    """What rules touch of a network."""

    parameters: torch.Tensor
    gradient: torch.Tensor


@dataclass
class Exact:
    """Rounds of local SGD. batch: rows a step, None for all. share: of the sites that take part in a round."""

    sites: Sequence[SiteRows]
    rules: Sequence[LocalRule]
    way: UploadPipeline
    rate: float
    steps: int = 10
    batch: int | None = None
    share: float = 1.0
    stand_in: StandIn | None = None
    model: Array = field(init=False)
    uploads: int = 0
    bits: int = 0

    def __post_init__(self) -> None:
        self.model = np.zeros(self.sites[0].features.shape[1])
        self.states: list[dict[str, npt.NDArray[Any]]] = [{} for _ in self.sites]
        self.counted = [0] * len(self.sites)
        self.number = 0
        self.rng = np.random.default_rng(5)

    def error(self) -> float:
        """Distance to the optimum of the sites' mean loss, relative."""
        best = optimum(list(self.sites))
        return float(np.linalg.norm(self.model - best) / np.linalg.norm(best))

    def run(self, rounds: int) -> float:
        for _ in range(rounds):
            self.round()
        return self.error()

    def round(self) -> None:
        self.number += 1
        count = max(1, round(self.share * len(self.sites)))
        cohort = sorted(self.rng.choice(len(self.sites), count, replace=False).tolist())
        news = {site: update for site in cohort if (update := self._local(site)) is not None}
        for site in news:
            self.counted[site] = self.number
        if self.stand_in is not None:
            total: Any = sum(news.values()) if news else None
            senders = {str(site): 1.0 for site in news}
            change = self.stand_in.complete(self.model, total, self.number, senders, len(self.sites))
            self.model = self.model if change is None else self.model + change
        elif news:
            self.model = self.model + sum(news.values()) / len(news)

    def _local(self, number: int) -> Array | None:
        rows, flat = (
            self.sites[number],
            Flat(torch.from_numpy(self.model.copy()), torch.zeros(len(self.model)).double()),
        )
        features, targets = torch.from_numpy(rows.features), torch.from_numpy(rows.targets)

        def gradient(chosen: Any, point: torch.Tensor) -> torch.Tensor:
            return features[chosen].T @ (features[chosen] @ point - targets[chosen]) / len(targets[chosen])

        everything = slice(None)
        context: Any = LocalContext(
            site=str(number),
            round=self.number,
            task=None,  # type: ignore[arg-type]
            network=flat,  # type: ignore[arg-type]
            anchor=flat.parameters.clone(),
            local=None,
            state=self.states[number],
            values={"local.learning_rate": self.rate},
            steps=self.steps,
            device=torch.device("cpu"),
            counted=self.counted[number],
            omega=self.way.codec.omega(len(self.model)),
            full_gradient=lambda: gradient(everything, flat.parameters),
        )
        for rule in self.rules:
            rule.begin(context)
        for _ in range(self.steps):
            chosen = everything if self.batch is None else self.rng.integers(0, len(targets), self.batch)
            flat.gradient.copy_(gradient(chosen, flat.parameters))
            context.gradient_at = lambda point, chosen=chosen: gradient(chosen, point)
            for rule in self.rules:
                rule.direction(context)
            flat.parameters.sub_(flat.gradient, alpha=self.rate)
        for rule in self.rules:
            rule.finish(context)
        delta: Any = flat.parameters.numpy() - self.model
        if not isinstance(self.way.codec, Lossless):
            delta = delta.astype(np.float32)
        upload = Upload(str(number), self.number, self.counted[number], self.model)  # type: ignore[arg-type]
        payload = self.way.run(delta, upload, self.states[number], self.rng)
        if payload is None:
            return None
        self.uploads += 1
        self.bits += 8 * sum(len(buffer) for buffer in payload.buffers)
        for rule in self.rules:
            rule.sent(context, lambda: self.way.codec.decode(payload, len(self.model)))
        return np.asarray(self.way.codec.decode(payload, len(self.model)).dense(), np.float64)
