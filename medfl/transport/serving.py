"""Requests to a `SiteHost` and its answers, as messages: what stands at the far end of every line, whatever it is made
of."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medfl.errors import InputError, MedflError
from medfl.learning.messages import Beginning, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.privacy.channels.base import Message
from medfl.transport.base import Arrays
from medfl.transport.messages import encode_reply, encode_statistics
from medfl.update.base import Payload
from medfl.update.wire import Buffer, pack_arrays, parts, unpack_arrays

if TYPE_CHECKING:
    from medfl.learning.executor import StepDone
    from medfl.transport.host import SiteHost


class Serving:
    """Answers everything but a train request's reply, which those who serve send in their own way."""

    def __init__(self, host: "SiteHost") -> None:
        self.host = host
        self._actions: dict[str, Callable[[dict[str, Any], list[memoryview]], list[Buffer] | None]] = {
            "initial": self._initial,
            "evaluate": self._evaluate,
            "restore": self._restore,
            "admit": self._admit,
            "begin": self._begin,
            "exchange": self._exchange,
        }

    def answer(self, action: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer] | None:
        """The answer to a request; None when none is awaited. Raises what goes wrong."""
        return self._actions[action](header, buffers)

    def train(
        self, header: dict[str, Any], buffers: list[memoryview], step_done: "StepDone"
    ) -> tuple[TrainReply | SiteFailure, Arrays]:
        model = Payload.of(header.pop("model", None), buffers)
        return self.host.train(TrainOrder(**header), model, step_done)

    def _initial(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        vector, layout = self.host.initial_model()
        return pack_arrays({"answer": "initial", "layout": layout.to_json()}, {"model": vector})

    def _evaluate(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        model = Payload.of(header.pop("model", None), buffers)
        statistics = self.host.evaluate(header["site"], header["split"], model)
        return parts({"answer": "statistics"}, [encode_statistics(statistics)])

    def _admit(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        try:
            self.host.admit()
        except InputError as error:
            return parts({"answer": "refused", "faults": error_json(error)["faults"]})
        return parts({"answer": "admitted"})

    def _begin(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        heads = self.host.begin(Beginning(**header))
        return parts({"answer": "begun", "heads": {site: asdict(found) for site, found in heads.items()}})

    def _exchange(self, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        message = Message(header["message"], tuple(buffers))
        answer = self.host.answer(header["site"], header["stage"], message)
        if answer is None:
            return parts({"answer": "silent"})
        return parts({"answer": "message", "message": dict(answer.header)}, answer.buffers)

    def _restore(self, header: dict[str, Any], buffers: list[memoryview]) -> None:
        arrays = {name: array.copy() for name, array in unpack_arrays(buffers[0])[1].items()}
        self.host.restore({header["site"]: arrays})


def trained(answer: TrainReply | SiteFailure, *more: Buffer) -> list[Buffer]:
    """The answer to a train request; `more` follows the reply."""
    if isinstance(answer, SiteFailure):
        return parts({"answer": "failure", "round": answer.round, "reason": answer.reason})
    return parts({"answer": "reply"}, [b"".join(encode_reply(answer)), *more])


def info_json(info: SiteInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "cases": dict(info.cases),
        "skipped": dict(info.skipped),
        "identity": info.identity,
        "shared": dict(info.shared),
    }


def error_json(error: MedflError) -> dict[str, Any]:
    faults = [[fault.where, fault.what, fault.remedy] for fault in error.faults]
    return {"answer": "error", "input": isinstance(error, InputError), "faults": faults}
