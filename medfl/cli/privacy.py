"""`medfl privacy`: what a budget buys, and what was spent."""

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.errors import InputError

if TYPE_CHECKING:
    from medfl.privacy.accounting.plan import Proposal, Question


class UnitName(StrEnum):
    """What a guarantee is about."""

    site = "site"
    patient = "patient"


class ModeName(StrEnum):
    """Who adds the noise."""

    site = "site"
    patient = "patient"
    local = "local"


_MODES = {
    "site": "noise of the coordinator on the sum of site updates",
    "patient": "noise shares of the sites, summed",
    "local": "each site adds its own noise",
}


def plan(
    unit: Annotated[UnitName | None, typer.Option(help="What is protected.", show_default="of the mode")] = None,
    mode: Annotated[
        ModeName | None,
        typer.Option(
            help="site: central noise on site updates; patient: noise shares of the sites summed; local: each site its "
            "own noise.",
            show_default="the unit's name",
        ),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Budget of the run.")] = None,
    delta: Annotated[float | None, typer.Option(help="Well below one over the number of units.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the study.")] = None,
    sites: Annotated[int | None, typer.Option(help="Sites that take part.")] = None,
    parameters: Annotated[int | None, typer.Option(help="Values that travel; for the signal-to-noise.")] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Probability that a step draws a patient; 1 when left out.")
    ] = None,
    patients: Annotated[int | None, typer.Option(help="Patients of all sites; for the signal-to-noise.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise over clip norm.", show_default="least for the budget")
    ] = None,
    local_steps: Annotated[
        int | None, typer.Option(help="Mode local: steps a round.", show_default="one pass over the patients")
    ] = None,
    json: Json = False,
) -> None:
    """Show the noise that a budget needs, what is left of the signal, and the rounds that each accountant allows.

    Example: medfl privacy plan --unit site --epsilon 8 --delta 1e-5 --rounds 100 --sites 4 --parameters 11000000
    """
    from medfl.privacy.accounting.plan import Question

    proposal = _propose(
        Question(
            unit=unit and unit.value,
            mode=mode and mode.value,
            epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            sites=sites,
            parameters=parameters,
            sampling_rate=sampling_rate,
            patients=patients,
            noise_multiplier=noise_multiplier,
            local_steps=local_steps,
        )
    )
    if json:
        print_json(proposal.to_json())
    else:
        _print_proposal(proposal)


def _propose(question: "Question") -> "Proposal":
    """The proposal; faults name the options as they are typed."""
    from medfl.privacy.accounting.plan import propose

    try:
        return propose(question)
    except InputError as error:
        faults = (replace(fault, where=f"--{fault.where.replace('_', '-')}") for fault in error.faults)
        raise InputError(*faults) from error


def _print_proposal(proposal: "Proposal") -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    budget = proposal.budget
    out = result()
    out.print(
        f"[bold]{proposal.unit}-level[/] privacy ({_MODES[proposal.mode]}; adding or removing one {proposal.unit})",
        highlight=False,
    )
    out.print(
        f"budget: epsilon {budget.epsilon:g}, delta {budget.delta:g}; {proposal.rounds} rounds of "
        f"{proposal.steps} step{'s' if proposal.steps > 1 else ''}, sampling rate {proposal.sampling_rate:g}",
        highlight=False,
    )
    origin = "the least that keeps all rounds within the budget" if proposal.calibrated else "as given"
    out.print(f"noise multiplier: [bold]{proposal.noise_multiplier:.5g}[/] ({origin})", highlight=False)
    if proposal.signal_to_noise is not None:
        style = "bold red" if proposal.low_signal else "bold"
        out.print(
            f"predicted signal-to-noise: [{style}]{proposal.signal_to_noise:.2g}[/] at best, with "
            f"{proposal.parameters} parameters",
            highlight=False,
        )
    table = Table(box=SIMPLE)
    table.add_column("accountant", no_wrap=True)
    table.add_column(f"epsilon of {proposal.rounds} rounds", justify="right")
    table.add_column(f"rounds for {budget.epsilon:g}", justify="right")
    table.add_column("why")
    for row in proposal.rows:
        bound = row.bound
        table.add_row(
            f"[bold]{bound.accountant}[/]" + (" (tightest)" if bound.tightest else ""),
            "-" if bound.epsilon is None else f"{bound.epsilon:.4f}",
            "-" if row.rounds is None else str(row.rounds),
            bound.why,
        )
    out.print(table)
    for index, text in enumerate(proposal.advice):
        style = "bold red" if index == 0 and proposal.low_signal else "yellow"
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
