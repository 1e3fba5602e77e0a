"""Who took part in a round, and what became of each site's update."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Status:
    """What a site was in a round. colour: number among the report's status colours, None for an empty cell.
    mark: matplotlib's marker in the cell, "" for none. symbol: the same for text."""

    name: str
    meaning: str
    colour: int | None
    mark: str
    symbol: str


ADMITTED = Status("admitted", "its update was combined with full weight", 0, "", "")
LOWERED = Status("down-weighted", "its update was combined with less weight", 1, "v", "▼")
REFUSED = Status("refused", "its update was refused by a rule", 2, "x", "×")
FAILED = Status("failed", "it delivered no update", 3, "+", "+")
LATE = Status("late", "it had not answered by the deadline", 5, "<", "◀")
KEPT = Status("kept back", "its upload gate sent nothing", 4, "o", "○")
ABSENT = Status("not in the cohort", "it was not asked in this round", None, ".", "·")
STATUSES = (ADMITTED, LOWERED, REFUSED, FAILED, LATE, KEPT, ABSENT)

_BY_OUTCOME = {"admit": ADMITTED, "down-weight": LOWERED, "refuse": REFUSED}


@dataclass(frozen=True, slots=True)
class Event:
    """Something else than a full admission."""

    round: int
    site: str
    status: Status
    rule: str
    reason: str


def status(record: Mapping[str, Any], site: str) -> Status:
    """What `site` was in the round of `record`."""
    if site in record["late"]:
        return LATE
    if site in record["failed"]:
        return FAILED
    verdict = record["verdicts"].get(site)
    if verdict is not None:
        return _BY_OUTCOME[verdict["outcome"]]
    return KEPT if site in record["participants"] else ABSENT


def by_site(rounds: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> dict[str, list[Status]]:
    """One status a round for each site."""
    return {site: [status(record, site) for record in rounds] for site in sites}


def counts(table: Mapping[str, Sequence[Status]]) -> dict[str, dict[str, int]]:
    """How often each site was what, by the names of statuses."""
    return {site: dict(Counter(own.name for own in statuses)) for site, statuses in table.items()}


def events(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """Every refusal, down-weighting, failure and missed deadline, in order."""
    for record in rounds:
        for site in record["participants"]:
            found = status(record, site)
            verdict = record["verdicts"].get(site) or {}
            if found in (FAILED, LATE):
                yield Event(record["round"], site, found, "", record["failed"][site])
            elif found in (LOWERED, REFUSED):
                factor = f"weight × {verdict['factor']:.3g}: " if found is LOWERED else ""
                yield Event(record["round"], site, found, verdict.get("rule", ""), factor + verdict.get("reason", ""))


def grouped(found: Sequence[Event]) -> list[list[Event]]:
    """The events of each site, status and rule together, in their order."""
    groups: dict[tuple[str, str, str], list[Event]] = {}
    for event in found:
        groups.setdefault((event.site, event.status.name, event.rule), []).append(event)
    return [groups[key] for key in sorted(groups)]
