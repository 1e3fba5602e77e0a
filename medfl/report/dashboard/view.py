"""The page's fragments as HTML. The server draws them all; the browser only puts them in place."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medfl import __version__
from medfl.report import text, views
from medfl.report.dashboard import drawing
from medfl.report.dashboard.state import LiveState
from medfl.report.dashboard.words import STATES, TAKES_PART

WIDE, NARROW = 600, 340
SHOWN_ROUNDS = 50
LOW_BUDGET = 0.8
"""From this share of the budget on the page warns."""

FRAGMENTS = {
    "tiles": ("run", "sites", "privacy", "traffic"),
    "map": ("run", "sites"),
    "curve": ("run", "rounds"),
    "sites": ("sites",),
    "metrics": ("run", "sites"),
    "privacy": ("run", "privacy"),
    "regulator": ("regulator",),
    "traffic": ("traffic",),
    "rounds": ("run", "rounds"),
    "log": ("events",),
}
"""The fragments in their order, and the parts of the state that each shows."""


class Pages:
    """Renders the page and its fragments; a fragment is made again only when its parts changed. For one thread."""

    def __init__(self, state: LiveState) -> None:
        self.state = state
        self._parts: dict[str, Any] = {}
        self._seen = 0
        self._changed = dict.fromkeys(FRAGMENTS, 0)
        self._html: dict[str, tuple[int, str]] = {}
        self._environment = _environment()
        self.update()

    def update(self) -> int:
        """Take in what changed; the version that is shown from now on."""
        version, parts = self.state.changes(self._seen)
        for name, needs in FRAGMENTS.items():
            if not parts.keys().isdisjoint(needs):
                self._changed[name] = version
        self._parts |= parts
        self._seen = version
        return version

    def since(self, version: int) -> dict[str, str]:
        """The fragments that changed after a version."""
        return {name: self._render(name) for name, changed in self._changed.items() if changed > version}

    def page(self) -> str:
        template = self._environment.get_template("dashboard.html.jinja")
        fragments = {name: self._render(name) for name in FRAGMENTS}
        return template.render(
            fragments=fragments,
            cursor=self.cursor,
            over=self.over,
            run=self._parts["run"],
            title=self.title,
            news=self.news,
            version=__version__,
        )

    @property
    def cursor(self) -> str:
        return f"{self.state.epoch}-{self._seen}"

    @property
    def title(self) -> str:
        return f"{where(self._parts['run'])}, {self._parts['run']['study']}"

    @property
    def news(self) -> str:
        """The newest entry of the log, in a sentence."""
        events = self._parts["events"]
        if not events:
            return "Nothing has happened yet."
        last = events[-1]
        return f"{last['site']}: {last['text']}" if last["site"] else f"{last['text'][:1].upper()}{last['text'][1:]}"

    @property
    def over(self) -> bool:
        return bool(self._parts["run"]["phase"] == "ended")

    def _render(self, name: str) -> str:
        kept = self._html.get(name)
        if kept is None or kept[0] != self._changed[name]:
            html = self._environment.get_template(f"{name}.html.jinja").render(CONTEXTS[name](self._parts))
            self._html[name] = kept = (self._changed[name], html)
        return kept[1]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medfl.report.dashboard", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(text, name) for name in ("number", "size", "duration", "listed", "short")}
    environment.globals |= {"count": text.count, "label": text.label, "states": STATES, "shapes": drawing.SHAPES}
    return environment


def where(run: Mapping[str, Any]) -> str:
    """Where a run is, in a few words."""
    done, planned = run["done"], run["planned"]
    words = {
        "starting": "Starting",
        "training": f"Round {run['round']} of {planned}",
        "evaluating": f"Evaluating after round {max(done, run['round'] or 0)} of {planned}",
        "between": f"Round {done} of {planned} done",
        "broken off": f"Broken off after round {done} of {planned}",
        "ended": f"Ended after round {done} of {planned}",
    }
    return words[run["phase"]]


def _hub(run: Mapping[str, Any]) -> str:
    """Where a run is, in what fits into the coordinator's box."""
    words = {"evaluating": "Evaluating", "broken off": "Broken off", "ended": "Ended"}
    return words.get(run["phase"]) or where(run)


def _tiles(parts: Mapping[str, Any]) -> dict[str, Any]:
    run, sites = parts["run"], parts["sites"]
    there = sum(about["state"] in TAKES_PART for about in sites.values())
    latest = _latest(parts)
    return {
        "run": run,
        "where": where(run),
        "metric": (latest or {}).get("global", {}).get(run["primary"]) or {"value": None, "n": None},
        "split": latest["split"] if latest else "",
        "there": there,
        "all": len(sites),
        "privacy": parts["privacy"],
        "bytes": sum(parts["traffic"].values()),
    }


def _latest(parts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The newest evaluation."""
    found: Mapping[str, Any] | None = parts["run"]["final"] or parts["run"]["latest"]
    return found


def _map(parts: Mapping[str, Any]) -> dict[str, Any]:
    maps = [drawing.site_map(parts["sites"], width) for width in (WIDE, NARROW)]
    return {"maps": maps, "hub": _hub(parts["run"]), "more": max(0, len(parts["sites"]) - drawing.MAPPED_SITES)}


def _curve(parts: Mapping[str, Any]) -> dict[str, Any]:
    primary, rows = parts["run"]["primary"], parts["rounds"]
    title, series = drawing.metric_title(primary), drawing.metric_series(rows, primary)
    losses = drawing.loss_series(rows)
    return {
        "charts": [
            [drawing.chart(title, series, WIDE, 250), drawing.chart(title, series, NARROW, 230)],
            [drawing.chart("Training loss", losses, WIDE, 170), drawing.chart("Training loss", losses, NARROW, 170)],
        ],
        "named": len(series) - 1 <= drawing.NAMED_SITES,
    }


def _metrics(parts: Mapping[str, Any]) -> dict[str, Any]:
    latest, final = _latest(parts), parts["run"]["final"]
    columns = list((latest or {"global": {}})["global"])
    rows = []
    for site, about in parts["sites"].items():
        found, round_ = about["metrics"], about["metrics_round"]
        if final:
            found, round_ = final["sites"].get(site) or final["unseen"].get(site), None
        if found:
            cells = [views.cell(found[name], bounded=False) for name in columns if name in found]
            rows.append((site, about["role"], round_, cells))
    total = [views.cell(latest["global"][name], bounded=False) for name in columns] if latest else []
    return {
        "columns": columns,
        "rows": rows,
        "total": total,
        "split": latest["split"] if latest else "",
        "final": final,
    }


def _privacy(parts: Mapping[str, Any]) -> dict[str, Any]:
    privacy = parts["privacy"]
    share = None
    if privacy and privacy["budget"] and privacy["epsilon"] is not None:
        share = privacy["epsilon"] / privacy["budget"]
    return {"privacy": privacy, "channel": parts["run"]["channel"], "share": share, "low": (share or 0) >= LOW_BUDGET}


def _rounds(parts: Mapping[str, Any]) -> dict[str, Any]:
    rows = parts["rounds"]
    return {
        "rows": rows[: -SHOWN_ROUNDS - 1 : -1],
        "earlier": max(0, len(rows) - SHOWN_ROUNDS),
        "primary": parts["run"]["primary"],
        "private": any(row["epsilon"] is not None for row in rows),
    }


def _as_it_is(name: str) -> Any:
    return lambda parts: {name: parts[name]}


CONTEXTS = {
    "tiles": _tiles,
    "map": _map,
    "curve": _curve,
    "sites": _as_it_is("sites"),
    "metrics": _metrics,
    "privacy": _privacy,
    "regulator": _as_it_is("regulator"),
    "traffic": _as_it_is("traffic"),
    "rounds": _rounds,
    "log": lambda parts: {"events": parts["events"][::-1]},
}
