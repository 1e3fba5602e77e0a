"""Event files for TensorBoard in `tensorboard/` of the run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfl.coordinator.observer import Observer
from medfl.errors import InputError
from medfl.learning.messages import SiteInfo
from medfl.report.sinks.scalars import of_metrics, of_round


class TensorBoardSink(Observer):
    """Steps are rounds; the final evaluation is at the last one. Nothing is written before the sites are ready."""

    def __init__(self, out: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError.at("--sink tensorboard", "is not installed", "pip install 'medfl[tensorboard]'") from error
        self._make = SummaryWriter
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        # a resumed run drops what a killed one wrote of rounds that were never committed
        self._writer = self._make(str(self._folder), purge_step=done + 1 if done else None)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in of_round(record):
                self._writer.add_scalar(name, value, record["round"])
            self._writer.flush()

    def ended(self, summary: Mapping[str, Any]) -> None:
        if self._writer is not None:
            metrics = summary["metrics"]
            for name, value in of_metrics(f"final_{metrics['split']}", metrics):
                self._writer.add_scalar(name, value, summary["rounds_completed"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
