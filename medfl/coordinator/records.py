"""The objects of `rounds.jsonl` and `summary.json`, made from what happened."""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from medfl.federation.outcome import Contribution, RoundOutcome
from medfl.learning.messages import SiteInfo
from medfl.privacy.trust import privacy_statement as privacy_statement
from medfl.tasks.base import Metric

LIBRARIES = ("medfl", "torch", "monai", "numpy", "nibabel", "pydicom")


WITHHELD = "withheld: numbers of single updates stay with the coordinator"


def number(value: float) -> float | None:
    """A float for JSON: None when it is not finite."""
    return value if math.isfinite(value) else None


def metrics_json(metrics: Iterable[Metric]) -> dict[str, Any]:
    """{name: {"value", "n", "classes": {class: {"value", "n"}}}}; "classes" only where there are some."""
    found: dict[str, Any] = {}
    for metric in metrics:
        entry = {"value": number(metric.value), "n": metric.n}
        if metric.class_name:
            found.setdefault(metric.name, {}).setdefault("classes", {})[metric.class_name] = entry
        else:
            found.setdefault(metric.name, {}).update(entry)
    return found


def round_record(
    outcome: RoundOutcome,
    metrics: Mapping[str, Any] | None,
    traffic: Mapping[str, Any],
    seconds: Mapping[str, float],
    site_seconds: Mapping[str, Mapping[str, float]],
    epsilon: float | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """One line of rounds.jsonl. `late` sites were at work at the deadline; `epsilon` is empty without a privacy
    mechanism; `void` says why a round's sum was not opened. private: leave out what was measured on single sites'
    updates, which no noise covers."""
    sites = outcome.sites
    return {
        "round": outcome.plan.round,
        "participants": list(outcome.plan.cohort),
        "late": [site for site, mine in sites.items() if mine.late],
        "failed": {site: mine.failure for site, mine in sites.items() if mine.failure},
        "refused": {
            site: {"rule": mine.verdict.rule, "reason": WITHHELD if private else mine.verdict.reason}
            for site, mine in sites.items()
            if mine.verdict and mine.verdict.outcome == "refuse"
        },
        "verdicts": {site: verdict_json(mine, private) for site, mine in sites.items() if mine.verdict},
        "moved": outcome.moved,
        "void": outcome.void,
        "hyperparameters": dict(outcome.plan.values),
        "cases": {site: mine.cases for site, mine in sites.items() if not mine.failure},
        "shared": {site: mine.shared for site, mine in sites.items() if mine.shared},
        "skipped": {site: dict(mine.skipped) for site, mine in sites.items() if mine.skipped},
        **_beside("prototypes", {site: mine.prototypes for site, mine in sites.items() if mine.prototypes}),
        "local_epochs": {site: mine.epochs for site, mine in sites.items() if mine.epochs},
        "local_steps": {site: mine.steps for site, mine in sites.items() if mine.steps},
        "losses": {
            "mean_start": number(outcome.loss_start),
            "mean": number(outcome.loss),
            "sites": {site: number(mine.loss) for site, mine in sites.items() if not mine.failure},
        },
        "metrics": metrics,
        "bytes": dict(traffic),
        "epsilon": None if epsilon is None else number(epsilon),
        "seconds": {phase: round(value, 6) for phase, value in seconds.items()},
        "site_seconds": {site: dict(spent) for site, spent in site_seconds.items()},
    }


def _beside(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of its own where there is something."""
    return {name: dict(found)} if found else {}


def verdict_json(mine: Contribution, private: bool = False) -> dict[str, Any]:
    if mine.verdict is None:
        return {"outcome": "none"}
    return {
        "outcome": mine.verdict.outcome,
        "rule": mine.verdict.rule,
        "reason": WITHHELD if private and mine.verdict.reason else mine.verdict.reason,
        "factor": mine.verdict.factor,
        "norm": None if private else number(mine.norm),
        "cases": mine.cases,
    }


def regulator_counts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Verdicts of a run: {"outcomes": {outcome: n}, "reasons": {rule: n}, "sites": {site: {outcome: n}}, "late": {site:
    n}}. Who was late counts among the failed, too."""
    counts: dict[str, Any] = {"outcomes": {}, "reasons": {}, "sites": {}, "late": {}}
    for record in records:
        for site, verdict in record["verdicts"].items():
            _count(counts["outcomes"], verdict["outcome"])
            _count(counts["sites"].setdefault(site, {}), verdict["outcome"])
            if verdict["outcome"] != "admit":
                _count(counts["reasons"], verdict["rule"])
        for site in record["failed"]:
            _count(counts["outcomes"], "failed")
            _count(counts["sites"].setdefault(site, {}), "failed")
        for site in record["late"]:
            _count(counts["late"], site)
    return counts


def _count(table: dict[str, int], key: str) -> None:
    table[key] = table.get(key, 0) + 1


def traffic_total(records: Iterable[Mapping[str, Any]], final: Mapping[str, int]) -> dict[str, int]:
    """Sums of the rounds' bytes and of the final evaluation's."""
    total = {
        name: int(final.get(name, 0))
        for name in ("up_bytes", "down_bytes", "evaluation_up_bytes", "evaluation_down_bytes")
    }
    for record in records:
        for name in total:
            total[name] += int(record["bytes"].get(name, 0))
    return total


def seconds_total(records: Iterable[Mapping[str, Any]], extra: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase over a run."""
    total = dict(extra)
    for record in records:
        for phase, value in record["seconds"].items():
            total[phase] = total.get(phase, 0.0) + value
    return {phase: round(value, 4) for phase, value in total.items()}


def data_json(sites: Sequence[SiteInfo]) -> dict[str, Any]:
    """What each site brought: its cases by split, every skipped case with its reason, and how many cases of others it
    trains on beside them, by consent."""
    return {
        info.name: {"cases": dict(info.cases), "skipped": dict(info.skipped), "shared": dict(info.shared)}
        for info in sites
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
