"""A pool of worker processes. Messages go through pipes in medfl's wire format."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait

from medfl.data.base import Case
from medfl.errors import RunError
from medfl.study.sources import RunInputs
from medfl.transport.pool import Link, Pool, shared_out
from medfl.update.wire import parts


class ProcessPool(Pool):
    def __init__(self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]], workers: int) -> None:
        text = inputs.model_dump_json()
        super().__init__(shared_out(cases, workers), lambda names, number: _Pipe(text, names, number), _with_message)


class _Pipe(Link):
    """One worker process and the parent's end of its pipe."""

    def __init__(self, inputs_json: str, sites: Sequence[str], number: int) -> None:
        self.name = f"worker process for {', '.join(sites)}"
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(far, inputs_json, tuple(sites)), name=f"medfl-worker-{number}", daemon=True
        )
        self._process.start()
        far.close()

    def send(self, message: bytes) -> None:
        self.connection.send_bytes(message)

    def receive(self) -> bytes:
        try:
            return self.connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise RunError.at(
                self.name,
                f"ended with code {self._process.exitcode}",
                "its own message may stand above; if memory ran out use fewer --workers; go on with --resume",
            ) from error

    def close(self) -> None:
        if self.connection.closed:
            return
        try:
            self.connection.send_bytes(b"".join(parts({"do": "stop"})))
        except OSError:
            self._process.terminate()
        self.connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _with_message(links: Sequence[Link]) -> Sequence[Link]:
    pipes = {link.connection: link for link in links if isinstance(link, _Pipe)}
    return [pipes[connection] for connection in wait(list(pipes))]  # type: ignore[index]


def _serve(connection: Connection, inputs_json: str, sites: Sequence[str]) -> None:
    # imported here, in the worker: the parent stays free of torch
    from medfl.transport.worker import run

    run(connection, inputs_json, sites)


def worker_count(requested: int | None, sites: int) -> int:
    """Workers for a run: as asked, else one a core, never more than sites."""
    # macOS does not tell which cores a process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(requested or cores, sites))
