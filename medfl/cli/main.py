"""The `medfl` command. Commands parse, call and print; what they call is imported when they run."""

import sys

import typer

from medfl.cli import simulate
from medfl.cli import study as study_commands
from medfl.cli.output import console
from medfl.errors import MedflError


class _Medfl(typer.Typer):
    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return super().__call__(*args, **kwargs)
        except MedflError as error:
            _report(error)
            sys.exit(error.exit_code)


def _report(error: MedflError) -> None:
    count = len(error.faults)
    console.print(f"[bold red]{count} fault{'s' if count != 1 else ''}[/]", highlight=False)
    for fault in error.faults:
        console.print(f"  [bold]{_plain(fault.where)}[/]: {_plain(fault.what)}", highlight=False, soft_wrap=True)
        if fault.remedy:
            console.print(f"    [green]→[/] {_plain(fault.remedy)}", highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


app = _Medfl(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated training of medical-imaging models across hospitals.",
)
data = typer.Typer(no_args_is_help=True, help="Import, check, split, partition and make data sets.")
site = typer.Typer(no_args_is_help=True, help="What a hospital's data steward does.")
app.add_typer(data, name="data")
app.add_typer(site, name="site")

study = typer.Typer(no_args_is_help=True, help="Look at a study before it runs.")
app.add_typer(study, name="study")

app.command()(simulate.simulate)
study.command()(study_commands.check)
