"""A run's numbers as the tables of its report and model card."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medfl.report.run import RunRecord
from medfl.report.text import label, listed, number

SMALL = 30
"""Below this support a value says little about other patients."""
MOST_COLUMNS = 6
_SECOND_LOOK = ("loss", "dropped_boxes", "recall", "specificity")
"""Not among a site's columns. The recall over all classes is the balanced accuracy once more."""

_BOUNDED = frozenset(("auroc", "accuracy", "dice", "map", "map_50", "map_10", "mar", "f1", "recall", "iou", "cpm"))


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric's value in a table. share: where it lies between 0 and 1, for its bar."""

    text: str
    n: int | None = None
    share: float | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class SiteRow:
    site: str
    role: str
    cases: Mapping[str, int]
    skipped: Mapping[str, str]
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under `columns`; each row starts with its name."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True, slots=True)
class Headline:
    """The primary metric of all sites together, and the sites at both ends (None for fewer than two sites)."""

    name: str
    overall: Cell
    worst: tuple[str, Cell] | None = None
    best: tuple[str, Cell] | None = None


@dataclass(frozen=True)
class Results:
    """What the final evaluation says. sites: those that take part; unseen: those that never train."""

    split: str
    over: Sequence[str]
    headline: Headline
    columns: Sequence[str]
    sites: Sequence[SiteRow]
    unseen: Sequence[SiteRow]
    totals: Sequence[Cell]
    overall: Table
    classes: Table
    classes_by_site: Table
    confusion: Table | None = None
    small: Sequence[str] = field(default=())


def results(run: RunRecord) -> Results:
    """The final evaluation of a run, or empty tables when there was none."""
    found = run.summary.get("metrics") or {}
    primary, overall = run.summary["primary"], found.get("global") or {}
    own, unseen = found.get("sites") or {}, found.get("unseen") or {}
    shown = columns(primary, overall)
    seen = [site for site in run.sites if site not in unseen]
    return Results(
        split=found.get("split", ""),
        over=found.get("over") or (),
        headline=_headline(primary, overall, own),
        columns=[label(name) for name in shown],
        sites=[_row(run, site, own.get(site) or {}, shown) for site in seen],
        unseen=[_row(run, site, unseen[site], shown) for site in run.sites if site in unseen],
        totals=[cell(overall.get(name)) for name in shown],
        overall=_overall(overall),
        classes=_by_class(overall),
        classes_by_site=_classes_by_site(primary, overall, {**own, **unseen}),
        confusion=_confusion(overall),
        small=[site for site, metrics in {**own, **unseen}.items() if 0 < _support(metrics.get(primary)) < SMALL],
    )


def cell(entry: Mapping[str, Any] | None, bounded: bool = False) -> Cell:
    """A table's cell of one entry of the summary's metrics."""
    if not entry or "value" not in entry:
        return Cell(number(None))
    value = entry["value"]
    share = value if bounded and value is not None and 0 <= value <= 1 else None
    return Cell(number(value), entry["n"], share, value)


def _support(entry: Mapping[str, Any] | None) -> int:
    return int((entry or {}).get("n") or 0)


def columns(primary: str, overall: Mapping[str, Any]) -> list[str]:
    """The primary metric and some others, without the loss and what only an expert's second look needs."""
    others = [name for name in overall if name not in _SECOND_LOOK and not name.startswith("froc_")]
    return list(dict.fromkeys([primary, *others]))[:MOST_COLUMNS]


def _headline(primary: str, overall: Mapping[str, Any], sites: Mapping[str, Any]) -> Headline:
    name, together = label(primary), cell(overall.get(primary), primary in _BOUNDED)
    entries = [(site, metrics[primary]) for site, metrics in sites.items() if (metrics.get(primary) or {}).get("n")]
    known = [(site, entry) for site, entry in entries if entry["value"] is not None]
    if len(known) < 2:
        return Headline(name, together)
    ranked = sorted(known, key=lambda item: (item[1]["value"], item[0]))
    (worst, low), (best, high) = ranked[0], ranked[-1]
    return Headline(name, together, (worst, cell(low)), (best, cell(high)))


def _row(run: RunRecord, site: str, metrics: Mapping[str, Any], shown: Sequence[str]) -> SiteRow:
    data = run.summary["data"].get(site) or {}
    cases = data.get("cases") or {}
    role = "trains" if cases.get("train") else "evaluates only"
    if site in ((run.summary.get("metrics") or {}).get("unseen") or {}):
        role = "unseen"
    if not data:
        role = "not known"
    cells = [cell(metrics.get(name), position == 0 and name in _BOUNDED) for position, name in enumerate(shown)]
    return SiteRow(site, role, cases, data.get("skipped") or {}, cells)


def _overall(overall: Mapping[str, Any]) -> Table:
    rows = [(label(name), [cell(entry)]) for name, entry in overall.items() if "value" in entry]
    return Table(("all sites together",), rows)


def class_names(overall: Mapping[str, Any]) -> list[str]:
    """Classes with metrics of their own, in their order."""
    return list(dict.fromkeys(name for entry in overall.values() for name in entry.get("classes") or {}))


def _by_class(overall: Mapping[str, Any]) -> Table:
    metrics = [name for name, entry in overall.items() if entry.get("classes")]
    rows = [(name, [cell(overall[metric]["classes"].get(name)) for metric in metrics]) for name in class_names(overall)]
    return Table([label(metric) for metric in metrics], rows)


def _classes_by_site(primary: str, overall: Mapping[str, Any], sites: Mapping[str, Any]) -> Table:
    names = list((overall.get(primary) or {}).get("classes") or {})
    parts = {site: (metrics.get(primary) or {}).get("classes") or {} for site, metrics in sorted(sites.items())}
    rows = [(site, [cell(own.get(name)) for name in names]) for site, own in parts.items()]
    return Table(names, rows if names else [])


def _confusion(overall: Mapping[str, Any]) -> Table | None:
    """Images by true (row) and predicted (column) class. Two classes only: there the recalls and their supports say it
    all, which is what a summary holds."""
    recalls = (overall.get("recall") or {}).get("classes") or {}
    if len(recalls) != 2 or any(entry["value"] is None for entry in recalls.values()):
        return None
    rows = []
    for position, (name, entry) in enumerate(recalls.items()):
        hits = round(entry["value"] * entry["n"])
        counts = [hits, entry["n"] - hits][:: 1 if position == 0 else -1]
        rows.append((name, [Cell(f"{count:,}", share=count / entry["n"] if entry["n"] else None) for count in counts]))
    return Table([name for name, _ in rows], rows)


def findings(run: RunRecord, found: Results) -> list[str]:
    """What a careful reader should know before the numbers, one sentence each."""
    return [*run.notes, *_about_set_up(run), *_about_rounds(run), *_about_data(run, found)]


def _about_set_up(run: RunRecord) -> Iterable[str]:
    baseline = run.summary.get("baseline")
    if baseline == "pooled":
        yield "A centralised baseline, not a federation: all training images were pooled at one site."
    elif baseline:
        yield f"A baseline, not a federation: {baseline} alone trained."
    for site, fault in run.faults.items():
        yield f"A fault was simulated at {site}: {fault['kind']} from round {fault['from_round']} on."


def _about_rounds(run: RunRecord) -> Iterable[str]:
    void = {record["round"]: record["void"] for record in run.rounds if record.get("void")}
    still = [str(record["round"]) for record in run.rounds if not record["moved"] and record["round"] not in void]
    if not run.rounds:
        yield "No round was completed: the model is the freshly initialised network."
    if still:
        which = f"{len(still)} of {len(run.rounds)} rounds ({listed(still)})"
        yield f"The model did not move in {which}: nothing was admitted."
    if void:
        number, reason = next(iter(void.items()))
        which = f"{len(void)} of {len(run.rounds)} rounds ({listed(map(str, void))})"
        yield f"The sum was not opened in {which}, and the model did not move. In round {number}: {reason}."
    trained = {site for record in run.rounds for site, one in record["verdicts"].items() if one["outcome"] != "refuse"}
    asked = {site for record in run.rounds for site in record["participants"]}
    if asked - trained:
        yield f"The model holds nothing of {listed(sorted(asked - trained))}: no update of theirs was admitted."


def _about_data(run: RunRecord, found: Results) -> Iterable[str]:
    together, worst = found.headline.overall.value, found.headline.worst
    if run.summary["primary"] == "auroc" and together is not None and worst and together < (worst[1].value or 0):
        yield (
            f"The AUROC of all sites together ({number(together)}) lies below that of every single site: the same "
            "score means different things at different sites, and no one threshold suits them all."
        )
    for site, data in run.summary["data"].items():
        for consent, count in (data.get("shared") or {}).items():
            own = data["cases"].get("train", 0)
            yield f"{site} trained on {own:,} cases of its own and on {count:,} shared ones ({consent})."
    skipped = sum(len(site.get("skipped") or {}) for site in run.summary["data"].values())
    if skipped:
        yield f"{skipped} of the sites' cases could not be used; the reasons are listed below."
    if run.summary.get("metrics") is not None and found.split != "test":
        yield "No site holds test images: the final metrics are those of the validation images and so are optimistic."
    if found.small:
        yield f"Metrics of {listed(found.small)} rest on fewer than {SMALL} images or objects each and are uncertain."
