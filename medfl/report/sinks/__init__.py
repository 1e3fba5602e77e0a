"""Sinks: observers that send a run's numbers to another tool. Their libraries are optional extras."""

from pathlib import Path

from medfl.coordinator.observer import Observer
from medfl.errors import InputError

NAMES = ("tensorboard", "mlflow")


def make_sink(name: str, out: Path) -> Observer:
    """The sink `name` for the run in folder `out`; InputError when there is none or its library is not installed."""
    if name == "tensorboard":
        from medfl.report.sinks.tensorboard import TensorBoardSink

        return TensorBoardSink(out)
    if name == "mlflow":
        from medfl.report.sinks.mlflow import MlflowSink

        return MlflowSink(out)
    raise InputError.at("--sink", f"there is no sink {name!r}", f"use one of: {', '.join(NAMES)}")
