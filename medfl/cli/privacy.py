"""`medfl privacy`: what a budget buys, and what was spent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.errors import InputError
from medfl.folders import run_in

if TYPE_CHECKING:
    from medfl.privacy.accounting.plan import Proposal, Question
    from medfl.report.privacy import LedgerFacts, PrivacyFacts
    from medfl.report.run import RunRecord


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


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, finished or not, or a coordinator's.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Show what a run promises: unit, epsilon by accountant, what is not covered, and whom one must trust.

    Made from the run's journal and the coordinator's ledger, so also of a run that has not ended. Nothing is written.
    Exit code 1 when the ledger is damaged or older than the run, or the noise was not secret.

    Example: medfl privacy report runs/pneumonia-001
    """
    from medfl.report.privacy import privacy_of
    from medfl.report.run import read_run

    record = read_run(run_in(run))
    facts = privacy_of(record)
    if json:
        print_json({"run": str(run), "study": record.summary["study"], **facts.to_json()})
    else:
        _print_head(record, facts)
        if facts.promised:
            _print_bounds(facts)
        _print_facts(facts)
    if facts.problems:
        raise typer.Exit(1)


def _print_head(record: "RunRecord", facts: "PrivacyFacts") -> None:
    from medfl.report.text import count, stopped

    for problem in facts.problems:
        _say(f"WARNING: {problem}", "bold red")
    for note in facts.notes:
        _say(f"Note: {note}", "yellow")
    rounds = count(record.summary["rounds_completed"], "round")
    ended = stopped(record.study["stop"], record.summary["stopped_by"])
    _say(f"{record.summary['study']}, {record.folder}: {rounds}. {ended}")
    if not facts.promised:
        _say("Nothing is promised: this run has no privacy mechanism, and there is no epsilon.", "bold")
        return
    statement = facts.statement
    say = "so far" if not facts.final else "in all"
    epsilon = _number(statement["epsilon"])
    _say(f"epsilon {epsilon} {say}, at delta {statement['delta']:g}, for each {statement['unit']}", "bold")


def _print_bounds(facts: "PrivacyFacts") -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("accountant", no_wrap=True)
    table.add_column("epsilon", justify="right")
    table.add_column("holds")
    table.add_column("why")
    for bound in facts.statement["bounds"]:
        name = f"[bold]{bound['accountant']}[/] (tightest)" if bound["tightest"] else bound["accountant"]
        table.add_row(name, _number(bound["epsilon"]), "yes" if bound["valid"] else "no", bound["why"])
    if facts.statement["bounds"]:
        result().print(table)


def _print_facts(facts: "PrivacyFacts") -> None:
    """Two columns, of which the second one wraps."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=21, style="bold")
    grid.add_column(overflow="fold")
    for name, lines in _sections(facts):
        for place, line in enumerate(lines):
            grid.add_row(name if not place else "", Text(line))
    result().print(grid)


def _sections(facts: "PrivacyFacts") -> Iterator[tuple[str, Sequence[str]]]:
    """What is said below the bounds: a name, and what is said of it."""
    statement = facts.statement
    if facts.promised:
        yield from _about_mechanism(statement)
        source = "TAINTED: a generator for tests" if facts.tainted else "the system's cryptographic generator"
        yield "Randomness", [source]
    yield "Not covered" if facts.promised else "Left the sites", [f"- {item}" for item in statement["not_covered"]]
    for question, answer in facts.trust:
        yield question, [answer]
    if facts.assumes:
        yield "This rests on", [f"- {item}" for item in facts.assumes]
    if facts.ledger is not None:
        yield from _about_ledger(facts.ledger, facts.others, statement)


def _about_mechanism(statement: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    plan, budget = statement.get("plan") or {}, statement.get("budget")
    yield "Adjacency", [statement["adjacency"]]
    yield "Mechanism", [statement["mechanism"]]
    if plan:
        steps = f", {plan['steps']} steps a round" if plan["steps"] > 1 else ""
        rate = "" if plan["sampling_rate"] == 1 else f", sampling rate {plan['sampling_rate']:g}"
        yield "Noise", [f"multiplier {plan['noise_multiplier']:.5g} of the clip norm {plan['clip']:g}{rate}{steps}"]
        yield "Predicted signal", [f"{plan['signal_to_noise']:.2g} of the noise at best"]
    yield "Budget", ["none: the rounds were the bound" if budget is None else f"epsilon {budget:g}"]


def _about_ledger(
    ledger: "LedgerFacts", others: int, statement: Mapping[str, Any]
) -> Iterator[tuple[str, Sequence[str]]]:
    from medfl.report.privacy import rounds_charged
    from medfl.report.text import count

    charges = count(ledger.charges, "charge")
    yield "Charged", [f"{rounds_charged(ledger)}: {charges}, {ledger.released} noted as released"]
    if spent := ledger.spent:
        runs = f"this run and {count(others, 'other')}" if others else "this run alone"
        epsilon = f"epsilon {_number(spent['epsilon'])} at delta {statement['delta']:g} ({spent['accountant']})"
        yield "Spent on these data", [f"{epsilon}, by {runs}"]
    yield "Ledger", [ledger.path, f"the chain is whole: {count(ledger.records, 'record')}, head", ledger.head]
    yield "", ["Each site's own ledger is the one that counts for it: medfl site ledger FILE"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _say(text: str, style: str = "") -> None:
    result().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
