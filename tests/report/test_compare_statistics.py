"""Means over seeds: intervals that hold, and what the figures and tables make of them."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from scipy import stats

from medfl.report.compare import figures, page
from medfl.report.compare.results import Comparison, Row, Run, Step
from medfl.report.compare.statistics import CONFIDENCE, estimate, t_quantile
from medfl.report.svg import Drawings


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 99])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.999])
def test_quantiles_are_those_of_student(probability: float, freedom: int) -> None:
    assert stats.t.cdf(t_quantile(probability, freedom), freedom) == pytest.approx(probability, rel=1e-9)


# Student's table of two-sided 95 %
@pytest.mark.parametrize(("freedom", "tabled"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_quantiles_are_those_of_the_tables(freedom: int, tabled: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(tabled, abs=5e-4)


def covered(half_of: float) -> float:
    """How often an interval of `half_of` standard errors over three values holds the true mean."""
    draw, hits = random.Random(0), 0
    for _ in range(4000):
        values = [draw.gauss(0.5, 0.1) for _ in range(3)]
        found = estimate(values)
        assert found is not None
        assert found.high is not None
        scale = half_of / t_quantile(0.5 + CONFIDENCE / 2, 2)
        hits += abs(found.mean - 0.5) <= scale * (found.high - found.mean)
    return hits / 4000


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    assert abs(covered(t_quantile(0.975, 2)) - CONFIDENCE) < 0.015


def test_an_interval_of_the_normal_distribution_would_not() -> None:
    assert covered(NormalDist().inv_cdf(0.975)) < CONFIDENCE - 0.1


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    found = estimate([0.4])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.4, None, None)
    assert estimate([]) is None


RUN = Run(
    seed=0,
    folder="a/seed0",
    metric=0.8,
    n=40,
    worst=0.7,
    worst_site="east",
    rounds=3,
    stopped_by="rounds",
    up_bytes=2_000_000,
    down_bytes=3_000_000,
    evaluation_up_bytes=10,
    evaluation_down_bytes=20,
    epsilon=None,
    unit=None,
    seconds=12.0,
    metrics={"auroc": {"value": 0.8, "n": 40}, "loss": {"value": 0.5, "n": 40}, "f1": {"value": None, "n": 0}},
    course=(Step(1, 1000, 0.5), Step(2, 2000, 0.8)),
)


def comparison(*rows: Row) -> Comparison:
    return Comparison("study", "classification", "auroc", "test", (0, 1), rows)


def row(name: str, *runs: Run) -> Row:
    return Row(name, None, (), runs, {})


def test_cells_split_bytes_and_keep_evaluation_apart() -> None:
    found = comparison(row("a", RUN))
    cells = dict(zip(page.columns(found), page.cells(found, found.rows[0]), strict=True))
    assert cells["AUROC"] == "0.800"
    assert cells["worst site"] == "0.700 (east)"
    assert (cells["up"], cells["down"], cells["evaluation"]) == ("2 MB", "3 MB", "30 B")
    assert cells["ε"] == "none"


def test_epsilon_is_the_largest_of_the_seeds() -> None:
    runs = [replace(RUN, seed=seed, epsilon=epsilon, unit="patient") for seed, epsilon in enumerate((2.0, 4.0, 3.0))]
    found = comparison(row("a", *runs))
    assert "4 per patient" in page.cells(found, found.rows[0])


def test_figures_draw_every_variant_and_bars_over_seeds() -> None:
    spread = [replace(RUN, seed=seed, metric=0.7 + seed / 10, up_bytes=10**6 * (seed + 1)) for seed in range(3)]
    found = comparison(row("moves", *spread), row("still", RUN), row("again", RUN))
    figure = figures.against_bytes(found)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    bars = [container for container in axes.containers if container.has_yerr]
    assert len(axes.containers) == 3
    assert [(bar.has_xerr, bar.has_yerr) for bar in bars] == [(True, True)]
    # equal bytes: side by side, at their true places
    still, again = (container[0] for container in axes.containers[1:])
    assert list(still.get_xdata()) == list(again.get_xdata()) == [5_000_000]
    figure.canvas.draw()
    places = [line.get_transform().transform((5_000_000, 0.8))[0] for line in (still, again)]
    assert places[0] != places[1]
    assert "<svg" in Drawings().inline(figure, "")


def test_other_metrics_stand_in_the_table_with_their_own_difference() -> None:
    before = replace(RUN, metrics={"auroc": {"value": 0.9, "n": 40}, "loss": {"value": 0.2, "n": 40}})
    found = comparison(row("a", before), replace(row("b", RUN), differences={"loss": estimate([0.3])}))
    found = replace(found, asked=("loss", "f1", "auroc"))
    cells = dict(zip(page.columns(found), page.cells(found, found.rows[1]), strict=True))
    assert list(cells)[:7] == ["Loss", "Loss minus a", "F1", "F1 minus a", "AUROC", "AUROC minus a", "worst site"]
    assert (cells["Loss"], cells["Loss minus a"], cells["F1"]) == ("0.500", "+0.300", "–")
    assert "worst site" not in page.columns(replace(found, asked=("loss",)))


def distinct(looks: Callable[[int], tuple[Any, ...]], count: int) -> bool:
    """Whether colour and marker, and colour and dashes, tell so many variants apart."""
    found = [looks(number) for number in range(count)]
    return len({look[:2] for look in found}) == len({(look[0], look[2]) for look in found}) == count


def test_more_variants_than_colours_can_be_told_apart() -> None:
    assert distinct(figures.looks, 64)
    assert all(len({look[part] for look in map(figures.looks, range(8))}) == 8 for part in range(3))
    # colour and marker that turn together begin anew with the ninth
    assert not distinct(lambda number: figures.looks(number % 8), 9)


def test_nothing_to_draw() -> None:
    assert figures.against_bytes(comparison(Row("a", None, (), (), {0: "failed"}))) is None
    assert figures.courses(comparison(row("a", replace(RUN, course=())))) is None


def test_a_page_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    failed = Row("a", None, ("x=<script>",), (RUN,), {1: "<img src=x>"})
    page.write(comparison(failed), tmp_path)
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;img" in text
