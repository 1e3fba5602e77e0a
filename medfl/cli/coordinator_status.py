"""`medfl coordinator status`: where a run stands, also while it goes on. Reads, and writes nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, print_json, result

if TYPE_CHECKING:
    from medfl.coordinator.overview import Overview, SiteLine


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)],
    tail: Annotated[int, typer.Option("--tail", min=0, help="How many of the last events to show.")] = 5,
    json: Json = False,
) -> None:
    """Show whether the coordinator runs, where its run stands, its sites and the last events.

    Example: medfl coordinator status coordinator
    """
    from medfl.coordinator.overview import overview

    found = overview(folder, tail)
    if json:
        print_json(found.to_json())
        return
    _say(f"coordinator {found.name}: {_service(found)}")
    _say(f"study {found.study}: {_run(found)}")
    if found.last:
        _say(f"last round: {_last(found)}")
    _print_sites(found.sites)
    for event in found.events:
        place = f"round {event['round']}" if event["round"] else "run"
        _say(f"{event['at'][:19]}Z  {place}  {event['site'] or 'coordinator'}  {event['kind']}  {event['detail']}")


def _service(found: "Overview") -> str:
    seen = found.seen
    if seen is None:
        return "was never started"
    if seen.alive:
        return f"runs, {seen.phase}" + (f", round {seen.round}" if seen.round else "")
    return f"does not run, last heard of {seen.at[:19]}Z"


def _run(found: "Overview") -> str:
    if found.run is None:
        return f"no run yet, {found.planned} rounds planned"
    if found.stopped_by:
        return f"ended by {found.stopped_by} after {found.completed} rounds"
    return f"{found.completed} of {found.planned} rounds done, run {found.run[:12]}"


def _last(found: "Overview") -> str:
    cells = [f"{name} {value:.4f}" for name, value in found.last.items() if isinstance(value, float)]
    return f"{found.completed}, {', '.join(cells)}"


def _print_sites(sites: "tuple[SiteLine, ...]") -> None:
    from rich.table import Table

    if not sites:
        _say("nobody was invited yet: medfl coordinator invite DIR SITE")
        return
    table = Table("name", "role", "register", "now", "last round", "admitted", "missed")
    for site in sites:
        rounds = site.last_round or "-", site.admitted, site.missed
        table.add_row(*map(_plain, (site.name, site.role, site.register, site.now, *rounds)))
    result().print(table)
    for site in sites:
        if site.detail:
            _say(f"{site.name}: {site.now}: {site.detail}")


def _plain(text: Any) -> str:
    from rich.markup import escape

    return escape(str(text))


def _say(text: str) -> None:
    result().print(text, markup=False, highlight=False, soft_wrap=True)
