"""What the rounds of a run add up to. Rounds are records of `rounds.jsonl`, as `trimmed` leaves them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medfl.coordinator import records
from medfl.report import participation
from medfl.report.dashboard.words import plain
from medfl.report.views import columns

Records = Sequence[Mapping[str, Any]]

LATEST = 5
"""Rounds that the remaining time is estimated from."""
KEPT_VERDICTS = 200
_KEPT = (
    "round",
    "participants",
    "late",
    "refused",
    "verdicts",
    "moved",
    "void",
    "losses",
    "bytes",
    "epsilon",
    "seconds",
)


def trimmed(record: Mapping[str, Any], primary: str) -> dict[str, Any]:
    """What the page needs of a round; of a failure only the plain words."""
    sites = record["participants"]
    return {
        **{key: record[key] for key in _KEPT},
        "failed": {site: plain(reason, *sites) for site, reason in record["failed"].items()},
        "metrics": None if record["metrics"] is None else metrics_of(record["metrics"], primary),
    }


def metrics_of(found: Mapping[str, Any], primary: str) -> dict[str, Any]:
    """An evaluation without classes: {"split", "global": {metric: {"value", "n"}}, "sites", "unseen"}."""
    shown = columns(primary, found["global"])

    def few(metrics: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: metrics.get(name) or {} for name in shown}
        return {name: {"value": entry.get("value"), "n": entry.get("n")} for name, entry in known.items()}

    return {
        "split": found["split"],
        "global": few(found["global"]),
        "sites": {site: few(own) for site, own in found["sites"].items()},
        "unseen": {site: few(own) for site, own in found["unseen"].items()},
    }


def row(record: Mapping[str, Any], primary: str) -> dict[str, Any]:
    """A round as the table and the curve show it."""
    outcomes = Counter(verdict["outcome"] for verdict in record["verdicts"].values())
    metrics = record["metrics"] or {"global": {}, "sites": {}, "unseen": {}}
    own = {**metrics["sites"], **metrics["unseen"]}
    return {
        "round": record["round"],
        "cohort": len(record["participants"]),
        "admitted": outcomes["admit"],
        "down_weighted": outcomes["down-weight"],
        "refused": outcomes["refuse"],
        "failed": len(record["failed"]),
        "late": len(record["late"]),
        "void": record["void"],
        "loss": record["losses"]["mean"],
        "metrics": metrics["global"],
        "sites": {site: found.get(primary) for site, found in own.items()},
        "epsilon": record["epsilon"],
        "up_bytes": int(record["bytes"].get("up_bytes", 0)),
        "down_bytes": int(record["bytes"].get("down_bytes", 0)),
        "seconds": round(sum(record["seconds"].values()), 3),
    }


def site_totals(rounds: Records) -> dict[str, dict[str, Any]]:
    """For each site over all rounds: bytes both ways, outcomes, and what its last round and evaluation were."""
    totals: dict[str, dict[str, Any]] = {}

    def of(site: str) -> dict[str, Any]:
        empty = {"up_bytes": 0, "down_bytes": 0, "outcomes": {}, "metrics": None, "metrics_round": None}
        return totals.setdefault(site, {**empty, "last_round": None, "last_loss": None, "last": None})

    for record in rounds:
        for site, sent in (record["bytes"].get("sites") or {}).items():
            of(site)["up_bytes"] += int(sent["up"])
            of(site)["down_bytes"] += int(sent["down"])
        for site in record["participants"]:
            mine, status = of(site), participation.status(record, site).name
            mine["outcomes"][status] = mine["outcomes"].get(status, 0) + 1
            verdict = record["verdicts"].get(site) or {}
            reason = record["failed"].get(site) or verdict.get("reason", "")
            mine["last"] = {"outcome": status, "rule": verdict.get("rule", ""), "reason": reason}
            mine["last_round"] = record["round"]
            mine["last_loss"] = record["losses"]["sites"].get(site)
        metrics = record["metrics"] or {}
        for site, found in {**metrics.get("sites", {}), **metrics.get("unseen", {})}.items():
            of(site).update(metrics=found, metrics_round=record["round"])
    return totals


def regulator(rounds: Records) -> dict[str, Any]:
    """Counts by outcome, rule and site, and the newest entries of everything else than a full admission."""
    counted = records.regulator_counts(rounds)
    found = [
        {"round": one.round, "site": one.site, "outcome": one.status.name, "rule": one.rule, "reason": one.reason}
        for one in participation.events(rounds)
    ]
    return {
        "outcomes": counted["outcomes"],
        "rules": counted["reasons"],
        "entries": len(found),
        "newest": found[: -KEPT_VERDICTS - 1 : -1],
        "void": [record["round"] for record in rounds if record["void"]],
    }


def seconds_left(rounds: Records, planned: int) -> float | None:
    """Seconds until all planned rounds are done, as the latest went; None before the first."""
    latest = rounds[-LATEST:]
    if not latest or planned <= len(rounds):
        return None
    return sum(sum(record["seconds"].values()) for record in latest) / len(latest) * (planned - len(rounds))
