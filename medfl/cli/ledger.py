"""`medfl site ledger`: what the hospital's data have paid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medfl.cli.output import Json, print_json, result

_SHOWN = 30


def ledger(
    path: Annotated[Path, typer.Argument(help="The ledger's file.", show_default=False)],
    delta: Annotated[float, typer.Option(help="The delta at which epsilon is stated.")] = 1e-5,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the chain and say no more than that.")] = False,
    json: Json = False,
) -> None:
    """Show what was charged to a privacy ledger, and verify its chain. Exit code 1 when it is broken.

    Nothing is written. Epsilon is stated for each group of data sets that share patients (or sites).

    Example: medfl site ledger /srv/medfl/ledger.jsonl --delta 1e-5
    """
    from medfl.errors import InputError
    from medfl.privacy.ledger.file import FileLedger
    from medfl.privacy.ledger.statement import summary

    if not 0 < delta < 1:
        raise InputError.at("--delta", f"{delta} is not a probability", "give a number between 0 and 1, such as 1e-5")
    read = FileLedger.read(path)
    if verify:
        _print_verified(read.verified(), json)
        return
    found = summary(read, delta)
    if json:
        print_json(found)
    else:
        _print(found)


def _print_verified(found: Mapping[str, Any], json: bool) -> None:
    if json:
        print_json(found)
    else:
        _say(f"the chain is whole: {found['records']} records, head {found['head']}")


def _print(found: Mapping[str, Any]) -> None:
    _say(f"ledger of {found['owner']}: {found['charges']} charges, {found['releases']} releases noted")
    if found["runs"]:
        _print_runs(found["runs"])
        _print_groups(found["groups"], found["delta"])
    if found["tainted"]:
        _say(f"TAINTED: {found['void']}", "bold red")
    if found["repairs"]:
        _say(f"lines that were cut off while they were written, and repaired: {found['repairs']}")
    for party, head in found["witnessed"].items():
        _say(f"head of {party} that was seen last: {head}")
    _say(f"the chain is whole: {found['records']} records, head {found['head']}")


def _print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    left_out = max(0, len(runs) - _SHOWN)
    title = "Charges by run" + (f": the last {_SHOWN}, {left_out} earlier ones are in --json" if left_out else "")
    table = Table(title=title, title_justify="left")
    for name in ("study", "run", "unit"):
        table.add_column(name, overflow="fold")
    for name in ("charges", "released", "rounds", "noise"):
        table.add_column(name, justify="right")
    for run in runs[left_out:]:
        name = escape(run["run"]) + (" [red](tainted)[/]" if run["tainted"] else "")
        rounds, noise = (_range(run[key]) for key in ("rounds", "noise_multiplier"))
        counts = (str(run["charges"]), str(run["released"]))
        table.add_row(escape(run["study"]), name, run["unit"], *counts, rounds, noise)
    result().print(table)


def _print_groups(groups: Sequence[Mapping[str, Any]], delta: float) -> None:
    from rich.table import Table

    title = f"Spent in all, as epsilon at delta {delta:g}"
    table = Table("data", "unit", title=title, title_justify="left")
    for name in ("charges", "studies", "runs", *(bound["accountant"] for bound in groups[0]["bounds"])):
        table.add_column(name, justify="right")
    for group in groups:
        counts = (str(group["charges"]), str(len(group["studies"])), str(group["runs"]))
        table.add_row(_data(group), group["unit"], *counts, *map(_bound, group["bounds"]))
    result().print(table)
    for why in dict.fromkeys(_why_not(bound) for group in groups for bound in group["bounds"]):
        if why:
            _say(why)


def _bound(bound: Mapping[str, Any]) -> str:
    """In brackets what does not hold of these charges."""
    text = _epsilon(bound["epsilon"])
    return text if bound["valid"] or bound["epsilon"] is None else f"({text})"


def _why_not(bound: Mapping[str, Any]) -> str:
    hidden = bound["valid"] or bound["epsilon"] is None
    return "" if hidden else f"in brackets, {bound['accountant']}: does not hold, {bound['why']}"


def _data(group: Mapping[str, Any]) -> str:
    first, *others = group["datasets"]
    more = f" and {len(others)} that overlap" if others else ""
    return f"{first[:8]}{more}" + ("" if group["registered"] else " (not registered)")


def _epsilon(value: float | str | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")


def _range(ends: Sequence[float]) -> str:
    first, last = (f"{end:g}" for end in ends)
    return first if first == last else f"{first}-{last}"


def _say(text: str, style: str = "") -> None:
    result().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
