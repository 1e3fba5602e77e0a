"""`model/model_card.md`: what is known about a saved model, from its run and from nothing else."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from medfl.coordinator.files import write_text
from medfl.errors import InputError
from medfl.report import text, views
from medfl.report.page import model_file, new_environment
from medfl.report.privacy import privacy_of
from medfl.report.run import RunRecord, read_run


def write_model_card(run: Path) -> Path:
    """Write `model/model_card.md` into the run folder and return its path; InputError when the folder holds no run, or
    a run without a saved model."""
    record = read_run(run)
    if model_file(run) is None:
        raise InputError.at(run, "holds no saved model", "finish the run with `medfl simulate --resume`")
    path = run / "model" / "model_card.md"
    write_text(path, _environment().get_template("model_card.md.jinja").render(_context(record)))
    return path


def _environment() -> Environment:
    environment = new_environment()
    environment.filters |= {name: getattr(text, name) for name in ("number", "size", "short")}
    environment.filters |= {"plain": plain, "listed": lambda names: Markup(", ").join(plain(name) for name in names)}
    environment.globals |= {"count": text.count}
    return environment


def plain(value: object) -> Markup:
    """Text that Markdown and HTML leave as it is, on one line: names and reasons come from files of strangers."""
    line = escape(" ".join(str(value).split()), quote=False)
    for sign in "\\`*_[]|":
        line = line.replace(sign, f"\\{sign}")
    return Markup(line)


def _context(run: RunRecord) -> Mapping[str, Any]:
    found = views.results(run)
    task = run.study["task"]
    return {
        "run": run,
        "summary": run.summary,
        "study": run.study,
        "task": task,
        "channels": task["in_channels"],
        "axes": task["spatial_dims"],
        "stopped": text.stopped(run.study["stop"], run.summary["stopped_by"]),
        "results": found,
        "privacy": privacy_of(run),
        "findings": views.findings(run, found),
        "model": model_file(run.folder),
        "trained": trained_on(run),
        "synthetic": run.study["data"]["source"]["kind"] == "synthetic" and not run.replaced,
    }


def trained_on(run: RunRecord) -> dict[str, dict[str, int]]:
    """For each site whose updates are in the model: its training cases and the rounds it was admitted in."""
    sites: dict[str, dict[str, int]] = {}
    for record in run.rounds:
        for site, verdict in record["verdicts"].items():
            if verdict["outcome"] != "refuse":
                own = sites.setdefault(site, {"cases": 0, "rounds": 0})
                own["rounds"] += 1
                own["cases"] = max(own["cases"], verdict["cases"])
    return dict(sorted(sites.items()))
