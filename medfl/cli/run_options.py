"""What the commands that train on this machine share: their options, and where they look for files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.errors import InputError

if TYPE_CHECKING:
    from typer.models import OptionInfo

    from medfl.study.sources import RunInputs

Sites = Annotated[
    Path | None,
    typer.Option(help="Folder of site files; default: `sites` beside the study or here.", show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Use these images: a datalist.json, or a folder or file to import.", show_default=False),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Short for --set stop.rounds=N.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that train sites; default: one a core.", show_default=False)
]
Cache = Annotated[
    Path | None, typer.Option(help="Cache folder; default: $MEDFL_CACHE, else ~/.cache/medfl.", show_default=False)
]


def set_option(whose: str) -> "OptionInfo":
    """`--set`, repeatable. whose: the study that a key is changed of, as the help says it."""
    text = f"Change one key of {whose}; repeatable."
    option: OptionInfo = typer.Option("--set", metavar="KEY.PATH=VALUE", help=text)
    return option


Overrides = Annotated[list[str] | None, set_option("the study")]


def overridden(rounds: int | None, overrides: list[str] | None) -> list[str]:
    """`--rounds` and `--set` as keys that are changed, in the order in which they win."""
    short = [f"stop.rounds={rounds}"] if rounds is not None else []
    return [*short, *(overrides or [])]


def existing(data: Path | None) -> Path | None:
    """What `--data` means, as an absolute path; InputError when there is no such file or folder."""
    if data is not None and not data.exists():
        raise InputError.at(f"--data {data}", "does not exist", "give a folder, a file or a datalist.json")
    return data.resolve() if data else None


def ledgers_folder(given: Path | None, inputs: "RunInputs", run: Path) -> Path:
    """Where the ledgers lie: what was spent on patients stays spent, and synthetic patients have nothing to lose."""
    source = inputs.study.data.source.kind
    own = any(site.data is not None for site in inputs.sites)
    if given is None and inputs.data is None and source == "synthetic" and not own:
        return run / "ledgers"
    named = os.environ.get("MEDFL_LEDGERS")
    return given or (Path(named) if named else Path.home() / ".local" / "share" / "medfl" / "ledgers")


def site_folder(study: Path) -> Path | None:
    """The folder of site files that belongs to a study's file; None when there is none."""
    places = (study.parent / "sites", study.parent.parent / "sites", Path("sites"))
    return next((place for place in places if place.is_dir()), None)
