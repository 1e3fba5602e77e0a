"""Sites in actors of Ray (extra `ray`), on this machine or on a cluster whose machines see the same images.

For simulations alone: Ray ships what it runs as pickles between its own processes, and whoever reaches its ports may
run code. What medfl sends through it is bytes in the format of `medfl.update.wire`.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from medfl.data.base import Case
from medfl.errors import InputError, RunError
from medfl.study.sources import RunInputs
from medfl.transport.pool import Link, Pool, shared_out
from medfl.update.wire import unpack


class RayActors(Pool):
    """address: of a running cluster; None starts Ray on this machine for as long as the run lasts."""

    def __init__(
        self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]], workers: int, address: str | None = None
    ) -> None:
        self._ray = ray = _ray()
        self._owned = not ray.is_initialized()
        if self._owned:
            _start(ray, address, workers)
        actor = ray.remote(num_cpus=1, max_restarts=0)(Actor)
        text = inputs.model_dump_json()
        try:
            super().__init__(shared_out(cases, workers), lambda names, _: _ActorLink(ray, actor, text, names), _ready)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        if self._owned and self._ray.is_initialized():
            self._ray.shutdown()


def _ray() -> Any:
    # before Ray is imported: nothing is told to its makers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # actors that hold no GPU keep the variables that they were given
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError.at("--engine ray", "needs Ray, which is not installed", "pip install 'medfl[ray]'") from error
    return ray


def _start(ray: Any, address: str | None, workers: int) -> None:
    local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=True, logging_level=logging.WARNING, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = "check --ray-address, and that the cluster runs the same versions"
        raise RunError.at(f"Ray at {address or 'this machine'}", f"cannot be used: {error}", remedy) from error


class _Ends:
    """A worker's end of its link, inside an actor."""

    def __init__(self) -> None:
        self.orders: SimpleQueue[bytes] = SimpleQueue()
        self.answers: SimpleQueue[bytes | None] = SimpleQueue()

    def send_bytes(self, message: bytes, /) -> None:
        self.answers.put(message)

    def recv_bytes(self) -> bytes:
        return self.orders.get()


class Actor:
    """What Ray runs: a worker in a thread of its own, which lasts as long as the actor."""

    def __init__(self, inputs_json: str, sites: Sequence[str]) -> None:
        self._ends = _Ends()
        threading.Thread(target=self._serve, args=(inputs_json, sites), daemon=True).start()

    def _serve(self, inputs_json: str, sites: Sequence[str]) -> None:
        from medfl.transport.worker import serve

        try:
            serve(self._ends, inputs_json, sites)
        finally:
            self._ends.answers.put(None)

    def opened(self) -> Iterator[bytes]:
        """What the worker says first."""
        yield from self._answers()

    def ask(self, message: bytes) -> Iterator[bytes]:
        """The answers to a message: how far it is, and the last one."""
        self._ends.orders.put(message)
        if unpack(message)[0]["do"] != "restore":
            yield from self._answers()

    def _answers(self) -> Iterator[bytes]:
        while True:
            answer = self._ends.answers.get()
            if answer is None:
                raise RuntimeError("the worker ended; its own message stands in Ray's log")
            yield answer
            if unpack(answer)[0].get("answer") != "progress":
                return


class _ActorLink(Link):
    """One actor, and the answers that it is about to give."""

    def __init__(self, ray: Any, actor: Any, inputs_json: str, sites: Sequence[str]) -> None:
        self.name = f"Ray actor for {', '.join(sites)}"
        self.ray = ray
        self._actor = actor.remote(inputs_json, tuple(sites))
        self._ask = self._actor.ask.options(num_returns="streaming")
        self.answers = self._actor.opened.options(num_returns="streaming").remote()

    def send(self, message: bytes) -> None:
        self.answers = self._ask.remote(message)

    def receive(self) -> bytes:
        try:
            return bytes(self.ray.get(next(self.answers)))
        except (self.ray.exceptions.RayError, StopIteration) as error:
            remedy = "if memory ran out use fewer --workers; go on with --resume"
            why = str(error).partition("\n")[0] or type(error).__name__
            raise RunError.at(self.name, f"ended: {why}", remedy) from error

    def close(self) -> None:
        if self.ray.is_initialized():
            self.ray.kill(self._actor)


def _ready(links: Sequence[Link]) -> Sequence[Link]:
    waiting = {link.answers: link for link in links if isinstance(link, _ActorLink)}
    ray = next(iter(waiting.values())).ray
    ready, _ = ray.wait(list(waiting), num_returns=1)
    return [waiting[answers] for answers in ready]
