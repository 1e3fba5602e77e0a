"""`compare.html` and `compare.json`: variants side by side, on one self-contained page."""

from pathlib import Path
from typing import Any

from medfl.coordinator.files import write_json, write_text
from medfl.report import text
from medfl.report.compare import figures
from medfl.report.compare.results import Comparison, Row
from medfl.report.compare.statistics import CONFIDENCE, Estimate
from medfl.report.page import new_environment
from medfl.report.svg import Drawings


def write(found: Comparison, out: Path) -> None:
    """Write `compare.json` and `compare.html` into a folder."""
    write_json(out / "compare.json", found.to_json())
    environment = new_environment()
    environment.filters |= {name: getattr(text, name) for name in ("number", "size", "duration", "listed", "short")}
    environment.globals |= {"count": text.count, "label": text.label}
    write_text(out / "compare.html", environment.get_template("compare.html.jinja").render(_context(found)))


def _context(found: Comparison) -> dict[str, Any]:
    drawings, drawn = Drawings(), {}
    shown = {
        "bytes": (figures.against_bytes(found), "Metric of each variant against its bytes; the table says the same"),
        "courses": (figures.courses(found), "Validation metric of each variant against the bytes sent so far"),
    }
    for name, (figure, alt) in shown.items():
        drawn[name] = drawings.inline(figure, alt) if figure else None
    return {
        "found": found,
        "first": found.rows[0].name,
        "columns": columns(found),
        "metrics": [text.label(name) for name in found.shown],
        "others": [name for name in found.shown if name != found.primary],
        "table": [(row, cells(found, row)) for row in found.rows],
        "plots": drawn,
        "confidence": f"{CONFIDENCE:.0%}".replace("%", " %"),
    }


def columns(found: Comparison) -> list[str]:
    """Headings of the table, after the variant's name."""
    metrics = []
    for name in found.shown:
        minus = f"minus {found.rows[0].name}"
        metrics += [text.label(name), minus if len(found.shown) == 1 else f"{text.label(name)} {minus}"]
        metrics += ["worst site"] if name == found.primary else []
    return [*metrics, "rounds", "up", "down", "evaluation", "ε", "seconds"]


def cells(found: Comparison, row: Row) -> list[str]:
    """A variant's line of the table; means over seeds, with the interval where there is more than one."""
    metrics = []
    for name in found.shown:
        metrics += [interval(row.metric(name)), interval(row.differences.get(name), signed=True)]
        metrics += [_worst(row)] if name == found.primary else []
    return [
        *metrics,
        _plain(row.over_seeds("rounds")),
        _bytes(row, "up_bytes"),
        _bytes(row, "down_bytes"),
        _bytes(row, "evaluation_up_bytes", "evaluation_down_bytes"),
        _epsilon(row),
        _plain(row.over_seeds("seconds")),
    ]


def _worst(row: Row) -> str:
    """The lowest site, with its name where it is the same one with every seed."""
    names = sorted({run.worst_site for run in row.runs if run.worst_site})
    return interval(row.over_seeds("worst")) + (f" ({names[0]})" if len(names) == 1 else "")


def interval(found: Estimate | None, signed: bool = False) -> str:
    """ "0.912 ± 0.013", or the mean alone where there is no interval."""
    if found is None:
        return text.MISSING
    mean = f"{found.mean:+.3f}" if signed else text.number(found.mean)
    return mean if found.high is None else f"{mean} ± {text.number(found.high - found.mean)}"


def _plain(found: Estimate | None) -> str:
    return text.MISSING if found is None else f"{found.mean:.0f}" if found.mean >= 10 else f"{found.mean:.3g}"


def _bytes(row: Row, *names: str) -> str:
    means = [found.mean for name in names if (found := row.over_seeds(name))]
    return text.size(sum(means)) if means else text.MISSING


def _epsilon(row: Row) -> str:
    """The largest of the seeds: a promise is as good as its worst case."""
    units = {run.unit for run in row.runs if run.epsilon is not None}
    spent = [run.epsilon for run in row.runs if run.epsilon is not None]
    return f"{text.short(max(spent))} per {', '.join(sorted(map(str, units)))}" if spent else "none"
