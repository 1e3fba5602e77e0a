"""A number that follows from how many rounds are done and from nothing else: what decays and intervals share."""

from typing import Any

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig, Progress


class ByRound(Hyperparameter):
    """Counts the finished rounds in `_done`; sub-classes say what that means, in `value`."""

    def __init__(self, config: HyperparameterConfig) -> None:
        super().__init__(config)
        self._done = 0

    def update(self, progress: Progress) -> None:
        self._done = progress.round

    def state(self) -> dict[str, Any]:
        return {"done": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = state["done"]
