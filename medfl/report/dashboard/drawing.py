"""The page's drawings as numbers for SVG: where the sites lie around the coordinator, and lines over rounds.

The page forbids inline styles, so that nothing but SVG attributes and classes is used; matplotlib's SVG does not fit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.report.dashboard.words import STATES, TAKES_PART
from medfl.report.text import count, label, number, short

MAPPED_SITES = 48
NAMED_SITES = 8
"""With more sites than this their lines are grey and have no names."""
AROUND = 10
"""Up to this many sites lie on an ellipse, more in columns at both sides."""
MARKED_ROUNDS = 40
STEP = 84
"""Between two sites of a column: what one and its words need."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2 1 2", "1 4", "4 4")
_NAME = 14


@dataclass(frozen=True, slots=True)
class Shape:
    """How a state is drawn. outline: circle or square; mark: SVG path around (0, 0); tone: CSS class of its colour."""

    outline: str
    mark: str
    tone: str
    dashed: bool = False


_CROSS, _BARS, _TICK = "M-5-5 5 5M5-5-5 5", "M-4-6V6M4-6V6", "M-6 0-2 5 6-5"
SHAPES = {
    "ready": Shape("circle", _TICK, "good"),
    "connected": Shape("circle", "M-5 0H5", "idle"),
    "loading": Shape("circle", "M-5 0H5M0-5V5", "idle"),
    "training": Shape("circle", "M-4-6 6 0-4 6Z", "good"),
    "held": Shape("square", "M0-7V2M0 5V7", "warn"),
    "paused": Shape("square", _BARS, "warn"),
    "away": Shape("circle", "", "idle", dashed=True),
    "lost": Shape("circle", _CROSS, "bad", dashed=True),
    "rejected": Shape("square", _CROSS, "bad"),
    "pruned": Shape("square", "M-6 0H6", "bad", dashed=True),
}
_UNKNOWN = Shape("circle", "", "idle")


@dataclass(frozen=True, slots=True)
class Node:
    """A site on the map. ring: the arc around it for the share of local training that is done; above: whether its words
    stand above it, where no link crosses them."""

    site: str
    name: str
    says: str
    state: str
    shape: Shape
    x: float
    y: float
    ring: str
    works: bool
    above: bool


@dataclass(frozen=True, slots=True)
class Map:
    width: int
    height: int
    x: float
    y: float
    nodes: Sequence[Node]
    alt: str


def site_map(sites: Mapping[str, Mapping[str, Any]], width: int) -> Map:
    """The sites around the coordinator. width: of the drawing; below 500 it is made for a narrow screen."""
    shown = dict(list(sites.items())[:MAPPED_SITES])
    if width >= 500 and len(shown) <= AROUND:
        height, places = 400, _around(len(shown), width / 2, 200)
    else:
        height, places = _columns(len(shown), width)
    nodes = [
        _node(site, about, place, place[1] < height / 2)
        for (site, about), place in zip(shown.items(), places, strict=True)
    ]
    return Map(width, height, width / 2, height / 2, nodes, _map_alt(sites))


def _around(many: int, x: float, y: float) -> list[tuple[float, float]]:
    turn = 2 * math.pi / max(many, 1)
    start = math.pi if many == 2 else -math.pi / 2
    return [
        (x + 0.78 * x * math.cos(start + turn * place), y + 138 * math.sin(start + turn * place))
        for place in range(many)
    ]


def _columns(many: int, width: int) -> tuple[int, list[tuple[float, float]]]:
    shares = (0.11, 0.31, 0.69, 0.89) if width >= 500 and many > 2 * AROUND else (0.18, 0.82)
    rows = max(math.ceil(many / len(shares)), 2)
    height = STEP * rows + 30
    return height, [
        (width * shares[place % len(shares)], height / 2 + STEP * (place // len(shares) - (rows - 1) / 2))
        for place in range(many)
    ]


def _node(site: str, about: Mapping[str, Any], place: tuple[float, float], above: bool) -> Node:
    state, progress = about["state"], about["progress"]
    says = STATES.get(state, state)
    if state == "ready" and about["activity"]:
        says = about["activity"]
    if progress:
        says = f"step {progress['done']} of {progress['steps']}"
    # names of many hospitals begin alike, and end in what tells them apart
    name = site if len(site) <= _NAME else f"{site[: _NAME // 2]}…{site[-_NAME // 2 + 1 :]}"
    ring = _arc(progress["done"] / progress["steps"]) if progress and progress["steps"] else ""
    x, y = (round(value, 1) for value in place)
    works = about["activity"] in ("waiting", "training") and state in TAKES_PART
    return Node(site, name, says, state, SHAPES.get(state, _UNKNOWN), x, y, ring, works, above)


def _arc(share: float) -> str:
    """A path clockwise from the top at radius 20; a whole circle is two arcs."""
    share = min(max(share, 0.0), 1.0)
    if share >= 1:
        return "M0-20A20 20 0 0 1 0 20A20 20 0 0 1 0-20"
    angle = 2 * math.pi * share
    x, y = 20 * math.sin(angle), -20 * math.cos(angle)
    return f"M0-20A20 20 0 {int(share > 0.5)} 1 {x:.1f} {y:.1f}"


def _map_alt(sites: Mapping[str, Mapping[str, Any]]) -> str:
    states: dict[str, int] = {}
    for about in sites.values():
        words = STATES.get(about["state"], about["state"])
        states[words] = states.get(words, 0) + 1
    said = ", ".join(f"{many} {words}" for words, many in states.items())
    return (
        f"The coordinator and {count(len(sites), 'site')}: {said or 'none has joined'}. The table of sites says more."
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart. look: number of its colour from 1, 0 for all sites together, None for grey."""

    name: str
    look: int | None
    dash: str
    pieces: Sequence[str]
    dots: Sequence[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    width: int
    height: int
    left: int
    right: int
    bottom: int
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    alt: str


Series = Sequence[tuple[int, float | None, str]]
"""Round, value, and what to say at the point."""


def metric_series(rows: Sequence[Mapping[str, Any]], primary: str) -> dict[str, Series]:
    """Values of the primary metric by round: of each site, and under "" of all together."""
    evaluated = [row for row in rows if row["metrics"]]
    sites = sorted({site for row in evaluated for site in row["sites"]})
    found: dict[str, Series] = {site: [_point(row, row["sites"].get(site)) for row in evaluated] for site in sites}
    return {**found, "": [_point(row, row["metrics"].get(primary)) for row in evaluated]}


def _point(row: Mapping[str, Any], entry: Mapping[str, Any] | None) -> tuple[int, float | None, str]:
    value = (entry or {}).get("value")
    return row["round"], value, f"round {row['round']}: {number(value)}, n {(entry or {}).get('n') or 0}"


def loss_series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    return {"": [(row["round"], row["loss"], f"round {row['round']}: {number(row['loss'])}") for row in rows]}


def chart(title: str, series: Mapping[str, Series], width: int, height: int) -> Chart | None:
    """Lines over rounds; None when there is no value."""
    values = [value for points in series.values() for _, value, _ in points if value is not None]
    rounds = [round_ for points in series.values() for round_, value, _ in points if value is not None]
    if not values:
        return None
    left, right, bottom, top = 48, width - 12, height - 34, 12
    low, high, marks = _scale(min(values), max(values))
    first, last = min(rounds), max(*rounds, min(rounds) + 1)

    def place(round_: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (round_ - first) / (last - first)
        return round(x, 1), round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    named = [name for name in series if name]
    looks = {name: place_ + 1 if len(named) <= NAMED_SITES else None for place_, name in enumerate(named)} | {"": 0}
    lines = [_line(name, points, looks[name], place) for name, points in series.items()]
    x_ticks = [(place(round_, low)[0], str(round_)) for round_ in _whole(first, last, 8 if width > 500 else 5)]
    y_ticks = [(place(first, mark)[1], short(mark)) for mark in marks]
    return Chart(title, width, height, left, right, bottom, lines, x_ticks, y_ticks, _chart_alt(title, series[""]))


def _line(name: str, points: Series, look: int | None, place: Any) -> Line:
    pieces: list[list[str]] = [[]]
    for round_, value, _ in points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append("{},{}".format(*place(round_, value)))
    known = [(round_, value, said) for round_, value, said in points if value is not None]
    marked = known if name == "" and len(known) <= MARKED_ROUNDS else known[-1:]
    dots = [(*place(round_, value), said) for round_, value, said in marked]
    return Line(name, look, DASHES[look - 1] if look else "", [" ".join(piece) for piece in pieces if piece], dots)


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends and marks of an axis that holds all values, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = max(high - low, 0.02 * max(abs(high), abs(low)), 1e-6)
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    start, end = math.floor(low / step), math.ceil(high / step)
    end = max(end, start + 1)
    marks = [round(place * step, 10) for place in range(start, end + 1)]
    return marks[0], marks[-1], marks


def _whole(first: int, last: int, most: int) -> list[int]:
    step = max(1, math.ceil((last - first) / most))
    return list(range(first, last + 1, step))


def _chart_alt(title: str, points: Series) -> str:
    known = [(round_, value) for round_, value, _ in points if value is not None]
    if not known:
        return f"{title}: values of single sites only"
    (first, start), (last, end) = known[0], known[-1]
    words = f"{title}: {number(start)} in round {first}, {number(end)} in round {last}"
    return f"{words}. The table of rounds says the same."


def metric_title(primary: str) -> str:
    return f"{label(primary)} on the validation images"
