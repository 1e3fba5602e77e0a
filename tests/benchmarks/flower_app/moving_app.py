"""Plain FedAvg of Flower over clients that add a constant to every array, as its users would write it."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

STEP = np.float32(1e-3)
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, _: Context) -> Message:
    arrays = [array + STEP for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 8})})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when each round was planned and when it was combined."""

    def __init__(self, sites: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        self.begun, self.spent = 0.0, list[float]()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.begun = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        self.spent.append(time.perf_counter() - self.begun)
        return found


@server.main()
def main(grid: Grid, context: Context) -> None:
    given = context.run_config
    sites, rounds = int(given["sites"]), int(given["rounds"])
    # nodes may still be on their way; to wait for them is no part of a round
    while len(list(grid.get_node_ids())) < sites:
        time.sleep(0.2)
    model = np.random.default_rng(0).standard_normal(int(given["values"]), np.float32)
    first = float(model[0])
    strategy = Timed(sites)
    arrays = ArrayRecord(np.array_split(model, int(given["tensors"])))
    result = strategy.start(grid, arrays, num_rounds=rounds)
    last = float(result.arrays.to_numpy_ndarrays()[0][0])
    if not np.isclose(last, first + rounds * STEP, rtol=1e-5):
        raise RuntimeError(f"the mean is not what the sites sent: {first} became {last}")
    Path(str(given["out"])).write_text(json.dumps({"rounds": strategy.spent}))
