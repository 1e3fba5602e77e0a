"""`medfl data synth`, `medfl data split` and `medfl data stats`."""

from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from medfl.cli.output import Json, console, print_json, result
from medfl.errors import DataError


class TaskName(StrEnum):
    """Tasks that synthetic images have labels for."""

    classification = "classification"
    detection = "detection"
    segmentation = "segmentation"


class FileFormat(StrEnum):
    """File formats of synthetic images."""

    png = "png"
    nifti = "nifti"
    dicom = "dicom"


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist or be empty.")],
    task: Annotated[TaskName, typer.Option(help="What the images are labelled for.")] = TaskName.classification,
    sites: Annotated[int, typer.Option(min=1, help="Sites, each with its own scanner and patients.")] = 4,
    cases: Annotated[int, typer.Option(min=1, help="Images a site.")] = 40,
    size: Annotated[str, typer.Option(help="Pixels, as 64x64 or 48x48x48.")] = "64x64",
    format: Annotated[
        FileFormat | None, typer.Option(help="Default: png for pictures, nifti for volumes.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    ratios: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "6:2:2",
    as_json: Json = False,
) -> None:
    """Make synthetic images of several hospitals: chest X-rays (classification) or CT (all else, and volumes).

    Example: medfl data synth data/lesions --task detection --sites 4 --cases 60 --size 96x96
    """
    from medfl.data.manifest import load_datalist, save_datalist
    from medfl.data.split import assign_splits
    from medfl.data.synthetic.base import site_shifts
    from medfl.data.synthetic.write import write_federation

    shares = _ratios(ratios)
    spec = _spec(task.value, _size(size), cases, format.value if format else "")
    datalist = load_datalist(write_federation(out, spec, site_shifts(sites), seed))
    path = out / "datalist.json"
    save_datalist(replace(datalist, cases=assign_splits(datalist.cases, shares, seed, _strata(datalist))), path)
    if as_json:
        print_json({"datalist": path, "cases": len(datalist.cases), "sites": list(site_shifts(sites))})
    else:
        result().print(f"{len(datalist.cases)} images of {sites} sites: {path}", soft_wrap=True)


def split(
    source: Annotated[Path, typer.Argument(help="A datalist.json.")],
    ratios: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "6:2:2",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another split.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write here instead of in place.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Assign patients to train, val and test, by site and label; cases that have a split keep it.

    Example: medfl data split data/lesions/datalist.json --ratios 6:2:2 --seed 1
    """
    from collections import Counter

    from medfl.data.manifest import load_datalist, save_datalist
    from medfl.data.split import assign_splits

    datalist = load_datalist(source)
    done = replace(datalist, cases=assign_splits(datalist.cases, _ratios(ratios), seed, _strata(datalist)))
    save_datalist(done, out or source)
    counts = Counter(case.split for case in done.cases)
    if as_json:
        print_json({"datalist": out or source, **counts})
    else:
        text = ", ".join(f"{name} {counts[name]}" for name in ("train", "val", "test"))
        result().print(f"{out or source}: {text}", soft_wrap=True)


def stats(
    source: Annotated[Path, typer.Argument(help="A datalist.json.")],
    plot: Annotated[Path | None, typer.Option(help="Also write a bar chart (PNG).", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not open images or masks.")] = False,
    as_json: Json = False,
) -> None:
    """Show what each site holds: cases by split and class, patients, boxes, image sizes.

    Example: medfl data stats data/lesions/datalist.json --plot sites.png
    """
    from medfl.data.manifest import load_datalist
    from medfl.data.statistics import plot as draw
    from medfl.data.statistics import site_statistics

    datalist = load_datalist(source)
    rows = site_statistics(datalist, read=not quick)
    if plot is not None:
        draw(rows, plot)
    if as_json:
        print_json({"name": datalist.name, "task": datalist.task, "sites": [asdict(row) for row in rows]})
        return
    result().print(_table(datalist, rows))
    for row in rows:
        for key, reason in row.unreadable.items():
            console.print(f"{key}: {reason}", style="red", markup=False, soft_wrap=True)


def _table(datalist: Any, rows: Any) -> Table:
    table = Table(title=f"{datalist.name} ({datalist.task})", title_justify="left", box=SIMPLE)
    splits = [name for name in ("train", "val", "test", "") if any(name in row.splits for row in rows)]
    boxes = any(row.boxes for row in rows)
    table.add_column("site", no_wrap=True)
    for name in ("patients", "cases", *(name or "no split" for name in splits), *datalist.classes):
        table.add_column(name, justify="right", overflow="fold")
    if boxes:
        table.add_column("boxes", justify="right", overflow="fold")
    table.add_column("size", no_wrap=True)
    for row in rows:
        counts = [row.patients, row.cases, *(row.splits.get(name, 0) for name in splits), *row.classes.values()]
        cells = [str(count) for count in counts + ([row.boxes] if boxes else [])]
        table.add_row(row.site or "-", *cells, _sizes(row.smallest, row.largest))
    return table


def _sizes(smallest: tuple[int, ...], largest: tuple[int, ...]) -> str:
    low, high = "x".join(map(str, smallest)), "x".join(map(str, largest))
    return low if low == high else f"{low} to {high}"


def _spec(task: str, size: tuple[int, ...], cases: int, file_format: str) -> Any:
    from pydantic import ValidationError

    from medfl.data.synthetic.config import SyntheticSpec

    volume = len(size) == 3
    generator = "chest" if task == "classification" and not volume else "ct"
    kind = file_format or ("nifti" if volume else "png")
    try:
        return SyntheticSpec.model_validate(
            {"generator": generator, "task": task, "size": size, "cases": cases, "format": kind}
        )
    except ValidationError as error:
        reasons = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        raise DataError.at("synth", reasons, "see medfl data synth --help") from error


def _strata(datalist: Any) -> dict[str, str] | None:
    """Which classes each mask shows; None where the datalist itself says what is in an image."""
    if datalist.task != "segmentation":
        return None
    from medfl.data.split import mask_strata

    return mask_strata(datalist.cases)


def _size(text: str) -> tuple[int, ...]:
    return _numbers(text, "x", (2, 3), "--size", "64x64 or 48x48x48")


def _ratios(text: str) -> tuple[int, int, int]:
    train, val, test = _numbers(text, ":", (3,), "--ratios", "6:2:2")
    return train, val, test


def _numbers(text: str, mark: str, counts: tuple[int, ...], option: str, example: str) -> tuple[int, ...]:
    parts = text.lower().split(mark)
    if len(parts) not in counts or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise DataError.at(option, f"{text!r} cannot be read", f"write it as {example}")
    return tuple(map(int, parts))
