"""`report.html`: one self-contained page about a run, from its journal. No script, nothing from elsewhere."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medfl.coordinator.async_rounds import asynchrony
from medfl.coordinator.files import write_text
from medfl.report import participation, plots, text, views
from medfl.report.privacy import privacy_of, rounds_charged
from medfl.report.run import RunRecord, read_run
from medfl.report.svg import Drawings

SITES_A_MAP = 36
"""Rows of one participation map: what fits on a sheet of A4."""
PHASE_SHARE = 0.01
"""Phases that took less than this share of all seconds are drawn together."""


def write_report(run: Path, pictures: bool = True) -> Path:
    """Write `report.html` into the run folder and return its path.

    run: folder of a run, finished or not. pictures: also show predictions for some test images, if the run's images
    and model are still there; the page then holds patients' images. InputError when the folder holds no run.
    """
    record = read_run(run)
    path = run / "report.html"
    write_text(path, _environment().get_template("report.html.jinja").render(context(record, pictures)))
    return path


def new_environment() -> Environment:
    """What all templates of a run share: names and reasons come from strangers, so everything is escaped."""
    return Environment(
        loader=PackageLoader("medfl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _environment() -> Environment:
    environment = new_environment()
    environment.filters |= {name: getattr(text, name) for name in ("number", "size", "duration", "listed", "short")}
    environment.globals |= {"count": text.count, "label": text.label}
    return environment


def context(run: RunRecord, pictures: bool) -> dict[str, Any]:
    """Everything that the template shows."""
    found, drawings, privacy = views.results(run), Drawings(), privacy_of(run)
    changing, fixed = hyperparameters(run.rounds)
    events = list(participation.events(run.rounds))
    asked = [site for site in run.sites if _took_part(run, site)]
    return {
        "run": run,
        "summary": run.summary,
        "study": run.study,
        "study_yaml": yaml.safe_dump(dict(run.study), sort_keys=False, allow_unicode=True),
        "stopped": text.stopped(run.study["stop"], run.summary["stopped_by"]),
        "period": _period(run.started, run.ended),
        "results": found,
        "findings": views.findings(run, found),
        "statuses": participation.STATUSES,
        "outcomes": participation.counts(participation.by_site(run.rounds, asked)),
        "events": events,
        "grouped": participation.grouped(events),
        "privacy": privacy,
        "charged": rounds_charged(privacy.ledger) if privacy.ledger else "",
        "moved": changing,
        "fixed": fixed,
        "channel": run.study["update"]["channel"]["kind"],
        "study_step": run.study["federation"]["schedule"].get("size", 1),
        "asynchronous": asynchrony(run.rounds).get("asynchronous"),
        "site_bytes": _site_bytes(run.rounds),
        "site_seconds": _site_seconds(run.rounds),
        "model": model_file(run.folder),
        "plots": {**_drawn(run, drawings, changing), "participation": _maps(run, asked, drawings)},
        "pictures": _pictures(run, pictures),
    }


def _period(started: str, ended: str) -> str:
    """Two times of ISO 8601 in UTC as words."""
    first, last = (f"{time[:10]} {time[11:16]}" for time in (started, ended))
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def hyperparameters(rounds: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, float]]:
    """Names of those that moved, and the values of those that did not."""
    names = list(dict.fromkeys(name for record in rounds for name in record["hyperparameters"]))
    values = {name: {record["hyperparameters"].get(name) for record in rounds} for name in names}
    changing = [name for name in names if len(values[name]) > 1]
    return changing, {name: next(iter(values[name])) for name in names if name not in changing}


def _drawn(run: RunRecord, drawings: Drawings, changing: Sequence[str]) -> dict[str, Any]:
    rounds, primary = run.rounds, run.summary["primary"]
    span = f"rounds {rounds[0]['round']} to {rounds[-1]['round']}" if rounds else "no round"
    figures = {
        "curves": (plots.curves(rounds, primary, run.sites), f"{text.label(primary)}, losses and local epochs, {span}"),
        "moved": (plots.moved(rounds, changing), f"Values of {text.listed(changing)}, {span}"),
        "bytes": (_bytes_plot(rounds), f"Megabytes sent in each round by direction, {span}"),
        "seconds": (_seconds_plot(rounds), f"Seconds of each round by phase, {span}"),
        "epsilon": (plots.epsilon(rounds, _budget(run)), f"Epsilon after each round, {span}"),
    }
    return {name: drawings.inline(figure, alt) if figure else None for name, (figure, alt) in figures.items()}


def _budget(run: RunRecord) -> float | None:
    budget: float | None = (run.study.get("privacy") or {}).get("epsilon")
    return budget


def _maps(run: RunRecord, sites: Sequence[str], drawings: Drawings) -> list[Markup]:
    """The participation of `sites`, a figure for each SITES_A_MAP of them."""
    if not run.rounds:
        return []
    table, drawn = participation.by_site(run.rounds, sites), []
    for start in range(0, len(sites), SITES_A_MAP):
        part = {site: table[site] for site in sites[start : start + SITES_A_MAP]}
        alt = f"What became of each update of {text.count(len(part), 'site')}; the table and list below say the same"
        drawn.append(drawings.inline(plots.participation(part, run.rounds[0]["round"]), alt))
    return drawn


def _took_part(run: RunRecord, site: str) -> bool:
    """Whether the site was ever asked, or could have been."""
    cases = (run.summary["data"].get(site) or {}).get("cases") or {}
    return bool(cases.get("train")) or any(site in record["participants"] for record in run.rounds)


def _bytes_plot(rounds: Sequence[Mapping[str, Any]]) -> Any:
    names = {
        "updates to the coordinator": "up_bytes",
        "model to the sites": "down_bytes",
        "evaluation to the coordinator": "evaluation_up_bytes",
        "evaluation to the sites": "evaluation_down_bytes",
    }
    parts = {name: [record["bytes"].get(key, 0) / 1e6 for record in rounds] for name, key in names.items()}
    return plots.stacked(rounds, {name: values for name, values in parts.items() if any(values)}, "MB (10⁶ bytes)")


def _seconds_plot(rounds: Sequence[Mapping[str, Any]]) -> Any:
    phases = list(dict.fromkeys(phase for record in rounds for phase in record["seconds"]))
    parts = {phase: [record["seconds"].get(phase, 0.0) for record in rounds] for phase in phases}
    total = sum(sum(values) for values in parts.values())
    large = {phase: values for phase, values in parts.items() if sum(values) >= PHASE_SHARE * total}
    small = [parts[phase] for phase in phases if phase not in large]
    if small:
        large["other phases"] = [sum(values) for values in zip(*small, strict=True)]
    return plots.stacked(rounds, large, "seconds")


def _site_bytes(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Bytes of training by site and direction over all rounds."""
    total: dict[str, dict[str, int]] = {}
    for record in rounds:
        for site, sent in (record["bytes"].get("sites") or {}).items():
            own = total.setdefault(site, {"up": 0, "down": 0})
            for way in own:
                own[way] += int(sent[way])
    return dict(sorted(total.items()))


def _site_seconds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Rounds and seconds of local training by site, as the sites measured them."""
    spent: dict[str, list[float]] = {}
    for record in rounds:
        for site, phases in (record.get("site_seconds") or {}).items():
            spent.setdefault(site, []).append(float(phases.get("train", 0.0)))
    return {site: (len(each), sum(each)) for site, each in sorted(spent.items())}


def model_file(folder: Path) -> dict[str, Any] | None:
    """SHA-256 and size of the saved model; None when there is none."""
    path = folder / "model" / "model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _pictures(run: RunRecord, wanted: bool) -> Mapping[str, Any]:
    """{"shown": pictures, "why": why there are none}."""
    if not wanted:
        return {"shown": [], "why": "Sample predictions were left out on request."}
    from medfl.report.pictures import pictures_of

    return pictures_of(run)
