"""An MLflow run for each medfl run: at MLFLOW_TRACKING_URI, else in `mlruns/` of the run folder."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfl.coordinator.observer import Observer
from medfl.errors import InputError
from medfl.learning.messages import SiteInfo
from medfl.report.sinks.scalars import of_metrics, of_round

_FORBIDDEN = re.compile(r"[^\w\-. /]")
_BATCH = 1000
"""Metrics that MLflow takes in one call."""


class MlflowSink(Observer):
    """Steps are rounds. Logs numbers, site counts and the summary's facts; no model and no image."""

    def __init__(self, out: Path) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise InputError.at("--sink mlflow", "is not installed", "pip install 'medfl[mlflow]'") from error
        self._out = out
        self._make = MlflowClient
        self._client: Any = None
        self._run = ""

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI") or (self._out / "mlruns").resolve().as_uri()
        self._client = self._make(tracking_uri=place)
        name = self._out.resolve().name
        experiment = self._client.get_experiment_by_name("medfl")
        number = experiment.experiment_id if experiment else self._client.create_experiment("medfl")
        self._run = self._client.create_run(number, run_name=name, tags={"medfl.resumed_after": str(done)}).info.run_id
        facts = {
            "rounds": rounds,
            "sites": len(sites),
            "training_cases": sum(info.cases.get("train", 0) for info in sites),
        }
        for key, value in facts.items():
            self._client.log_param(self._run, key, value)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._log(of_round(record), record["round"])

    def ended(self, summary: Mapping[str, Any]) -> None:
        if self._client is None:
            return
        metrics = summary["metrics"]
        self._log(of_metrics(f"final_{metrics['split']}", metrics), summary["rounds_completed"])
        for key in ("study", "task", "seed", "parameters", "stopped_by"):
            self._client.log_param(self._run, key, summary[key])
        self._client.set_terminated(self._run, status="FINISHED")
        self._run = ""

    def close(self) -> None:
        """A run that did not end is marked as failed."""
        if self._client is not None and self._run:
            self._client.set_terminated(self._run, status="FAILED")
        self._client = None

    def _log(self, named: Iterable[tuple[str, float]], step: int) -> None:
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        found = [Metric(_FORBIDDEN.sub("_", name), value, now, step) for name, value in named]
        for start in range(0, len(found), _BATCH):
            self._client.log_batch(self._run, metrics=found[start : start + _BATCH])
