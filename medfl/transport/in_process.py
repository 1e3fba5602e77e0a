"""All sites in this process, one after another, in one reused network. No bytes are copied to be counted."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial

from medfl.data.base import Case
from medfl.learning.executor import StepDone
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder
from medfl.privacy.channels.base import Message
from medfl.study.sources import RunInputs
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Models, Transport, model_for
from medfl.transport.host import SiteHost
from medfl.transport.messages import encode_order, encode_reply, encode_statistics
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import size


class InProcess(Transport):
    def __init__(self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]]) -> None:
        import torch

        # two threads that share two cores with anything else wait for each other far longer than they compute
        torch.set_num_threads(1)
        self._host = SiteHost(inputs, cases)
        self._submitted: dict[str, tuple[float, TrainOrder, Payload, LocalProgress | None]] = {}

    def open(self) -> list[SiteInfo]:
        return self._host.open()

    def initial_model(self) -> tuple[FloatVector, Layout]:
        return self._host.initial_model()

    def admit(self) -> None:
        self._host.admit()

    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        return self._host.begin(beginning)

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        answers = {site: self._host.answer(site, stage, message) for site, message in messages.items()}
        return {site: answer for site, answer in answers.items() if answer is not None}

    def train(
        self, orders: Sequence[TrainOrder], models: Models, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        for order in orders:
            yield self._train(order, model_for(models, order.site), progress)

    def _train(self, order: TrainOrder, model: Payload, progress: LocalProgress | None) -> Delivery:
        down = size(encode_order(order, model))
        answer, state = self._host.train(order, model, _for_site(order.site, progress))
        up = 0 if isinstance(answer, SiteFailure) else size(encode_reply(answer))
        return Delivery(answer, down, up, state)

    def submit(self, order: TrainOrder, model: Payload, due: float, progress: LocalProgress | None = None) -> None:
        """The site trains when its answer is asked for: nobody can tell the difference."""
        self._submitted[order.site] = due, order, model, progress

    def arrival(self, timeout: float) -> Delivery | None:
        if not self._submitted:
            return None
        site = min(self._submitted, key=lambda site: (self._submitted[site][0], site))
        _, order, model, progress = self._submitted.pop(site)
        return self._train(order, model, progress)

    def recall(self) -> int:
        given_up, self._submitted = len(self._submitted), {}
        return given_up

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        for site, split in requests:
            statistics = self._host.evaluate(site, split, model)
            down = size(encode_order(TrainOrder(site, 0, {}), model))
            yield Evaluation(site, split, statistics, down, len(encode_statistics(statistics)))

    def restore(self, states: Mapping[str, Arrays]) -> None:
        self._host.restore(states)

    def close(self) -> None:
        pass


def _for_site(site: str, progress: LocalProgress | None) -> StepDone | None:
    return None if progress is None else partial(progress, site)
