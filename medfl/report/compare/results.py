"""What the runs say, by variant: means over seeds, from the counted bytes and measured metrics of `summary.json`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medfl.report.compare.runs import Outcome
from medfl.report.compare.statistics import CONFIDENCE, Estimate, estimate
from medfl.report.compare.variants import Variant


@dataclass(frozen=True, slots=True)
class Step:
    """A point of a run's course: bytes of training so far, both ways, and the validation metric."""

    round: int
    bytes: int
    metric: float


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run. Bytes are those of training, and of evaluation apart. metric, n, worst: of the primary metric;
    the lowest of a site that takes part, and its name. metrics: all of the final evaluation over all sites together,
    as `metrics.global` of `summary.json`."""

    seed: int
    folder: str
    metric: float | None
    n: int
    worst: float | None
    worst_site: str
    rounds: int
    stopped_by: str
    up_bytes: int
    down_bytes: int
    evaluation_up_bytes: int
    evaluation_down_bytes: int
    epsilon: float | None
    unit: str | None
    seconds: float
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    course: tuple[Step, ...] = ()

    @property
    def bytes(self) -> int:
        return self.up_bytes + self.down_bytes

    def value(self, metric: str) -> float | None:
        """A metric over all sites together; None where the run has no number for it."""
        value: float | None = self.metrics.get(metric, {}).get("value")
        return value


@dataclass(frozen=True)
class Row:
    """One variant. failed: reason by seed. differences: by metric, to the first variant, over the seeds that both
    finished; empty for the first."""

    name: str
    study: str | None
    changes: tuple[str, ...]
    runs: tuple[Run, ...]
    failed: Mapping[int, str]
    differences: Mapping[str, Estimate | None] = field(default_factory=dict)

    def over_seeds(self, name: str) -> Estimate | None:
        """A number of the runs ("worst", "bytes", ...) over seeds; None where no run has it."""
        return _estimate(getattr(run, name) for run in self.runs)

    def metric(self, name: str) -> Estimate | None:
        """A metric over seeds; None where no run has it."""
        return _estimate(run.value(name) for run in self.runs)

    @property
    def metrics(self) -> list[str]:
        """All metrics that a run recorded."""
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))


@dataclass(frozen=True)
class Comparison:
    """All variants. primary: the metric of figures and of the worst site; split: what metrics were measured on; notes:
    what a reader should know; asked: the metrics of the table, the primary when there are none."""

    study: str
    task: str
    primary: str
    split: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics of the table."""
        return self.asked or (self.primary,)

    def to_json(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "task": self.task,
            "metric": self.primary,
            "split": self.split,
            "seeds": list(self.seeds),
            "confidence": CONFIDENCE,
            "variants": {row.name: _row_json(row, self.primary) for row in self.rows},
            "notes": list(self.notes),
        }


_NUMBERS = (
    "metric",
    "worst",
    "rounds",
    "up_bytes",
    "down_bytes",
    "evaluation_up_bytes",
    "evaluation_down_bytes",
    "epsilon",
    "seconds",
)


def _estimate(values: Iterable[float | None]) -> Estimate | None:
    return estimate([float(value) for value in values if value is not None])


def _row_json(row: Row, primary: str) -> dict[str, Any]:
    numbers = {name: row.over_seeds(name) for name in _NUMBERS}
    difference = row.differences.get(primary)
    return {
        "study": row.study,
        "set": list(row.changes),
        "failed": {str(seed): reason for seed, reason in row.failed.items()},
        "over_seeds": {name: found and asdict(found) for name, found in numbers.items()},
        "difference_to_first": difference and asdict(difference),
        "metrics": {name: _metric_json(row, name) for name in row.metrics},
        "runs": [asdict(run) for run in row.runs],
    }


def _metric_json(row: Row, name: str) -> dict[str, Any]:
    found, difference = row.metric(name), row.differences.get(name)
    return {"over_seeds": found and asdict(found), "difference_to_first": difference and asdict(difference)}


def compare(
    study: str,
    variants: Mapping[str, Variant],
    outcomes: Sequence[Outcome],
    out: Path,
    notes: Iterable[str] = (),
    asked: tuple[str, ...] = (),
) -> Comparison:
    """The comparison of finished and failed runs. study: its name; out: the folder that run folders are named from."""
    rows = [_row(name, variant, [one for one in outcomes if one.plan.variant == name], out)
            for name, variant in variants.items()]  # fmt: skip
    first = rows[0]
    rows = [first, *(_with_differences(row, first) for row in rows[1:])]
    summaries = [one.summary for one in outcomes if one.summary is not None]
    any_summary: Mapping[str, Any] = summaries[0] if summaries else {}
    splits = sorted({summary["metrics"]["split"] for summary in summaries})
    seeds = tuple(dict.fromkeys(one.plan.seed for one in outcomes))
    return Comparison(
        study=study,
        task=str(any_summary.get("task", "")),
        primary=str(any_summary.get("primary", "")),
        split=" and ".join(splits),
        seeds=seeds,
        rows=tuple(rows),
        notes=(*notes, *_notes(rows, splits, seeds)),
        asked=asked,
    )


def _row(name: str, variant: Variant, outcomes: Sequence[Outcome], out: Path) -> Row:
    runs = [_run(one, one.summary, out) for one in outcomes if one.summary is not None]
    failed = {one.plan.seed: one.reason for one in outcomes if one.summary is None}
    return Row(name, variant.study, variant.set, tuple(runs), failed)


def _run(one: Outcome, summary: Mapping[str, Any], out: Path) -> Run:
    metrics, primary, traffic = summary["metrics"], summary["primary"], summary["traffic"]
    overall = metrics["global"].get(primary) or {}
    sites = {site: own.get(primary) or {} for site, own in metrics["sites"].items()}
    known = [(entry["value"], site) for site, entry in sites.items() if entry.get("value") is not None]
    worst, worst_site = min(known, default=(None, ""))
    return Run(
        seed=one.plan.seed,
        folder=one.plan.folder.relative_to(out).as_posix(),
        metric=overall.get("value"),
        n=int(overall.get("n") or 0),
        worst=worst,
        worst_site=worst_site,
        rounds=summary["rounds_completed"],
        stopped_by=summary["stopped_by"],
        **{name: int(traffic[name]) for name in traffic if name.endswith("_bytes")},
        epsilon=summary["privacy"]["epsilon"],
        unit=summary["privacy"]["unit"],
        seconds=sum(summary["seconds"].values()),
        metrics=metrics["global"],
        course=tuple(_course(one.plan.folder, primary)),
    )


def _course(folder: Path, primary: str) -> Iterable[Step]:
    """The rounds of a run that were evaluated."""
    spent = 0
    for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        spent += int(record["bytes"].get("up_bytes", 0)) + int(record["bytes"].get("down_bytes", 0))
        entry = ((record["metrics"] or {}).get("global") or {}).get(primary) or {}
        if entry.get("value") is not None:
            yield Step(record["round"], spent, entry["value"])


def _with_differences(row: Row, first: Row) -> Row:
    return replace(row, differences={name: _difference(row, first, name) for name in row.metrics})


def _difference(row: Row, first: Row, metric: str) -> Estimate | None:
    """The mean difference to the first variant: seed by seed, since equal seeds share images, split and start."""
    before = {run.seed: run.value(metric) for run in first.runs}
    pairs = [(run.value(metric), before.get(run.seed)) for run in row.runs]
    return estimate([after - was for after, was in pairs if after is not None and was is not None])


def _notes(rows: Sequence[Row], splits: Sequence[str], seeds: Sequence[int]) -> Iterable[str]:
    if len(seeds) == 1:
        yield "One seed: there are no intervals, and a difference may be chance."
    if splits != ["test"] and splits:
        yield "Metrics are those of the validation images where no site holds test images, and so are optimistic."
    for row in rows:
        early = sorted({run.stopped_by for run in row.runs} - {"rounds"})
        if early:
            yield f"{row.name} ended before its planned rounds: {', '.join(early)}."
        if row.failed:
            yield f"{row.name} failed with {len(row.failed)} of {len(seeds)} seeds; its means are over the others."
