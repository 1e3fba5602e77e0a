"""Sites spread over worker processes that run at the same time. Messages go through pipes in medfl's wire format.

The parent process needs no torch: each worker builds its own network once and serves its sites one after another.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from medfl.data.base import Case
from medfl.errors import Fault, Faults, InputError, RunError
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder
from medfl.privacy.channels.base import Message
from medfl.study.sources import RunInputs
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Transport
from medfl.transport.messages import decode_reply, decode_statistics, encode_order
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import Buffer, pack_arrays, parts, size, unpack, unpack_arrays


@dataclass(eq=False)
class _Job:
    """One order to one worker, with the model it is for; `result` is the worker's answer once it is there."""

    site: str
    message: list[Buffer]
    progress: LocalProgress | None = None
    result: tuple[dict[str, Any], Buffer] | None = None


class ProcessPool(Transport):
    def __init__(self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]], workers: int) -> None:
        self._workers = [
            _Worker(inputs, names, number) for number, names in enumerate(_shared_out(cases, workers)) if names
        ]
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
        self, orders: Sequence[TrainOrder], model: Payload, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        jobs = [_train(order, model, progress) for order in orders]
        for job in jobs:
            self._of[job.site].queue.append(job)
        try:
            for order, job in zip(orders, jobs, strict=True):
                down = size(encode_order(order, model))
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
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            for connection in wait(list(busy)):
                busy[connection].take()  # type: ignore[index]
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
    header = {"do": "train", **asdict(order), "model": model.header()}
    return _Job(order.site, parts(header, model.buffers), progress)


def _delivery(order: TrainOrder, header: dict[str, Any], message: Buffer, down: int) -> Delivery:
    if header["answer"] == "failure":
        return Delivery(SiteFailure(order.site, order.round, header["reason"]), down, 0)
    _, (reply, state) = unpack(message)
    return Delivery(decode_reply(reply), down, len(reply), unpack_arrays(state)[1])


class _Worker:
    """One worker process and the parent's end of its pipe."""

    def __init__(self, inputs: RunInputs, sites: Sequence[str], number: int) -> None:
        self.sites = tuple(sites)
        self.queue: deque[_Job] = deque()
        self.job: _Job | None = None
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        text = inputs.model_dump_json()
        self._process = context.Process(
            target=_serve, args=(far, text, self.sites), name=f"medfl-worker-{number}", daemon=True
        )
        self._process.start()
        far.close()

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
            raise RunError.at(f"worker process for {', '.join(self.sites)}", "answered without being asked")
        if header["answer"] != "progress":
            job.result, self.job = (header, message), None
        elif job.progress is not None:
            job.progress(job.site, header["done"], header["steps"])

    def drop(self, job: _Job) -> None:
        """Forget a job that has not started."""
        if job in self.queue:
            self.queue.remove(job)

    def send(self, pieces: Sequence[Buffer]) -> None:
        self.connection.send_bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def receive(self) -> tuple[dict[str, Any], Buffer]:
        """The next message. Re-raises what the worker reports; RunError when it is gone."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise RunError.at(
                f"worker process for {', '.join(self.sites)}",
                f"ended with code {self._process.exitcode}",
                "its own message may stand above; if memory ran out use fewer --workers; go on with --resume",
            ) from error
        header, _ = unpack(message)
        if header.get("answer") == "error":
            found = (Fault(*fault) for fault in header["faults"])
            raise (InputError if header["input"] else RunError)(*found)
        return header, message

    def close(self) -> None:
        if self.connection.closed:
            return
        try:
            self.send(parts({"do": "stop"}))
        except OSError:
            self._process.terminate()
        self.connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, inputs_json: str, sites: Sequence[str]) -> None:
    # imported here, in the worker: the parent stays free of torch
    from medfl.transport.worker import run

    run(connection, inputs_json, sites)


def _shared_out(cases: Mapping[str, Sequence[Case]], workers: int) -> list[list[str]]:
    """Sites over workers so that their cases are about equal; the largest first."""
    shares: list[tuple[int, int, list[str]]] = [(0, number, []) for number in range(workers)]
    for site in sorted(cases, key=lambda name: (-len(cases[name]), name)):
        load, number, names = min(shares)
        names.append(site)
        shares[shares.index((load, number, names))] = load + len(cases[site]) + 1, number, names
    return [names for _, _, names in shares]


def worker_count(requested: int | None, sites: int) -> int:
    """Workers for a run: as asked, else one a core, never more than sites."""
    # macOS does not tell which cores a process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(requested or cores, sites))
