"""The loss of a federation, smoothed over rounds; shared by the rules that follow it."""

import math
from typing import Any


class SmoothedLoss:
    """Exponential moving average F of the rounds' losses, and its first value F_0.

    decay: weight of the past in [0, 1); 0 takes each round as it is. Rounds without a finite loss change nothing.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.first: float | None = None
        self.current: float | None = None

    def add(self, loss: float) -> bool:
        """Take in a round's loss; False when it is not finite and positive and was left out."""
        if not (math.isfinite(loss) and loss > 0):
            return False
        if self.first is None or self.current is None:
            self.first = self.current = loss
        else:
            self.current = self.decay * self.current + (1 - self.decay) * loss
        return True

    def ratio(self) -> float:
        """F / F_0; 1 before the first round."""
        return 1.0 if self.first is None or self.current is None else self.current / self.first

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "current": self.current}

    def restore(self, state: dict[str, Any]) -> None:
        self.first, self.current = state["first"], state["current"]
