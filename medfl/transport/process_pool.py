"""Sites spread over worker processes that run at the same time. Messages go through pipes in medfl's wire format.

The parent process needs no torch: each worker builds its own network once and serves its sites one after another.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from medfl.data.base import Case
from medfl.errors import Fault, Faults, InputError, RunError
from medfl.learning.messages import SiteFailure, SiteInfo, TrainOrder
from medfl.study.sources import RunInputs
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Transport
from medfl.transport.messages import decode_reply, decode_statistics, encode_order
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import Buffer, pack_arrays, parts, size, unpack, unpack_arrays


def send(connection: Connection, pieces: Sequence[Buffer]) -> None:
    connection.send_bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))


class ProcessPool(Transport):
    def __init__(self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]], workers: int) -> None:
        self._workers = [
            _Worker(inputs, names, number) for number, names in enumerate(_shared_out(cases, workers)) if names
        ]
        self._of = {name: worker for worker in self._workers for name in worker.sites}

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
        worker.send({"do": "initial"})
        _, message = worker.receive()
        header, arrays = unpack_arrays(message)
        return arrays["model"].copy(), Layout.from_json(header["layout"])

    def train(
        self, orders: Sequence[TrainOrder], model: Payload, progress: LocalProgress | None = None
    ) -> Iterator[Delivery]:
        jobs = [
            (order.site, {"do": "train", "site": order.site, "round": order.round, "values": dict(order.values)})
            for order in orders
        ]
        down = {order.site: size(encode_order(order, model)) for order in orders}
        for site, header, message in self._run(jobs, model, progress):
            if header["answer"] == "failure":
                yield Delivery(SiteFailure(site, header["round"], header["reason"]), down[site], 0)
                continue
            _, buffers = unpack(message)
            state = unpack_arrays(buffers[1])[1]
            yield Delivery(decode_reply(buffers[0]), down[site], len(buffers[0]), state)

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        jobs = [(site, {"do": "evaluate", "site": site, "split": split}) for site, split in requests]
        for (site, split), (_, _, message) in zip(requests, self._run(jobs, model), strict=True):
            _, buffers = unpack(message)
            down = size(encode_order(TrainOrder(site, 0, {}), model))
            yield Evaluation(site, split, decode_statistics(buffers[0]), down, len(buffers[0]))

    def _run(
        self, jobs: Sequence[tuple[str, dict[str, Any]]], model: Payload, progress: LocalProgress | None = None
    ) -> Iterator[tuple[str, dict[str, Any], Buffer]]:
        """Run the jobs, one at a time a worker; yield (site, header, message) in the order of `jobs`."""
        waiting: dict[_Worker, list[int]] = {}
        for number, (site, _) in enumerate(jobs):
            waiting.setdefault(self._of[site], []).append(number)
        model_message = parts({"do": "model", "model": model.header()}, model.buffers)
        running: dict[Connection, tuple[_Worker, int]] = {}
        for worker, numbers in waiting.items():
            send(worker.connection, model_message)
            running[worker.connection] = worker, worker.start(jobs, numbers)
        finished: dict[int, tuple[str, dict[str, Any], Buffer]] = {}
        for number in range(len(jobs)):
            while number not in finished:
                for connection in wait(list(running)):
                    worker, current = running[connection]  # type: ignore[index]
                    header, message = worker.receive()
                    if header["answer"] == "progress":
                        if progress is not None:
                            progress(jobs[current][0], header["done"], header["steps"])
                        continue
                    finished[current] = jobs[current][0], header, message
                    if waiting[worker]:
                        running[worker.connection] = worker, worker.start(jobs, waiting[worker])
                    else:
                        del running[worker.connection]
            yield finished.pop(number)

    def restore(self, states: Mapping[str, Arrays]) -> None:
        for site, arrays in states.items():
            if site in self._of:
                inner = b"".join(pack_arrays({}, arrays))
                send(self._of[site].connection, parts({"do": "restore", "site": site}, [inner]))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    """One worker process and the parent's end of its pipe."""

    def __init__(self, inputs: RunInputs, sites: Sequence[str], number: int) -> None:
        self.sites = tuple(sites)
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        text = inputs.model_dump_json()
        self._process = context.Process(
            target=_serve, args=(far, text, self.sites), name=f"medfl-worker-{number}", daemon=True
        )
        self._process.start()
        far.close()

    def start(self, jobs: Sequence[tuple[str, dict[str, Any]]], numbers: list[int]) -> int:
        """Send the first of this worker's waiting jobs; its number."""
        number = numbers.pop(0)
        self.send(jobs[number][1])
        return number

    def send(self, header: dict[str, Any]) -> None:
        send(self.connection, parts(header))

    def receive(self) -> tuple[dict[str, Any], Buffer]:
        """The next message. Re-raises what the worker reports; RunError when it is gone."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise RunError.at(
                f"worker process for {', '.join(self.sites)}",
                f"ended with code {self._process.exitcode}",
                "if the machine ran out of memory use fewer --workers; resume the run with --resume",
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
            self.send({"do": "stop"})
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
    return max(1, min(requested or len(os.sched_getaffinity(0)), sites))
