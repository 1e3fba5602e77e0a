"""The figures of a run's report. Each returns a matplotlib figure in the page's colours, or None when there is nothing
to draw."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from medfl.report.participation import STATUSES, Status
from medfl.report.svg import INK, MARKS, MUTED, PAPER, SERIES, STATUS, style
from medfl.report.text import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
WIDTH = 9.4
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 3)))
HATCHES = ("", "//", "\\\\", "xx", "--", "||", "++", "///")
NAMED_SITES = 8
"""With more sites than this their lines are grey and have no names."""
MARKED_ROUNDS = 30
"""Up to this many rounds every point has a marker."""
SMALLEST_CELL = 3.0
"""Points: a narrower cell of the participation map has a colour only."""


def _figure(height: float, rows: int = 1, **options: Any) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, **options)
    return figure, list(axes[:, 0])


def _rounds_axis(axes: "Axes", rounds: Records) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlim(min(record["round"] for record in rounds) - 0.5, max(record["round"] for record in rounds) + 0.5)


def curves(rounds: Records, primary: str, sites: Sequence[str]) -> "Figure | None":
    """The primary metric, the losses and the local epochs over rounds: global thick, sites thin."""
    if not rounds:
        return None
    with style():
        figure, (top, middle, bottom) = _figure(6.6, 3, sharex=True, height_ratios=(3, 3, 1.1))
        looks = site_looks(sites)
        _metric_panel(top, rounds, primary, looks)
        _loss_panel(middle, rounds, looks)
        _epochs_panel(bottom, rounds)
        bottom.set_xlabel("round")
        _rounds_axis(bottom, rounds)
        _legend(figure, top, middle)
    return figure


def site_looks(sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each site's line is drawn: colour and dashes of its own for a few sites, all alike for many."""
    if len(sites) > NAMED_SITES:
        return {site: {"color": MUTED, "linewidth": 0.6, "alpha": 0.55} for site in sites}
    return {
        site: {"color": SERIES[number], "linestyle": DASHES[number], "linewidth": 1.1, "label": site}
        for number, site in enumerate(sites)
    }


def _metric_panel(axes: "Axes", rounds: Records, primary: str, looks: Mapping[str, dict[str, Any]]) -> None:
    for site, look in looks.items():
        _line(axes, rounds, partial(_site_metric, site, primary), **look)
    _line(axes, rounds, lambda record: _value(_metrics(record, "global"), primary), **_GLOBAL, label="all sites")
    axes.set_title(f"{label(primary)} on the validation images")
    if not axes.lines:
        _say(axes, "no round was evaluated, or no site holds validation images")


_GLOBAL = {"color": INK, "linewidth": 2.4}


def _loss_panel(axes: "Axes", rounds: Records, looks: Mapping[str, dict[str, Any]]) -> None:
    for site, look in looks.items():
        _line(axes, rounds, partial(_site_loss, site), **look)
    _line(axes, rounds, lambda record: record["losses"]["mean"], **_GLOBAL, label="all sites")
    valued = {"color": INK, "linewidth": 1.4, "linestyle": (0, (2, 1.2)), "label": "validation loss, all sites"}
    _line(axes, rounds, lambda record: _value(_metrics(record, "global"), "loss"), **valued)
    axes.set_title("Training loss (last local epoch) and validation loss")
    values = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata())]
    if not values:
        _say(axes, "no site reported a loss")
    elif min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")


def _epochs_panel(axes: "Axes", rounds: Records) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [record["round"] for record in rounds]
    most = [max(record["local_epochs"].values(), default=math.nan) for record in rounds]
    least = [min(record["local_epochs"].values(), default=math.nan) for record in rounds]
    edges = [number - 0.5 for number in numbers] + [numbers[-1] + 0.5]
    if most != least:
        axes.fill_between(
            edges, [*least, least[-1]], [*most, most[-1]], step="post", color=SERIES[0], alpha=0.25, linewidth=0
        )
    axes.step(edges, [*most, most[-1]], where="post", color=SERIES[0], linewidth=1.6)
    known = [value for value in most if value == value]
    axes.set_ylim(0, max(known, default=1) * 1.25)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set_title("Local epochs" + (" (line: most, band: fewest to most of a site)" if most != least else ""))


def _line(axes: "Axes", rounds: Records, value: Callable[[Mapping[str, Any]], float | None], **look: Any) -> None:
    """One line through the rounds that have a value; gaps where a round has none but lies between two that do."""
    found = [(record["round"], value(record)) for record in rounds]
    points = [(number, float(y)) for number, y in found if y is not None and math.isfinite(y)]
    if points:
        marker = {"marker": "o", "markersize": 2.2 + look.get("linewidth", 1)} if len(rounds) <= MARKED_ROUNDS else {}
        axes.plot(*zip(*points, strict=True), **marker, **look)


def _metrics(record: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (record["metrics"] or {}).get(part) or {}
    return found


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    value: float | None = (metrics.get(name) or {}).get("value")
    return value


def _site_loss(site: str, record: Mapping[str, Any]) -> float | None:
    loss: float | None = record["losses"]["sites"].get(site)
    return loss


def _site_metric(site: str, name: str, record: Mapping[str, Any]) -> float | None:
    own = _metrics(record, "sites").get(site) or _metrics(record, "unseen").get(site) or {}
    return _value(own, name)


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_yticks([])


def _legend(figure: "Figure", *panels: "Axes") -> None:
    """One legend for all panels, each name once."""
    entries = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        columns = math.ceil(len(entries) / math.ceil(len(entries) / 6))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def participation(table: Mapping[str, Sequence[Status]], first: int) -> "Figure":
    """Sites (rows) by rounds (columns). table: statuses by site. first: number of the first round."""
    sites, count = list(table), len(next(iter(table.values())))
    with style():
        figure, (axes,) = _figure(0.75 + 0.21 * len(sites))
        axes.grid(False)
        _cells(axes, table, first)
        _marks(axes, table, first)
        if count <= 4 * MARKED_ROUNDS:
            axes.vlines([first - 0.5 + i for i in range(count + 1)], -0.5, len(sites) - 0.5, PAPER, linewidth=0.8)
        axes.set_yticks(range(len(sites)), [_clipped(site) for site in sites], fontsize=8)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.set_xlabel("round")
        _rounds_axis(axes, [{"round": first}, {"round": first + count - 1}])
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _clipped(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _cells(axes: "Axes", table: Mapping[str, Sequence[Status]], first: int) -> None:
    """Coloured cells; neighbouring rounds of a site with the same status are one rectangle."""
    from matplotlib.collections import PolyCollection

    found: dict[int, list[list[tuple[float, float]]]] = {}
    for row, statuses in enumerate(table.values()):
        start = 0
        for same, run in groupby(statuses):
            stop = start + len(list(run))
            left, right, top, bottom = first + start - 0.5, first + stop - 0.5, row - 0.44, row + 0.44
            if same.colour is not None:
                box = [(left, top), (right, top), (right, bottom), (left, bottom)]
                found.setdefault(same.colour, []).append(box)
            start = stop
    for colour, boxes in found.items():
        axes.add_collection(PolyCollection(boxes, facecolors=STATUS[colour], linewidths=0), autolim=False)


def _marks(axes: "Axes", table: Mapping[str, Sequence[Status]], first: int) -> None:
    """A mark in each cell that is not simply admitted, where cells are large enough for one."""
    count = len(next(iter(table.values())))
    width = WIDTH * 72 * 0.8 / count
    if width < SMALLEST_CELL:
        return
    for status in STATUSES:
        cells = [
            (first + i, row) for row, site in enumerate(table) for i, own in enumerate(table[site]) if own is status
        ]
        if cells and status.mark:
            colour = MUTED if status.colour is None else MARKS[status.colour]
            points = 2.0 if status.colour is None else min(0.7 * width, 5.5)
            fill = "none" if status.mark == "o" else "full"
            look: dict[str, Any] = {
                "linestyle": "none",
                "markersize": points,
                "markeredgewidth": 1.2 if points > 3 else 0.6,
            }
            axes.plot(*zip(*cells, strict=True), marker=status.mark, color=colour, fillstyle=fill, **look)


def moved(rounds: Records, names: Sequence[str]) -> "Figure | None":
    """The hyper-parameters in `names` over rounds, one panel each."""
    if not names:
        return None
    with style():
        figure, panels = _figure(0.5 + 1.25 * len(names), len(names), sharex=True)
        for axes, name in zip(panels, names, strict=True):
            values = [record["hyperparameters"].get(name, math.nan) for record in rounds]
            edges = [record["round"] - 0.5 for record in rounds] + [rounds[-1]["round"] + 0.5]
            axes.step(edges, [*values, values[-1]], where="post", color=SERIES[0], linewidth=1.6)
            axes.set_title(name)
            axes.margins(y=0.2)
        panels[-1].set_xlabel("round")
        _rounds_axis(panels[-1], rounds)
    return figure


def epsilon(rounds: Records, budget: float | None) -> "Figure | None":
    """Epsilon after each round, and the budget as a line."""
    points = [(record["round"], record["epsilon"]) for record in rounds if record.get("epsilon") is not None]
    if not points:
        return None
    with style():
        figure, (axes,) = _figure(2.4)
        # what was spent stays spent until the next round
        edges = [number - 0.5 for number, _ in points] + [points[-1][0] + 0.5]
        values = [value for _, value in points]
        axes.step(edges, [*values, values[-1]], where="post", color=SERIES[0], linewidth=1.8)
        axes.fill_between(edges, [*values, values[-1]], step="post", color=SERIES[0], alpha=0.18, linewidth=0)
        if budget is not None:
            axes.axhline(budget, color=SERIES[1], linewidth=1.4, linestyle="--", label="budget")
            axes.annotate("budget", (edges[0], budget), (3, 3), textcoords="offset points", color=INK, fontsize=8)
        axes.set_ylim(0, 1.2 * max([*values, budget or 0.0]))
        axes.set_ylabel("ε")
        axes.set_xlabel("round")
        _rounds_axis(axes, rounds)
    return figure


def stacked(rounds: Records, parts: Mapping[str, Sequence[float]], unit: str) -> "Figure | None":
    """Bars of `parts` (by name, one value a round) on top of each other."""
    if not rounds or not parts:
        return None
    with style():
        figure, (axes,) = _figure(2.9)
        numbers = [record["round"] for record in rounds]
        floor = [0.0] * len(numbers)
        for number, (name, values) in enumerate(parts.items()):
            colour, hatch = SERIES[number % len(SERIES)], HATCHES[number % len(HATCHES)]
            axes.bar(numbers, values, 0.86, floor, color=colour, edgecolor=PAPER, hatch=hatch, linewidth=0, label=name)
            floor = [below + value for below, value in zip(floor, values, strict=True)]
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(unit)
        axes.set_xlabel("round")
        _rounds_axis(axes, rounds)
        figure.legend(loc="outside upper left", ncols=min(len(parts), 6))
    return figure
