"""When a run ends: rounds done, target reached, or patience lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from medfl.study.model import StopSection


def stopped_by(stop: StopSection, primary: str, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run ends after these rounds ("rounds", "target", "patience"), or None to go on.

    Looks at the validation metrics of all sites together; rounds without an evaluation do not count for patience.
    """
    values = [
        value
        for record in records
        if (value := _global(record, stop.target.metric if stop.target else primary)) is not None
    ]
    if stop.target and values and values[-1] >= stop.target.value:
        return "target"
    if stop.patience and _waited([_global(record, primary) for record in records]) >= stop.patience:
        return "patience"
    return "rounds" if len(records) >= stop.rounds else None


def _waited(values: Sequence[float | None]) -> int:
    """Evaluations since the best one."""
    found = [value for value in values if value is not None]
    return len(found) - 1 - found.index(max(found)) if found else 0


def _global(record: Mapping[str, Any], metric: str) -> float | None:
    entry = ((record["metrics"] or {}).get("global") or {}).get(metric)
    value = entry.get("value") if entry else None
    return None if value is None else float(value)
