"""What a site remembers of a run beside its data: its private arrays, what it answered, what it helped to open."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from medfl.errors import RunError
from medfl.learning.checkpoint import EpochStore
from medfl.learning.messages import TrainReply
from medfl.transport.base import Arrays


class SiteMemory(ABC):
    """One site's. key: `order_key`: what was asked, whatever attempt asked it. Replies are kept unsealed: under a
    channel every attempt seals them anew, and under differential privacy they are noised and charged already."""

    @abstractmethod
    def begin(self, run: str) -> None:
        """From now on it is about this run."""

    @abstractmethod
    def reply(self, key: str) -> TrainReply | None:
        """What was answered to this order; None when nothing is known."""

    @abstractmethod
    def state(self, round_: int) -> Arrays:
        """The site's private arrays as they were before a round, and those that last (`LASTING`) as they are now."""

    @abstractmethod
    def keep(self, key: str, reply: TrainReply, state: Arrays) -> None:
        """A round's answer and the arrays after it; durable when this returns. RunError when one that lasts would
        change."""

    @abstractmethod
    def opening(self, round_: int, survivors: tuple[str, ...]) -> None:
        """The site is about to help opening a round's sum of these sites. RunError when it helped with another sum of
        that round, before a restart: two sums of the same updates would show their difference."""

    @abstractmethod
    def answered(self, order: int) -> TrainReply | None:
        """What was answered to the order with this number, where it is still kept."""

    @abstractmethod
    def handing_over(self, order: int, round_: int, told: str) -> None:
        """The update of an order is about to be sealed for a round's sum, whose sites were told `told` (a digest).
        RunError when it was sealed for another before, also before a restart: an update that is in two sums is their
        difference."""

    @property
    @abstractmethod
    def checkpoints(self) -> EpochStore | None:
        """Where a local training is kept while it runs."""


class Transient(SiteMemory):
    """Of a simulation: the journal keeps the arrays, all of which follow the round that it goes on with, and a
    channel's end what it opened."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self._sums: dict[str, Any] = {}

    def begin(self, run: str) -> None:
        self._sums = {}

    def reply(self, key: str) -> None:
        return None

    def state(self, round_: int) -> Arrays:
        return self.arrays

    def keep(self, key: str, reply: TrainReply, state: Arrays) -> None:
        self.arrays = state

    def opening(self, round_: int, survivors: tuple[str, ...]) -> None: ...

    def answered(self, order: int) -> None:
        return None

    def handing_over(self, order: int, round_: int, told: str) -> None:
        require_one_sum(self._sums, order, [round_, told])
        self._sums[str(order)] = [round_, told]

    @property
    def checkpoints(self) -> None:
        return None


def require_one_sum(known: Mapping[str, Any], order: int, wanted: list[Any]) -> None:
    """RunError when the update of an order was sealed for another sum. known: by order, [round, what was told]."""
    before = known.get(str(order), wanted)
    if before != wanted:
        raise RunError.at(
            f"order {order}",
            f"its update was sealed for the sum of round {before[0]}, and is not sealed for another one",
            "ask the site to train again",
        )


Memories = Mapping[str, SiteMemory]
"""By site."""
