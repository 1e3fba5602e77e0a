"""The figures of a comparison, in the colours and lines of a run's report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medfl.report.compare.results import Comparison, Row
from medfl.report.compare.statistics import Estimate
from medfl.report.plots import DASHES, WIDTH
from medfl.report.svg import SERIES, style
from medfl.report.text import label, size

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLUMNS = 5
"""Names a line of the legend."""
_MARKS = 12
"""Markers on a line at most, so that they can be told apart."""
_NEAR, _STEP = 0.03, 9.0
"""Variants whose bytes differ by less than this share are drawn this many typographic points apart."""


def looks(number: int) -> tuple[str, str, Any]:
    """Colour, marker and dashes of a variant by its number from 0: of 64 no two have colour and marker in common, and
    the first eight differ in each."""
    turn = number + number // len(SERIES)
    return SERIES[number % len(SERIES)], _MARKERS[turn % len(_MARKERS)], DASHES[turn % len(DASHES)]


def against_bytes(found: Comparison) -> "Figure | None":
    """The final metric against the bytes of training, both ways, with intervals over seeds; None without a run."""
    points = [point for number, row in enumerate(found.rows) if (point := _point(number, row))]
    if not points:
        return None
    with style():
        figure, axes = _figure(4.2, len(points))
        handles = [_draw(axes, point, _aside(point, points)) for point in points]
        reach = [edge for point in points for edge in (point.metric.low, point.metric.high) if edge is not None]
        _limits(axes, [value for point in points for value in point.sent], [*reach, *_measured(points)])
        _finish(axes, f"{label(found.primary)} on the {found.split} images")
        figure.legend(handles, [point.name for point in points], loc="outside lower center", ncols=_COLUMNS)
    return figure


def courses(found: Comparison) -> "Figure | None":
    """The validation metric against the bytes of training so far, the mean over seeds; None when no round was
    evaluated."""
    rows = [row for row in found.rows if _mean_course(row)]
    if not rows:
        return None
    with style():
        figure, axes = _figure(3.8, len(rows))
        for number, row in enumerate(found.rows):
            if course := _mean_course(row):
                colour, marker, dashes = looks(number)
                look: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 5.5}
                every = -(-len(course) // _MARKS)
                axes.plot(*zip(*course, strict=True), linewidth=1.5, label=row.name, markevery=every, **look)
        sent = [point for row in rows for point, _ in _mean_course(row)]
        axes.set_xlim(min(sent) / 1.1, max(sent) * 1.1)
        _finish(axes, f"{label(found.primary)} on the validation images, mean over seeds")
        figure.legend(loc="outside lower center", ncols=_COLUMNS)
    return figure


def _figure(height: float, named: int) -> "tuple[Figure, Axes]":
    """A figure that names so many variants below. height: in inches, with one line of names."""
    from matplotlib.figure import Figure

    lines = -(-named // _COLUMNS)
    figure = Figure(figsize=(WIDTH, height + 0.2 * (lines - 1)), layout="constrained")
    return figure, figure.subplots()


@dataclass(frozen=True)
class _Point:
    """A variant in the figure. sent: bytes by run; marks: (bytes, metric) by run."""

    name: str
    number: int
    metric: Estimate
    sent: tuple[float, ...]
    marks: tuple[tuple[float, float], ...]

    @property
    def bytes(self) -> float:
        return sum(self.sent) / len(self.sent)


def _point(number: int, row: Row) -> _Point | None:
    metric = row.over_seeds("metric")
    marks = tuple((float(run.bytes), run.metric) for run in row.runs if run.metric is not None and run.bytes)
    if metric is None or not marks:
        return None
    return _Point(row.name, number, metric, tuple(sent for sent, _ in marks), marks)


def _measured(points: Sequence[_Point]) -> list[float]:
    return [value for point in points for _, value in point.marks]


def _aside(point: _Point, points: Sequence[_Point]) -> float:
    """Typographic points to the right, so that variants of (nearly) equal bytes stand side by side."""
    near = [other for other in points if abs(other.bytes - point.bytes) < _NEAR * point.bytes]
    return _STEP * (near.index(point) - (len(near) - 1) / 2)


def _draw(axes: "Axes", point: _Point, aside: float) -> "Artist":
    """Draw a variant; returns what stands for it in the legend."""
    from matplotlib.transforms import ScaledTranslation

    colour, marker, _ = looks(point.number)
    place = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    if len(point.marks) > 1:
        sent, measured = zip(*point.marks, strict=True)
        axes.scatter(sent, measured, 12, color=colour, marker=marker, alpha=0.4, linewidths=0, transform=place)
    least, most, metric = min(point.sent), max(point.sent), point.metric
    drawn = axes.errorbar(
        [point.bytes],
        [metric.mean],
        # on a logarithmic axis nothing may reach below 0, so bytes show their range
        xerr=[[point.bytes - least], [most - point.bytes]] if most > least else None,
        yerr=None if metric.high is None else metric.high - metric.mean,
        fmt=marker,
        color=colour,
        capsize=3,
        markersize=8,
        linewidth=1.3,
        transform=place,
    )
    line: Artist = drawn[0]
    return line


def _limits(axes: "Axes", sent: Sequence[float], measured: Sequence[float]) -> None:
    margin = 0.08 * (max(measured) - min(measured)) or 0.05
    axes.set_xlim(min(sent) / 1.35, max(sent) * 1.35)
    axes.set_ylim(min(measured) - margin, max(measured) + margin)


def _mean_course(row: Row) -> Sequence[tuple[float, float]]:
    """(bytes, metric) of the rounds that all runs of a variant evaluated."""
    courses = [{step.round: step for step in run.course} for run in row.runs]
    if not courses:
        return []
    shared = sorted(set.intersection(*(set(course) for course in courses)))
    return [
        (
            sum(course[number].bytes for course in courses) / len(courses),
            sum(course[number].metric for course in courses) / len(courses),
        )
        for number in shared
    ]


def _finish(axes: "Axes", title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    # the narrower the range, the more of a decade is named
    steps = tuple(range(1, 10)) if high < 6 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes of training, to and from the sites (log scale)")
    axes.set_title(title)
