"""The plain lines of a run: sites that go and come back."""

import io

import pytest
from rich.console import Console

from medfl.cli.progress import PlainProgress


@pytest.fixture
def lines():
    written = io.StringIO()
    progress = PlainProgress(Console(file=written, width=200), "auroc")
    return progress, lambda: written.getvalue().splitlines()


def test_a_site_that_was_lost_is_told_of_when_it_is_back(lines):
    progress, told = lines
    for state in ("connected", "loading", "ready", "training", "ready"):
        progress.presence("aachen", state)
    assert told() == [], "what happens in every round is no news"
    progress.presence("aachen", "lost", "nothing was heard of it")
    for state in ("connected", "loading", "ready", "training", "ready"):
        progress.presence("aachen", state)
    assert told() == ["site aachen: lost: nothing was heard of it", "site aachen: ready"]


def test_a_late_site_is_called_late(lines):
    progress, told = lines
    progress.round_finished(
        {
            "round": 3, "metrics": None, "local_epochs": {}, "refused": {}, "seconds": {}, "losses": {"mean": None},
            "late": ["delft"], "failed": {"delft": "did not answer before the round's deadline", "cluj": "was lost"},
        }
    )  # fmt: skip
    assert "delft late, cluj failed" in told()[0]
