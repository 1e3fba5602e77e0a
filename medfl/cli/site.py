"""`medfl site`: what a hospital's data steward does before a study."""

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.data import check as check_data
from medfl.cli.output import Json
from medfl.errors import StudyError


def check(
    site: Annotated[Path, typer.Argument(help="The hospital's YAML file.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Check these images instead of those that the file names.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Check a hospital's images before it joins a study: every fault with its file. Exit code 2 when there are faults.

    Example: medfl site check sites/hospital-a.yaml --data /data/chest
    """
    from medfl.study.load import load_site_file

    read = load_site_file(site)
    source = data or read.data
    if source is None:
        raise StudyError.at(site, "names no images", "set `data` in the file, or give --data")
    check_data(source, minimum_cases=read.policy.minimum_cases, json=json)
