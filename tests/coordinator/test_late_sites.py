"""Who missed a round's deadline is told, by name and how often, in rounds.jsonl and summary.json."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from medfl.coordinator.records import regulator_counts, round_record
from medfl.federation.outcome import Contribution

LATE = Contribution(failure="did not answer before the round's deadline", late=True)
LOST = Contribution(failure="was lost")


def record(round_: int, **sites: Contribution) -> dict[str, Any]:
    plan = SimpleNamespace(round=round_, cohort=tuple(sites), values={})
    outcome: Any = SimpleNamespace(plan=plan, sites=sites, moved=True, void="", loss=0.5, loss_start=0.7)
    return round_record(outcome, None, {}, {}, {})


def late(*records: dict[str, Any]) -> tuple[list[list[str]], dict[str, int]]:
    return [one["late"] for one in records], regulator_counts(records)["late"]


def test_late_sites_are_named_and_counted() -> None:
    first, second = record(1, east=LATE, north=LOST, west=LATE), record(2, east=LATE, north=LOST)
    assert late(first, second) == ([["east", "west"], ["east"]], {"east": 2, "west": 1})
    assert first["failed"]["east"] == LATE.failure
    assert regulator_counts([first, second])["outcomes"] == {"failed": 5}


def test_a_failure_that_forgets_that_it_was_late_is_noticed() -> None:
    """The fake: what came of the deadline looks like any other failure."""
    forgetful = replace(LATE, late=False)
    assert late(record(1, east=forgetful, west=forgetful)) == ([[]], {})
