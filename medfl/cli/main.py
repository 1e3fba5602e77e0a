"""The `medfl` command. Commands parse, call and print; what they call is imported when they run."""

import sys
from typing import Annotated

import typer

from medfl import __version__
from medfl.cli import (
    auditor,
    coordinator,
    coordinator_start,
    coordinator_status,
    data,
    enrol,
    governance,
    health,
    ledger,
    model,
    privacy,
    replay,
    simulate,
    site,
    site_start,
    study,
    synth,
)
from medfl.cli.compare import compare
from medfl.cli.list import plugins
from medfl.cli.output import console
from medfl.errors import MedflError, RunError


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what the user got wrong is printed whole, and the exit code says which kind it was."""
    try:
        app(arguments)
    except MedflError as error:
        _report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        _report(RunError.at(error.filename or "a file", str(error.strerror or error), "check its rights and the room"))
        sys.exit(RunError.exit_code)


def _report(error: MedflError) -> None:
    count = len(error.faults)
    console.print(f"[bold red]{count} fault{'s' if count != 1 else ''}[/]", highlight=False)
    for fault in error.faults:
        console.print(f"  [bold]{_plain(fault.where)}[/]: {_plain(fault.what)}", highlight=False, soft_wrap=True)
        if fault.remedy:
            console.print(f"    [green]→[/] {_plain(fault.remedy)}", highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medfl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated training of medical-imaging models across hospitals."""


app.command()(simulate.simulate)
app.command()(compare)
app.command()(model.evaluate)
app.command()(model.predict)
app.command()(model.report)
app.command("list")(plugins)
app.command()(health.health)

study_app = typer.Typer(no_args_is_help=True, help="Look at a study before it runs.")
study_app.command()(study.check)
app.add_typer(study_app, name="study")

data_app = typer.Typer(no_args_is_help=True, help="Import, check, split and make data sets.")
data_app.command("import")(data.import_)
data_app.command()(data.check)
data_app.command()(synth.split)
data_app.command()(synth.stats)
data_app.command()(synth.synth)
app.add_typer(data_app, name="data")

site_app = typer.Typer(no_args_is_help=True, help="What a hospital's data steward does.")
site_app.command()(site.check)
site_app.command()(ledger.ledger)
site_app.command()(enrol.enrol)
site_app.command()(enrol.renew)
site_app.command()(site_start.start)
site_app.command()(governance.studies)
site_app.command()(governance.show)
site_app.command()(governance.approve)
site_app.command()(governance.reject)
site_app.command()(governance.status)
site_app.command()(governance.pause)
site_app.command()(governance.resume)
site_app.command()(governance.withdraw)
site_app.command()(governance.audit)
app.add_typer(site_app, name="site")

auditor_app = typer.Typer(no_args_is_help=True, help="Who may look at a study, and touch nothing.")
auditor_app.command()(enrol.enrol)
auditor_app.command()(enrol.renew)
auditor_app.command()(auditor.evidence)
app.add_typer(auditor_app, name="auditor")

keyholder_app = typer.Typer(no_args_is_help=True, help="A third party that holds the key of encrypted sums.")
keyholder_app.command()(enrol.enrol)
keyholder_app.command()(enrol.renew)
keyholder_app.command()(site_start.start)
app.add_typer(keyholder_app, name="keyholder")

coordinator_app = typer.Typer(
    no_args_is_help=True, help="What the study lead does: set up, let hospitals in, shut out."
)
coordinator_app.command()(coordinator.init)
coordinator_app.command()(coordinator_start.start)
coordinator_app.command()(coordinator_status.status)
coordinator_app.command()(coordinator.invite)
coordinator_app.command()(coordinator.revoke)
coordinator_app.command()(coordinator.peers)
coordinator_app.command("audit")(governance.audit_coordinator)
coordinator_app.command()(replay.replay)
app.add_typer(coordinator_app, name="coordinator")

privacy_app = typer.Typer(no_args_is_help=True, help="What privacy costs: before a run, and after it.")
privacy_app.command()(privacy.plan)
privacy_app.command()(privacy.report)
app.add_typer(privacy_app, name="privacy")
