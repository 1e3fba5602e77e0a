"""Runs that die at a chosen moment, and what is compared of those that went on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfl.coordinator.observer import Observer
from medfl.federation.outcome import Contribution, RoundPlan
from medfl.learning.messages import SiteInfo


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def records(run: Path) -> list[dict[str, Any]]:
    """rounds.jsonl without what depends on the clock."""
    lines = (run / "rounds.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "seconds" not in key} for line in lines]


class Crash(BaseException):
    """Stands for the death of the process."""


class CrashAt(Observer):
    """Dies at the n-th call of one hook."""

    def __init__(self, hook: str, call: int) -> None:
        self._hook, self._left = hook, call

    def _count(self, hook: str) -> None:
        if hook == self._hook:
            self._left -= 1
            if not self._left:
                raise Crash

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        self._count("opened")

    def round_started(self, plan: RoundPlan) -> None:
        self._count("round_started")

    def local_progress(self, site: str, done: int, steps: int) -> None:
        self._count("local_progress")

    def answered(self, site: str, contribution: Contribution) -> None:
        self._count("answered")

    def evaluating(self, split: str, site: str) -> None:
        self._count("evaluating")

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._count("round_finished")
