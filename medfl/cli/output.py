"""Where commands print: results on stdout, everything else on stderr; `--json` is one object on stdout."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console(stderr=True)
"""Progress, notes and errors."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def result() -> Console:
    """The console for a command's result (stdout)."""
    return Console()


def print_json(value: Any) -> None:
    """Print one JSON object on stdout; paths become text, NaN becomes null."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
