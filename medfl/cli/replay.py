"""`medfl coordinator replay`: what an asynchronous run's journal recorded, once more."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.cli.run_options import Cache, Data, existing
from medfl.errors import InputError
from medfl.folders import run_in

if TYPE_CHECKING:
    from medfl.coordinator.async_replay import Replay, Watch
    from medfl.study.sources import RunInputs


def replay(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run folder, or the coordinator's folder.", show_default=False)
    ],
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder of site files whose images to use; default: the run's own.", show_default=False),
    ] = None,
    data: Data = None,
    cache: Cache = None,
    json: Json = False,
) -> None:
    """Train the recorded answers of an asynchronous run again, in their order, and compare the models bit for bit. For
    an auditor who has the images of all sites. Nothing is written to the folder. Exit code 1 when they differ.

    Example: medfl coordinator replay runs/fedasync-001
    """
    from medfl.coordinator.async_replay import replay_run

    run = _run_in(folder)
    found = replay_run(run, _inputs(run, sites, data, cache), _watch())
    if json:
        print_json(
            {
                "run": str(run),
                "steps": found.steps,
                "answers": found.answers,
                "model_sha256": found.recorded,
                "replayed_sha256": found.digest,
                "same": found.same,
            }
        )
    else:
        _print(found)
    if not found.same:
        raise typer.Exit(1)


def _run_in(folder: Path) -> Path:
    from medfl.coordinator.journal import journal_in

    run = run_in(folder)
    if journal_in(run) is not None:
        return run
    raise InputError.at(folder, "holds no journal", "give the folder of a run, or of a coordinator that has run")


def _inputs(run: Path, sites: Path | None, data: Path | None, cache: Path | None) -> "RunInputs":
    """The run's inputs, with images from where they are now."""
    from medfl.coordinator.runner import inputs_of
    from medfl.data.cache import default_folder
    from medfl.study.load import load_sites

    inputs, images = inputs_of(run), existing(data)
    return inputs.model_copy(
        update={
            "sites": inputs.sites if sites is None else tuple(load_sites(sites)),
            "data": inputs.data if images is None else images,
            "cache": (cache or default_folder()).resolve(),
        }
    )


def _watch() -> "Watch":
    done = 0

    def watch(site: str, number: int, count: int) -> None:
        nonlocal done
        done += 1
        console.print(f"answer {done} of {count}: {site}, order {number}", highlight=False, markup=False)

    return watch


def _print(found: "Replay") -> None:
    lines = (
        f"{found.steps} steps, {found.answers} answers",
        f"journal's model, SHA-256: {found.recorded}",
        f"replayed model, SHA-256:  {found.digest}",
        "the same" if found.same else "NOT the same",
    )
    for line in lines:
        result().print(line, markup=False, highlight=False, soft_wrap=True)
