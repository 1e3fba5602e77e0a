"""The worker process of the pool: a SiteHost at the far end of a pipe."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from medfl.errors import InputError, MedflError
from medfl.learning.messages import Beginning, SiteFailure, TrainOrder
from medfl.privacy.channels.base import Message
from medfl.study.sources import RunInputs, assign_cases
from medfl.transport.host import SiteHost
from medfl.transport.messages import encode_reply, encode_statistics
from medfl.update.base import Payload
from medfl.update.wire import Buffer, pack_arrays, parts, unpack, unpack_arrays

_PROGRESS_SECONDS = 0.2


def run(connection: Connection, inputs_json: str, sites: Sequence[str]) -> None:
    """Serve orders until told to stop or until the parent is gone."""
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the parent decides what ends when
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        inputs = RunInputs.model_validate_json(inputs_json)
        cases = assign_cases(inputs).cases
        host = SiteHost(inputs, {name: cases[name] for name in sites})
        infos = host.open()
        _send(connection, parts({"answer": "open", "sites": [_plain(info) for info in infos]}))
        _Loop(connection, host).run()
    except MedflError as error:
        _send(connection, parts(_error(error)))
    except (EOFError, ConnectionError):
        # the parent is gone or is stopping: there is nobody left to tell
        return


class _Loop:
    def __init__(self, connection: Connection, host: SiteHost) -> None:
        self._connection = connection
        self._host = host
        self._actions: dict[str, Callable[[dict[str, Any], list[memoryview]], list[Buffer] | None]] = {
            "initial": self._initial,
            "train": self._train,
            "evaluate": self._evaluate,
            "restore": self._restore,
            "admit": self._admit,
            "begin": self._begin,
            "exchange": self._exchange,
        }

    def run(self) -> None:
        while True:
            message = self._connection.recv_bytes()
            header, buffers = unpack(message)
            action = header.pop("do")
            if action == "stop":
                return
            answer = self._actions[action](header, buffers)
            if answer is not None:
                _send(self._connection, answer)

    def _initial(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        vector, layout = self._host.initial_model()
        return pack_arrays({"answer": "initial", "layout": layout.to_json()}, {"model": vector})

    def _train(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        model = Payload.of(header.pop("model"), buffers)
        answer, state = self._host.train(TrainOrder(**header), model, _Ticker(self._connection))
        if isinstance(answer, SiteFailure):
            return parts({"answer": "failure", "round": answer.round, "reason": answer.reason})
        reply = b"".join(encode_reply(answer))
        return parts({"answer": "reply"}, [reply, b"".join(pack_arrays({}, state))])

    def _evaluate(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        model = Payload.of(header.pop("model"), buffers)
        statistics = self._host.evaluate(header["site"], header["split"], model)
        return parts({"answer": "statistics"}, [encode_statistics(statistics)])

    def _admit(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        try:
            self._host.admit()
        except InputError as error:
            return parts({"answer": "refused", "faults": _error(error)["faults"]})
        return parts({"answer": "admitted"})

    def _begin(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        heads = self._host.begin(Beginning(**header))
        return parts({"answer": "begun", "heads": {site: asdict(found) for site, found in heads.items()}})

    def _exchange(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        message = Message(header["message"], tuple(buffers))
        answer = self._host.answer(header["site"], header["stage"], message)
        if answer is None:
            return parts({"answer": "silent"})
        return parts({"answer": "message", "message": dict(answer.header)}, answer.buffers)

    def _restore(self, header: dict[str, Any], buffers: list[memoryview]) -> None:
        arrays = {name: array.copy() for name, array in unpack_arrays(buffers[0])[1].items()}
        self._host.restore({header["site"]: arrays})


class _Ticker:
    """Reports steps to the parent, a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, done: int, steps: int) -> None:
        now = time.monotonic()
        if done == steps or now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            _send(self._connection, parts({"answer": "progress", "done": done, "steps": steps}))


def _send(connection: Connection, pieces: Sequence[Buffer]) -> None:
    connection.send_bytes(b"".join(pieces))


def _plain(info: Any) -> dict[str, Any]:
    return {"name": info.name, "cases": dict(info.cases), "skipped": dict(info.skipped), "identity": info.identity}


def _error(error: MedflError) -> dict[str, Any]:
    faults = [[fault.where, fault.what, fault.remedy] for fault in error.faults]
    return {"answer": "error", "input": isinstance(error, InputError), "faults": faults}
