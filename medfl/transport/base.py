"""Transport contract: how orders reach sites and answers come back.

The coordinator talks to every implementation in the same way; the same study gives the same model, bit for bit,
over all of them. Answers are yielded in the order of the orders, whatever order they arrive in. Bytes are counted
from the messages that are (or, inside one process, would be) sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from medfl.errors import RunError
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.privacy.channels.base import Message
from medfl.tasks.base import Statistics
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout

Arrays = dict[str, npt.NDArray[Any]]

Models = Payload | Mapping[str, Payload]
"""What the sites of a round are sent: the same, or to each its own."""

LocalProgress = Callable[[str, int, int], None]
"""Called with (site, steps done, steps planned) while a site trains."""


def model_for(models: Models, site: str) -> Payload:
    return models if isinstance(models, Payload) else models[site]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One site's answer. state: its private arrays after the round, kept so that the run can resume; they are the
    site's own and reach no part of the coordinator but the simulation's journal. message, digest: the id of the message
    that brought it and its SHA-256 as hex, where it came from another party's machine."""

    answer: TrainReply | SiteFailure
    down_bytes: int
    up_bytes: int
    state: Arrays = field(default_factory=dict)
    message: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A site's additive statistics on one split."""

    site: str
    split: str
    statistics: Statistics
    down_bytes: int
    up_bytes: int


class Transport(ABC):
    @abstractmethod
    def open(self) -> list[SiteInfo]:
        """Make the sites ready; InputError with the faults of all sites that cannot take part."""

    @abstractmethod
    def initial_model(self) -> tuple[FloatVector, Layout]:
        """The freshly initialised network's vector, from the study's seed."""

    @abstractmethod
    def admit(self) -> None:
        """Ask every site whether its policy allows the study, before anything is written anywhere; InputError with the
        reasons of all that will not take part."""

    @abstractmethod
    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        """Tell every site about the run; the heads of the ledgers of those that have one."""

    @abstractmethod
    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        """One step of the channel's protocol: the answers of the sites that gave one. Why the others did not is
        logged."""

    def retell(self, beginning: Beginning) -> None:  # noqa: B027 (where no process comes anew, none is told)
        """What a site's process that starts later is told in place of what `begin` said."""

    def gather(self, quorum: int) -> Sequence[SiteInfo] | None:
        """Wait until `quorum` sites can be asked to train; all sites that ever joined, or None where nobody comes or
        goes."""
        return None

    @abstractmethod
    def train(
        self, orders: Sequence[TrainOrder], models: Models, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        """Send the model with each order; yield one delivery an order, in their order. `evaluate` may be called
        between two deliveries. Closing the generator gives up the orders that have not started."""

    def submit(self, order: TrainOrder, model: Payload, due: float, progress: LocalProgress | None = None) -> None:
        """Send one order and return at once; for asynchronous studies. A site has one order at a time.

        due: when the answer arrives in a simulation's own time; over a network it comes when it comes. The model's
        bytes stay as they are until the answer is there. RunError when this transport knows no such orders.
        """
        what = f"{type(self).__name__} knows rounds only, and the study is asynchronous"
        raise RunError.at("transport", what, "run it with medfl simulate, or with the coordinator's own service")

    def arrival(self, timeout: float) -> Delivery | None:
        """The next answer to a submitted order; None when there is none after `timeout` seconds, or nothing to wait
        for. In a simulation they come by `due`, then by the sites' names."""
        return None

    def present(self) -> frozenset[str] | None:
        """The sites that can be asked to train now; None where nobody comes or goes."""
        return None

    def recall(self) -> int:
        """Give up every submitted order that has not arrived; how many there were."""
        return 0

    @abstractmethod
    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        """Evaluate the model at each (site, split); yield in this order. What a site that is away or fails would have
        said is left out, and logged."""

    @abstractmethod
    def restore(self, states: Mapping[str, Arrays]) -> None:
        """Give the sites their private arrays back (resume of a simulation)."""

    @abstractmethod
    def close(self) -> None:
        """End every process and connection. May be called more than once."""
