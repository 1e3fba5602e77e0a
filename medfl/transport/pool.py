"""Sites spread over workers that run at the same time, whatever a worker is: a process or an actor of Ray.

This process needs no torch: each worker builds its own network once and serves its sites one after another.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medfl.data.base import Case
from medfl.errors import Fault, Faults, InputError, RunError
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder
from medfl.privacy.channels.base import Message
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Models, Transport, model_for
from medfl.transport.messages import decode_reply, decode_statistics, encode_order, order_header
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import Buffer, pack_arrays, parts, size, unpack, unpack_arrays


class Link(ABC):
    """Goes to one worker. It says first which sites it has opened, and then answers what it is sent."""

    name: str
    """Of the worker, for error messages."""

    @abstractmethod
    def send(self, message: bytes) -> None:
        """OSError when the worker is gone."""

    @abstractmethod
    def receive(self) -> Buffer:
        """The next message, waited for; RunError when the worker is gone."""

    @abstractmethod
    def close(self) -> None:
        """End the worker. May be called more than once."""


@dataclass(eq=False)
class _Job:
    """One order to one worker, with the model it is for; `result` is the worker's answer once it is there."""

    site: str
    message: list[Buffer]
    progress: LocalProgress | None = None
    result: tuple[dict[str, Any], Buffer] | None = None


class Pool(Transport):
    """make: a link to a new worker for these sites, the number-th. wait: those of some links that have a message."""

    def __init__(
        self,
        shares: Sequence[Sequence[str]],
        make: Callable[[Sequence[str], int], Link],
        wait: Callable[[Sequence[Link]], Sequence[Link]],
    ) -> None:
        self._wait = wait
        self._workers = [_Worker(make(names, number), names) for number, names in enumerate(shares) if names]
        self._of = {name: worker for worker in self._workers for name in worker.sites}
        self._submitted: dict[str, tuple[float, TrainOrder, _Job, int]] = {}

    def open(self) -> list[SiteInfo]:
        faults, infos = Faults(), []
        for worker in self._workers:
            try:
                header, _ = worker.receive()
            except InputError as error:
                faults.extend(error.faults)
                continue
            infos += [SiteInfo(**info) for info in header["sites"]]
        faults.raise_if_any(InputError)
        return sorted(infos, key=lambda info: info.name)

    def initial_model(self) -> tuple[FloatVector, Layout]:
        worker = self._workers[0]
        worker.send(parts({"do": "initial"}))
        _, message = worker.receive()
        header, arrays = unpack_arrays(message)
        return arrays["model"].copy(), Layout.from_json(header["layout"])

    def admit(self) -> None:
        faults = Faults()
        for header in self._all({"do": "admit"}):
            faults.extend(Fault(*fault) for fault in header.get("faults", ()))
        faults.raise_if_any(InputError)

    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        answers = self._all({"do": "begin", **asdict(beginning)})
        return {site: LedgerHeads(**found) for answer in answers for site, found in answer["heads"].items()}

    def _all(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of all workers, which work at the same time."""
        for worker in self._workers:
            worker.send(parts(message))
        return [worker.receive()[0] for worker in self._workers]

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        jobs = {}
        for site, message in messages.items():
            header = {"do": "exchange", "site": site, "stage": stage, "message": dict(message.header)}
            jobs[site] = _Job(site, parts(header, message.buffers))
            self._of[site].queue.append(jobs[site])
        answers = {}
        for site, job in jobs.items():
            found, answer = self._finish(job)
            if found["answer"] == "message":
                answers[site] = Message(found["message"], tuple(unpack(answer)[1]))
        return answers

    def train(
        self, orders: Sequence[TrainOrder], models: Models, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        jobs = [_train(order, model_for(models, order.site), progress) for order in orders]
        for job in jobs:
            self._of[job.site].queue.append(job)
        try:
            for order, job in zip(orders, jobs, strict=True):
                down = size(encode_order(order, model_for(models, order.site)))
                yield _delivery(order, *self._finish(job), down)
        finally:
            for job in jobs:
                self._of[job.site].drop(job)

    def submit(self, order: TrainOrder, model: Payload, due: float, progress: LocalProgress | None = None) -> None:
        job, worker = _train(order, model, progress), self._of[order.site]
        self._submitted[order.site] = due, order, job, size(encode_order(order, model))
        worker.queue.append(job)
        worker.start_next()

    def arrival(self, timeout: float) -> Delivery | None:
        """Waits for the answer that is due first, however long that takes: others may be there before it."""
        if not self._submitted:
            return None
        site = min(self._submitted, key=lambda site: (self._submitted[site][0], site))
        _, order, job, down = self._submitted.pop(site)
        return _delivery(order, *self._finish(job), down)

    def recall(self) -> int:
        given_up, self._submitted = self._submitted, {}
        for site, (_, _, job, _) in given_up.items():
            self._of[site].drop(job)
        return len(given_up)

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        jobs = []
        for site, split in requests:
            header = {"do": "evaluate", "site": site, "split": split, "model": model.header()}
            jobs.append(_Job(site, parts(header, model.buffers)))
        for job in reversed(jobs):
            # before what waits: a regulator asks for an evaluation while sites still train
            self._of[job.site].queue.appendleft(job)
        for (site, split), job in zip(requests, jobs, strict=True):
            _, message = self._finish(job)
            _, buffers = unpack(message)
            down = size(encode_order(TrainOrder(site, 0, {}), model))
            yield Evaluation(site, split, decode_statistics(buffers[0]), down, len(buffers[0]))

    def _finish(self, job: _Job) -> tuple[dict[str, Any], Buffer]:
        """Keep all workers busy until this job is done; its answer. Other jobs' answers wait with them."""
        while job.result is None:
            for worker in self._workers:
                worker.start_next()
            busy = {worker.link: worker for worker in self._workers if worker.job is not None}
            for link in self._wait(list(busy)):
                busy[link].take()
        return job.result

    def restore(self, states: Mapping[str, Arrays]) -> None:
        for site, arrays in states.items():
            if site in self._of:
                inner = b"".join(pack_arrays({}, arrays))
                self._of[site].send(parts({"do": "restore", "site": site}, [inner]))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _train(order: TrainOrder, model: Payload, progress: LocalProgress | None) -> _Job:
    header = {"do": "train", **order_header(order, model)}
    return _Job(order.site, parts(header, model.buffers), progress)


def _delivery(order: TrainOrder, header: dict[str, Any], message: Buffer, down: int) -> Delivery:
    if header["answer"] == "failure":
        return Delivery(SiteFailure(order.site, order.round, header["reason"]), down, 0)
    _, (reply, state) = unpack(message)
    return Delivery(decode_reply(reply), down, len(reply), unpack_arrays(state)[1])


class _Worker:
    """One worker as this end sees it: what it does, and what waits for it."""

    def __init__(self, link: Link, sites: Sequence[str]) -> None:
        self.link = link
        self.sites = tuple(sites)
        self.queue: deque[_Job] = deque()
        self.job: _Job | None = None

    def start_next(self) -> None:
        """Send the next waiting job if nothing is running."""
        if self.job is None and self.queue:
            self.job = self.queue.popleft()
            self.send(self.job.message)

    def take(self) -> None:
        """Receive one message of the running job: its progress, or its answer."""
        header, message = self.receive()
        job = self.job
        if job is None:
            raise RunError.at(self.link.name, "answered without being asked")
        if header["answer"] != "progress":
            job.result, self.job = (header, message), None
        elif job.progress is not None:
            job.progress(job.site, header["done"], header["steps"])

    def drop(self, job: _Job) -> None:
        """Forget a job that has not started."""
        if job in self.queue:
            self.queue.remove(job)

    def send(self, pieces: Sequence[Buffer]) -> None:
        self.link.send(b"".join(pieces))

    def receive(self) -> tuple[dict[str, Any], Buffer]:
        """The next message. Re-raises what the worker reports; RunError when it is gone."""
        message = self.link.receive()
        header, _ = unpack(message)
        if header.get("answer") == "error":
            found = (Fault(*fault) for fault in header["faults"])
            raise (InputError if header["input"] else RunError)(*found)
        return header, message

    def close(self) -> None:
        self.link.close()


def shared_out(cases: Mapping[str, Sequence[Case]], workers: int) -> list[list[str]]:
    """Sites over workers so that their cases are about equal; the largest first."""
    shares: list[tuple[int, int, list[str]]] = [(0, number, []) for number in range(workers)]
    for site in sorted(cases, key=lambda name: (-len(cases[name]), name)):
        load, number, names = min(shares)
        names.append(site)
        shares[shares.index((load, number, names))] = load + len(cases[site]) + 1, number, names
    return [names for _, _, names in shares]
