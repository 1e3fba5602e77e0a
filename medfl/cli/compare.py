"""`medfl compare`: variants of a study, run with the same seeds and put side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.cli.run_options import (
    Cache,
    Data,
    Rounds,
    Sites,
    Workers,
    existing,
    ledgers_folder,
    overridden,
    set_option,
    site_folder,
)

if TYPE_CHECKING:
    from medfl.coordinator.observer import Observer
    from medfl.report.compare.results import Comparison
    from medfl.report.compare.runs import Outcome
    from medfl.report.compare.variants import Common, Plan

_FILE_WIDTH = 150


def compare(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    variants: Annotated[Path, typer.Option(help="YAML: name: [key.path=value, ...], one entry a variant.")],
    seeds: Annotated[str, typer.Option(help="Seeds that every variant runs with, separated by commas.")] = "0,1,2",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of runs and results; default: runs/compare-<study>.", show_default=False),
    ] = None,
    sites: Sites = None,
    data: Data = None,
    rounds: Rounds = None,
    overrides: Annotated[list[str] | None, set_option("all variants")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A metric of the table, default the task's primary one; repeatable."),
    ] = None,
    workers: Workers = None,
    cache: Cache = None,
    json: Json = False,
) -> None:
    """Run variants of a study with the same seeds, and put metric, bytes, epsilon and time side by side.

    What is finished is not run again and what was interrupted goes on: give the same command once more.

    Example: medfl compare configs/pneumonia.yaml --variants variants.yaml --rounds 3
    """
    from medfl.report.compare import page, results
    from medfl.report.compare.variants import known_metrics, plan, read_variants, same_images

    folder = out or Path("runs") / f"compare-{study.stem}"
    common = _common(study, _seeds(seeds), folder, sites, data, overridden(rounds, overrides), cache)
    named = read_variants(variants)
    plans = plan(named, variants, common)
    asked = known_metrics(metric or [], plans[0].inputs.study)
    notes = same_images(plans)
    outcomes = _run(plans, workers)
    found = results.compare(plans[0].inputs.study.name, named, outcomes, folder, notes, asked)
    page.write(found, folder)
    if json:
        print_json({"out": str(folder), **found.to_json()})
    else:
        _print(found, folder)
    _raise_failed(outcomes)


def _seeds(text: str) -> tuple[int, ...]:
    from medfl.errors import InputError

    parts = [part.strip() for part in text.split(",")]
    found = [int(part) for part in parts if part.isascii() and part.isdigit() and int(part) < 2**32]
    if len(found) < len(parts) or len(set(found)) < len(found):
        raise InputError.at(f"--seeds {text}", "is not a list of different whole numbers", "for example --seeds 0,1,2")
    return tuple(found)


def _common(
    study: Path,
    seeds: tuple[int, ...],
    out: Path,
    sites: Path | None,
    data: Path | None,
    overrides: list[str],
    cache: Path | None,
) -> "Common":
    from medfl.data.cache import default_folder
    from medfl.report.compare.variants import Common

    return Common(
        study=study,
        seeds=seeds,
        out=out,
        cache=(cache or default_folder()).resolve(),
        sites_of=site_folder,
        ledgers_of=lambda inputs, folder: ledgers_folder(None, inputs, folder),
        sites=sites,
        data=existing(data),
        overrides=tuple(overrides),
    )


def _run(plans: "list[Plan]", workers: int | None) -> "list[Outcome]":
    from medfl.errors import RunError
    from medfl.report.compare.runs import Interrupted, run_all
    from medfl.transport.engines import Engine

    outcomes: list[Outcome] = []
    try:
        for outcome in run_all(plans, _watch, Engine(workers)):
            if outcome.reason:
                _say(f"{outcome.plan.variant}, seed {outcome.plan.seed} failed: {outcome.reason}")
            outcomes.append(outcome)
    except Interrupted as error:
        done = f"{len(outcomes)} of {len(plans)} runs are done"
        raise RunError.at("medfl compare", f"was interrupted, {done}", "give the same command to go on") from error
    return outcomes


def _watch(one: "Plan", number: int, count: int) -> "Observer":
    from medfl.cli.progress import make_progress
    from medfl.study.build import build_task

    verb = "goes on" if one.state == "begun" else "starts"
    _say(f"run {number} of {count}: {one.variant}, seed {one.seed}, {verb}")
    return make_progress(console, build_task(one.inputs.study).primary)


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print(found: "Comparison", folder: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from medfl.report.compare.page import cells, columns

    seeds = ", ".join(map(str, found.seeds))
    table = Table(title=f"{found.study}: {found.split} images, seeds {seeds}", title_justify="left")
    table.add_column("variant", overflow="fold")
    for name in columns(found):
        table.add_column(name, justify="right")
    for row in found.rows:
        table.add_row(escape(row.name), *map(escape, cells(found, row)))
    screen = result()
    if not screen.is_terminal:
        # whoever reads a file can scroll
        screen.width = max(screen.width, _FILE_WIDTH)
    screen.print(table)
    if len(found.seeds) > 1:
        explained = "±: half of the 95 % t-interval of the mean over seeds; up and down: bytes of training"
        screen.print(explained, highlight=False, soft_wrap=True)
    for note in found.notes:
        screen.print(note, highlight=False, markup=False, soft_wrap=True)
    screen.print(f"{folder / 'compare.html'}", highlight=False, markup=False, soft_wrap=True)


def _raise_failed(outcomes: "list[Outcome]") -> None:
    from medfl.errors import Fault, RunError

    failed = [one for one in outcomes if one.summary is None]
    if failed:
        again = "mend it and give the same command again: what is finished is not run again"
        raise RunError(*(Fault(f"{one.plan.variant}, seed {one.plan.seed}", one.reason, again) for one in failed))
