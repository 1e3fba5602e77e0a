"""A site's local training in a process of its own, which dies as it is told: python -m toys.killed INPUTS STORE HOW

how: "exit" leaves without a word right after the first save; "hang" stops in the middle of the third epoch, to be
killed from outside.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from medfl.learning.checkpoint import Checkpoint, EpochStore, FileEpochStore
from medfl.learning.executor import SiteExecutor
from medfl.learning.flat import initial_vector
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.study.build import build_local, choose_device
from medfl.study.sources import RunInputs, assign_cases, load_site_data
from medfl.update.memories.base import SiteState

SITE, EPOCHS = "east", 5.0
HANGING = ".hanging"


class Exiting(FileEpochStore):
    def save(self, key: str, checkpoint: Checkpoint) -> None:
        super().save(key, checkpoint)
        os._exit(9)


def train(inputs: RunInputs, store: EpochStore | None, **more: Any) -> tuple[TrainReply, SiteState]:
    """One site's second round, from images on disk."""
    data = load_site_data(inputs, SITE, assign_cases(inputs).cases[SITE])
    executor = SiteExecutor(build_local(inputs.study), choose_device(inputs.study))
    model, _ = initial_vector(executor.parts.task, inputs.study.seed)
    state: SiteState = {}
    values = {"local.epochs": EPOCHS, "local.learning_rate": 0.01, "fedprox.mu": 0.1}
    order = TrainOrder(SITE, 2, values)
    return executor.train(data, order, model, state, checkpoints=store, **more), state


def main(inputs: Path, path: Path, how: str) -> None:
    def step_done(done: int, planned: int) -> None:
        if how == "hang" and done == planned // int(EPOCHS) * 2 + 1:
            path.with_name(path.name + HANGING).touch()
            time.sleep(600)

    kind = Exiting if how == "exit" else FileEpochStore
    train(RunInputs.model_validate_json(inputs.read_bytes()), kind(path, "run", 0), step_done=step_done)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
