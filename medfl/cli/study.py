"""`medfl study`: look at a study before it runs."""

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.output import Json, print_json, result


def check(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a study: every key, every type, every combination of parts; all faults at once.

    Example: medfl study check configs/pneumonia.yaml
    """
    from medfl.study.load import load_study

    read = load_study(study, overrides or [])
    if json:
        print_json(read.to_json())
        return
    import yaml

    result().print(yaml.safe_dump(read.to_json(), sort_keys=False), highlight=False, markup=False)
