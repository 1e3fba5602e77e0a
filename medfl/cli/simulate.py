"""`medfl simulate`: a whole federation on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.cli.run_options import (
    Cache,
    Data,
    Overrides,
    Rounds,
    Sites,
    Workers,
    existing,
    ledgers_folder,
    overridden,
    site_folder,
)
from medfl.cli.tables import print_sites
from medfl.errors import InputError
from medfl.folders import RUN, refuse_other

if TYPE_CHECKING:
    from medfl.coordinator.observer import Observer
    from medfl.study.sources import RunInputs

EngineName = Literal["pool", "ray"]


def simulate(
    study: Annotated[Path | None, typer.Argument(help="The study's YAML file.", show_default=False)] = None,
    sites: Sites = None,
    data: Data = None,
    rounds: Rounds = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for --set seed=N.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/<study>-<number>.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    workers: Workers = None,
    engine: Annotated[
        EngineName, typer.Option(help="What sites train on: processes of this machine, or Ray (extra `ray`).")
    ] = "pool",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default: Ray on this machine.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with this run folder; nothing else is needed.", show_default=False),
    ] = None,
    pooled: Annotated[bool, typer.Option("--pooled", help="Baseline: all training images at one site.")] = False,
    only: Annotated[
        str | None, typer.Option(metavar="SITE", help="Baseline: this site alone trains.", show_default=False)
    ] = None,
    sink: Annotated[
        list[str] | None, typer.Option(help="Also send metrics to: tensorboard, mlflow. Repeatable.")
    ] = None,
    cache: Cache = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the privacy ledgers, which add up over runs; default: $MEDFL_LEDGERS, else "
            "~/.local/share/medfl/ledgers; for synthetic images the run folder.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html and the model card.")] = True,
    json: Json = False,
) -> None:
    """Run a whole federation on this machine.

    Example: medfl simulate configs/pneumonia.yaml --rounds 5 --set local.batch_size=8
    """
    from medfl.cli.progress import make_progress
    from medfl.coordinator.observer import Observers
    from medfl.coordinator.runner import inputs_of
    from medfl.coordinator.runner import simulate as run
    from medfl.transport.engines import Engine

    if ray_address is not None and engine != "ray":
        raise InputError.at("--ray-address", "goes with --engine ray", "add --engine ray, or leave it out")
    if resume is not None:
        given: dict[str, Any] = {
            "STUDY": study,
            "--sites": sites,
            "--data": data,
            "--rounds": rounds,
            "--seed": seed,
            "--out": out,
        }
        given |= {
            "--set": overrides or None,
            "--cache": cache,
            "--ledgers": ledgers,
            "--pooled": pooled or None,
            "--only": only,
        }
        _refuse_with_resume([name for name, value in given.items() if value is not None])
        # the run of a coordinator goes on with its sites, not here
        refuse_other(resume, RUN)
        inputs, folder = inputs_of(resume), resume
    else:
        inputs = _inputs(study, sites, data, rounds, seed, overrides or [], cache, pooled, only)
        folder = out or _next_folder(inputs.study.name)
        inputs = inputs.model_copy(update={"ledgers": ledgers_folder(ledgers, inputs, folder).resolve()})
    try:
        observers = [make_progress(console, _primary(inputs)), *_sinks(sink or [], folder)]
        chosen = Engine(workers, engine == "ray", ray_address)
        summary = run(inputs, folder, Observers(observers), resume=resume is not None, engine=chosen)
    finally:
        if resume is None and out is None and not any(folder.iterdir()):
            folder.rmdir()
    if report:
        write_reports(folder)
    if json:
        print_json({"run": str(folder), **summary})
    else:
        print_summary(folder, summary)


def _refuse_with_resume(given: list[str]) -> None:
    if given:
        raise InputError.at(
            ", ".join(given), "cannot be given with --resume: a run keeps what it was started with", "leave it out"
        )


def _inputs(
    study: Path | None,
    sites: Path | None,
    data: Path | None,
    rounds: int | None,
    seed: int | None,
    overrides: list[str],
    cache: Path | None,
    pooled: bool,
    only: str | None,
) -> "RunInputs":
    from medfl.data.cache import default_folder
    from medfl.study.load import load_sites, load_study
    from medfl.study.sources import RunInputs, adapt_to_images

    if study is None:
        raise InputError.at("STUDY", "is missing", "give a study file, or --resume RUN")
    images = existing(data)
    read = load_study(study, [*([f"seed={seed}"] if seed is not None else []), *overridden(rounds, overrides)])
    folder = sites or site_folder(study)
    needed = data is None and read.data.source.kind == "synthetic"
    if folder and not needed and not sites:
        note = f"the site files in {folder} are not read with images from elsewhere: their policies need --sites"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    inputs = RunInputs(
        study=read,
        sites=tuple(load_sites(folder)) if folder and (needed or sites) else (),
        data=images,
        cache=(cache or default_folder()).resolve(),
        pooled=pooled,
        only=only,
    )
    adapted, notes = adapt_to_images(inputs)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return adapted


def _next_folder(name: str) -> Path:
    """A new folder, made at once so that two runs that start together do not choose the same."""
    number = 1
    while True:
        folder = Path("runs") / f"{name}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _primary(inputs: "RunInputs") -> str:
    from medfl.study.build import build_task

    return build_task(inputs.study).primary


def _sinks(names: list[str], out: Path) -> "list[Observer]":
    if not names:
        return []
    from medfl.report.sinks import make_sink

    return [make_sink(name, out) for name in names]


def write_reports(folder: Path) -> None:
    """report.html and the model card of a finished run."""
    from medfl.report.card import write_model_card
    from medfl.report.page import write_report

    write_model_card(folder)
    write_report(folder)


def print_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The metrics of each site, and where the run lies."""
    split = summary["metrics"]["split"]
    cases = {site: own["cases"].get(split, 0) for site, own in summary["data"].items()}
    print_sites({**summary, "cases": cases})
    result().print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
