"""`medfl data import` and `medfl data check`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, console, print_json, result

if TYPE_CHECKING:
    from medfl.data.base import Datalist
    from medfl.data.check import CheckReport, Finding

SHOWN_WARNINGS = 50
"""Warnings in the table; faults are always shown all, and --json has everything."""


def import_(
    source: Annotated[Path, typer.Argument(help="Folder or file of the data set.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the datalist: a folder or a .json file.", show_default="SOURCE")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="medmnist, decathlon, coco, voc, dicom, table or folders.", show_default="found out"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in the order of their numbers, with commas.", show_default="from the source"),
    ] = None,
    json: Json = False,
) -> None:
    """Make a datalist.json of a data set; images stay where they are.

    Example: medfl data import /data/hippocampus --out /data/lists
    """
    from medfl.data.importers import ImportOptions, import_dataset
    from medfl.data.manifest import save_datalist

    options = ImportOptions(tuple(name.strip() for name in classes.split(",")) if classes else ())
    datalist = import_dataset(source, kind, options)
    target = _target(source, out)
    if out is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    save_datalist(datalist, target)
    if json:
        print_json({"datalist": str(target), "notes": options.notes, **_summary(datalist)})
        return
    _print_notes(options.notes)
    _print_summary(datalist)
    result().print(f"Wrote [bold]{_plain(target)}[/]", soft_wrap=True, highlight=False)


def check(
    source: Annotated[Path, typer.Argument(help="A datalist.json, its folder, or any data set.", show_default=False)],
    minimum_cases: Annotated[int, typer.Option(min=1, help="Fewest cases without fault that a site needs.")] = 1,
    json: Json = False,
) -> None:
    """Read every image and label, and name everything that is wrong. Exit code 2 when there are faults.

    Example: medfl data check /data/hippocampus --minimum-cases 5
    """
    from medfl.data.check import check_datalist
    from medfl.data.importers import ImportOptions, find_datalist

    options = ImportOptions()
    datalist = find_datalist(source, options)
    with _progress(len(datalist.cases)) as step:
        report = check_datalist(datalist, minimum_cases=minimum_cases, on_case=lambda _: step())
    if json:
        print_json({"notes": options.notes, **report.to_json()})
    else:
        _print_notes(options.notes)
        _print_report(report)
    if report.faults:
        raise typer.Exit(2)


def _target(source: Path, out: Path | None) -> Path:
    from medfl.data.importers import DATALIST
    from medfl.data.importers.base import folder_of

    if out is None:
        return folder_of(source) / DATALIST
    return out if out.suffix.lower() == ".json" else out / DATALIST


def _summary(datalist: "Datalist") -> dict[str, Any]:
    counts = Counter((case.site, case.split) for case in datalist.cases)
    sites: dict[str, dict[str, int]] = {}
    for (site, split), count in sorted(counts.items()):
        sites.setdefault(site, {})[split] = count
    return {
        "name": datalist.name,
        "task": datalist.task,
        "classes": list(datalist.classes),
        "modality": datalist.modality,
        "cases": len(datalist.cases),
        "patients": len({case.patient for case in datalist.cases}),
        "sites": sites,
    }


def _print_summary(datalist: "Datalist") -> None:
    from rich.table import Table

    summary = _summary(datalist)
    task = summary["task"] or "no labels"
    named = f" of {_plain(', '.join(datalist.classes))}" if datalist.classes else ""
    head = f"[bold]{_plain(datalist.name)}[/]: {task}{named}"
    result().print(
        f"{head}, {summary['cases']} cases of {summary['patients']} patients", soft_wrap=True, highlight=False
    )
    table = Table("site", *[_column(split) for split in ("train", "val", "test", "no split")])
    for site, splits in summary["sites"].items():
        table.add_row(_plain(site) or "(none)", *[str(splits.get(name, 0)) for name in ("train", "val", "test", "")])
    result().print(table)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note[/] {_plain(note)}", soft_wrap=True, highlight=False)


def _print_report(report: "CheckReport") -> None:
    out = result()
    _print_findings("Faults", "red", report.faults)
    _print_findings("Warnings", "yellow", report.warnings[:SHOWN_WARNINGS])
    hidden = len(report.warnings) - SHOWN_WARNINGS
    if hidden > 0:
        out.print(f"{hidden} more warnings: --json lists them all")
    _print_sites(report)
    cases = sum(count.cases for count in report.sites.values())
    read = sum(count.read for count in report.sites.values())
    word = "[bold red]not fit for use[/]" if report.faults else "[bold green]fit for use[/]"
    numbers = f"{len(report.faults)} faults, {len(report.warnings)} warnings"
    out.print(f"{_plain(report.name)}: {read} of {cases} images read, {numbers}: {word}", highlight=False)


def _print_findings(title: str, colour: str, findings: "Sequence[Finding]") -> None:
    """One block for each finding, not a table: paths and sentences stay whole and can be copied."""
    if not findings:
        return
    out = result()
    out.print(f"[bold {colour}]{title}[/]")
    for finding in findings:
        site = f" [dim]at {_plain(finding.site)}[/]" if finding.site else ""
        place = finding.case or finding.file
        out.print(f"  [bold]{_plain(place)}[/]{site}: {_plain(finding.what)}", soft_wrap=True, highlight=False)
        if finding.case and not finding.file.endswith(finding.case.partition("#")[0].removeprefix("../")):
            out.print(f"    [dim]{_plain(finding.file)}[/]", soft_wrap=True, highlight=False)
        if finding.remedy:
            out.print(f"    [green]→[/] {_plain(finding.remedy)}", soft_wrap=True, highlight=False)


def _print_sites(report: "CheckReport") -> None:
    from rich.table import Table

    table = Table("site", *[_column(name) for name in ("cases", "read", "faulty", "patients")])
    for site, count in report.sites.items():
        numbers = (count.cases, count.read, count.faulty, count.patients)
        table.add_row(_plain(site) or "(none)", *map(str, numbers))
    result().print(table)


def _column(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


def _progress(total: int) -> Any:
    from contextlib import contextmanager

    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("reading", total=total)
            yield lambda: progress.advance(task)

    return bar()
