"""Hyperparameter contract: a number that a study may fix or let move (local epochs, learning rate, FedProx mu).

The coordinator asks `value()` before a round, sends it with the order and calls `update()` after the round, so no
algorithm has to know that its number moves. A plain number in a study means `constant`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from medfl.plugins import Plugin, PluginConfig, PluginPoint


@dataclass(frozen=True, slots=True)
class Progress:
    """What a round tells the hyper-parameters.

    round: number of the finished round, from 1. loss: mean training loss at the start of the round over the round's
    admitted sites, weighted by cases; NaN when no site was admitted.
    """

    round: int
    loss: float


class HyperparameterConfig(PluginConfig):
    """Marks a configuration field as a hyper-parameter, so that the coordinator finds it. Trait "by-loss": it moves
    with the sites' training losses."""

    def lowest(self) -> float | None:
        """The smallest value it can take; None when that is not known beforehand."""
        return None


class Hyperparameter(Plugin[HyperparameterConfig], ABC):
    @abstractmethod
    def value(self) -> float:
        """The number for the next round."""

    @abstractmethod
    def update(self, progress: Progress) -> None:
        """Take in a finished round."""

    def state(self) -> dict[str, Any]:
        """Everything that moves, JSON-able; `restore` of it continues exactly."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""


class _HyperparameterPoint(PluginPoint):
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            _constant, super().__get_pydantic_core_schema__(source, handler)
        )


def _constant(value: Any) -> Any:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if plain else value


HYPERPARAMETERS = _HyperparameterPoint(
    "hyper-parameter",
    "medfl.hyperparameters",
    {
        "constant": "medfl.hyperparameters.constant:Constant",
        "adacomm": "medfl.hyperparameters.adacomm:AdaComm",
        "loss_driven": "medfl.hyperparameters.loss_driven:LossDriven",
        "cosine": "medfl.hyperparameters.cosine:Cosine",
        "adaptive_mu": "medfl.hyperparameters.adaptive_mu:AdaptiveMu",
        "warmup": "medfl.hyperparameters.warmup:Warmup",
        "growing": "medfl.hyperparameters.growing:Growing",
    },
)


def at_least(config: HyperparameterConfig, limit: float) -> HyperparameterConfig:
    """The configuration itself; ValueError (for pydantic) when its value may fall below `limit`."""
    lowest = config.lowest()
    if lowest is not None and lowest < limit:
        raise ValueError(f"must never be below {limit:g}, and may become {lowest:g}")
    return config


def found_in(prefix: str, config: Any) -> dict[str, HyperparameterConfig]:
    """The hyper-parameters among the fields of a configuration, by dotted name."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    return {f"{prefix}.{name}": value for name, value in fields.items() if isinstance(value, HyperparameterConfig)}
