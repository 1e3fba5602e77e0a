"""ClientApp and ServerApp for those who come from Flower's quickstarts: their own `train` and `evaluate` over medfl's
rounds, their model as one array.

    # client.py                                          # server.py
    app = client_app(make_model, train, evaluate)        app = server_app(make_model, {"server": {"kind": "adam"}})

make_model(context) -> module; train(module, context) and evaluate(module, context) -> (examples, metrics). Names in the
run's settings: `num-server-rounds` (3), `round-timeout` (3600 s), `min-nodes` (2), `seed` (0), `out` (a .safetensors).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn

from medfl.errors import RunError
from medfl.integrations.flower.modules import layout_of, pack, unpack
from medfl.integrations.flower.rounds import Answer, Rounds, What, build_parts, check_answer
from medfl.update.vector import FloatVector
from medfl.update.wire import as_bytes

log = logging.getLogger(__name__)

Make = Callable[[Context], nn.Module]
Step = Callable[[nn.Module, Context], tuple[int, Mapping[str, float]]]
"""Trains or evaluates; the number of examples, and metrics."""

_ARRAYS, _METRICS, _CONFIG, _MODEL = "arrays", "metrics", "config", "model"
_EXAMPLES = "num-examples"


def client_app(make: Make, train: Step, evaluate: Step | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def _train(message: Message, context: Context) -> Message:
        module = _loaded(make, message, context)
        said = _said(train(module, context))
        return Message(content=RecordDict({_ARRAYS: _record(pack(module)), _METRICS: said}), reply_to=message)

    if evaluate is None:
        return app
    judge = evaluate

    @app.evaluate()  # type: ignore[untyped-decorator]
    def _evaluate(message: Message, context: Context) -> Message:
        said = _said(judge(_loaded(make, message, context), context))
        return Message(content=RecordDict({_METRICS: said}), reply_to=message)

    return app


def _loaded(make: Make, message: Message, context: Context) -> nn.Module:
    module = make(context)
    unpack(module, _vector(message))
    return module


def _said(answer: tuple[int, Mapping[str, float]]) -> MetricRecord:
    examples, metrics = check_answer(*answer)
    return MetricRecord({**metrics, _EXAMPLES: examples})


def server_app(make: Make, federation: Mapping[str, Any] | None = None, evaluate: bool = True) -> ServerApp:
    """federation: the keys of a study's section of that name."""
    parts = federation or {}
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def _main(grid: Grid, context: Context) -> None:
        logging.basicConfig(level=logging.INFO)
        settings = context.run_config
        module = make(context)
        clients = _Clients(grid, float(settings.get("round-timeout", 3600.0)))
        rounds = Rounds(build_parts(parts), int(settings.get("seed", 0)), pack(module), clients.ask)
        for _ in range(int(settings.get("num-server-rounds", 3))):
            nodes = clients.wait(int(settings.get("min-nodes", 2)))
            outcome = rounds.play(nodes)
            for node, mine in outcome.sites.items():
                log.info("round %d, node %s: %s", outcome.plan.round, node, mine.failure or mine.verdict)
            if evaluate:
                log.info("round %d: %s", outcome.plan.round, rounds.evaluate(nodes))
        if settings.get("out"):
            _save(Path(str(settings["out"])), module, rounds.federation.model)

    return app


def _save(path: Path, module: nn.Module, vector: FloatVector) -> None:
    from safetensors.numpy import save_file

    save_file(layout_of(module).views(vector), path)


class _Clients:
    """Nodes of a Grid, asked all at once."""

    def __init__(self, grid: Grid, timeout: float) -> None:
        self._grid = grid
        self._timeout = timeout

    def wait(self, least: int) -> list[str]:
        """The nodes that are there, once there are enough."""
        while len(found := sorted(map(str, self._grid.get_node_ids()))) < least:
            time.sleep(1.0)
        return found

    def ask(self, what: What, nodes: Sequence[str], model: FloatVector, round_: int) -> Iterator[Answer]:
        kind = MessageType.TRAIN if what == "train" else MessageType.EVALUATE
        record, end = _record(model), time.monotonic() + self._timeout
        messages = [
            Message(
                content=RecordDict({_ARRAYS: record, _CONFIG: ConfigRecord({"server-round": round_})}),
                message_type=kind,
                dst_node_id=int(node),
            )
            for node in nodes
        ]
        pending = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        while pending and time.monotonic() < end:
            for reply in self._grid.pull_messages(list(pending)):
                yield _answer(pending.pop(reply.metadata.reply_to_message_id), reply)
            time.sleep(0.1)


def _answer(node: str, reply: Message) -> Answer:
    if reply.has_error():
        return Answer(node, failure=f"node {node}: {reply.error.reason}")
    try:
        said = dict(reply.content.metric_records[_METRICS])
        vector = _vector(reply) if _ARRAYS in reply.content.array_records else None
        examples, metrics = check_answer(said.pop(_EXAMPLES, None), said)
        return Answer(node, examples, metrics, vector)
    except (RunError, KeyError, ValueError) as error:
        return Answer(node, failure=f"node {node} sent what cannot be read: {error}")


def _record(vector: FloatVector) -> ArrayRecord:
    data = bytes(as_bytes(vector))
    return ArrayRecord(array_dict={_MODEL: Array(dtype="float32", shape=(vector.size,), stype="medfl", data=data)})


def _vector(message: Message) -> FloatVector:
    array = message.content.array_records[_ARRAYS][_MODEL]
    if array.dtype != "float32" or len(array.data) != 4 * int(np.prod(array.shape)):
        raise RunError.at("message of Flower", "holds no flat vector", "use medfl's client_app and server_app together")
    return np.frombuffer(array.data, np.float32)
