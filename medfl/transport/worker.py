"""A worker of a pool: a SiteHost at the far end of a link."""

import signal
import time
from collections.abc import Sequence
from typing import Protocol

from medfl.errors import MedflError
from medfl.study.sources import RunInputs, assign_cases
from medfl.transport.host import SiteHost
from medfl.transport.serving import Serving, error_json, info_json, trained
from medfl.update.wire import Buffer, pack_arrays, parts, unpack

_PROGRESS_SECONDS = 0.2


class Channel(Protocol):
    """The worker's end of its link: a pipe's end, or what looks like one."""

    def send_bytes(self, message: bytes, /) -> None: ...

    def recv_bytes(self) -> bytes: ...


def run(connection: Channel, inputs_json: str, sites: Sequence[str]) -> None:
    """What a worker process does."""
    # Ctrl-C reaches the whole group; the parent decides what ends when
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(connection, inputs_json, sites)


def serve(connection: Channel, inputs_json: str, sites: Sequence[str]) -> None:
    """Serve orders until told to stop or until the parent is gone."""
    import torch

    torch.set_num_threads(1)
    try:
        inputs = RunInputs.model_validate_json(inputs_json)
        cases = assign_cases(inputs).cases
        host = SiteHost(inputs, {name: cases[name] for name in sites})
        infos = host.open()
        _send(connection, parts({"answer": "open", "sites": [info_json(info) for info in infos]}))
        _Loop(connection, host).run()
    except MedflError as error:
        _send(connection, parts(error_json(error)))
    except (EOFError, ConnectionError):
        # the parent is gone or is stopping: there is nobody left to tell
        return


class _Loop:
    def __init__(self, connection: Channel, host: SiteHost) -> None:
        self._connection = connection
        self._serving = Serving(host)

    def run(self) -> None:
        while True:
            header, buffers = unpack(self._connection.recv_bytes())
            action = header.pop("do")
            if action == "stop":
                return
            if action == "train":
                reply, state = self._serving.train(header, buffers, _Ticker(self._connection))
                answer: list[Buffer] | None = trained(reply, b"".join(pack_arrays({}, state)))
            else:
                answer = self._serving.answer(action, header, buffers)
            if answer is not None:
                _send(self._connection, answer)


class _Ticker:
    """Reports steps to the parent, a few times a second."""

    def __init__(self, connection: Channel) -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, done: int, steps: int) -> None:
        now = time.monotonic()
        if done == steps or now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            _send(self._connection, parts({"answer": "progress", "done": done, "steps": steps}))


def _send(connection: Channel, pieces: Sequence[Buffer]) -> None:
    connection.send_bytes(b"".join(pieces))
