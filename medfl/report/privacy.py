"""What a run may say about privacy, from its journal and the coordinator's ledger: for the terminal, page and card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfl.coordinator.desk import NoiseDesk
from medfl.errors import MedflError, RunError
from medfl.privacy.ledger.chained import ChainedLedger
from medfl.privacy.ledger.file import FileLedger
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.ledger.statement import TAINTED, summary
from medfl.privacy.mechanisms.base import NoisePlan
from medfl.privacy.trust import trust_table
from medfl.report.run import RunRecord
from medfl.study.build import build_mechanism
from medfl.study.load import study_from_json
from medfl.study.statement import plain_statement


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What the coordinator's ledger says of a run now. charges, released: of this run; rounds: those charged, in order.
    spent: all that was charged for the same data, by this run and others, as epsilon at the run's delta."""

    path: str
    head: str
    records: int
    charges: int
    released: int
    rounds: Sequence[int]
    tainted: bool
    spent: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class PrivacyFacts:
    """statement: as `privacy` in summary.json; for a run that has not ended, what is charged by now. final: whether the
    run has ended. trust: (question, answer). assumes: what the statement rests on. curve: (round, epsilon). problems:
    what makes the statement doubtful or void. notes: what else a reader should know."""

    statement: Mapping[str, Any]
    final: bool
    trust: Sequence[tuple[str, str]]
    assumes: Sequence[str] = ()
    curve: Sequence[tuple[int, float]] = ()
    ledger: LedgerFacts | None = None
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def promised(self) -> bool:
        """Whether there is a mechanism, and so a promise at all."""
        return bool(self.statement["mechanism"] != "none")

    @property
    def tainted(self) -> bool:
        return self.statement.get("randomness", "system") != "system" or bool(self.ledger and self.ledger.tainted)

    @property
    def others(self) -> int:
        """Other runs that were charged for the same data, as far as the ledger knows."""
        return max(0, self.ledger.spent["runs"] - 1) if self.ledger and self.ledger.spent else 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "promised": self.promised, "tainted": self.tainted}


def privacy_of(run: RunRecord) -> PrivacyFacts:
    """The run's statement with everything that belongs to it; what cannot be read or does not fit is a problem."""
    final, channel = run.summary["stopped_by"] is not None, run.study["update"]["channel"]
    statement: Mapping[str, Any] | None = run.summary.get("privacy")
    if (statement or {}).get("mechanism") == "none" or run.study.get("privacy") is None:
        nothing = statement or plain_statement(study_from_json(run.study))
        return PrivacyFacts(nothing, final, trust_table(nothing.get("trust", {}), channel))
    problems: list[str] = []
    notes: list[str] = []
    ledger = _ledger(run, problems, notes)
    if statement is None:
        statement = _by_now(run, ledger)
    if ledger is not None:
        problems += _disagreements(ledger, statement)
    facts = None if ledger is None else _facts(ledger, run, statement)
    if statement.get("randomness", "system") != "system" or (facts and facts.tainted):
        problems.insert(0, TAINTED)
    return PrivacyFacts(
        statement=statement,
        final=final,
        trust=trust_table(statement.get("trust", {}), channel, statement.get("plan")),
        assumes=list(_assumes(statement)),
        curve=_curve(run),
        ledger=facts,
        problems=problems,
        notes=notes,
    )


def _curve(run: RunRecord) -> list[tuple[int, float]]:
    return [(record["round"], record["epsilon"]) for record in run.rounds if record.get("epsilon") is not None]


def ledger_path(run: RunRecord) -> Path | None:
    """The coordinator's ledger: where the run wrote it, or in a run folder that was moved; None when there is none."""
    folders = [run.ledgers, run.folder / "ledgers"] if run.ledgers else []
    return next((path for folder in folders if (path := folder / "coordinator.ledger").is_file()), None)


def _ledger(run: RunRecord, problems: list[str], notes: list[str]) -> FileLedger | None:
    path = ledger_path(run)
    if path is None:
        where = f" at {run.ledgers}" if run.ledgers else ""
        notes.append(f"The coordinator's ledger is not there{where}: the statement could not be compared with it.")
        return None
    try:
        return FileLedger.read(path)
    except (MedflError, OSError) as error:
        problems.append(f"The coordinator's ledger cannot be trusted: {error}")
        return None


def _by_now(run: RunRecord, ledger: FileLedger | None) -> Mapping[str, Any]:
    """The statement of a run that has not ended, by the ledger; without one by the last committed round."""
    study = study_from_json(run.study)
    mechanism = build_mechanism(study)
    if mechanism is None or run.noise is None:
        raise RunError.at(run.folder, "has no noise plan in its journal", "use the version of medfl that started it")
    charged: ChainedLedger = ledger or MemoryLedger("coordinator")
    desk = NoiseDesk(study, run.name, mechanism, NoisePlan.from_json(run.noise), charged, "")
    found = desk.statement(study.update.channel.kind)
    if ledger is None:
        curve = _curve(run)
        last: dict[str, Any] = {
            "epsilon": curve[-1][1] if curve else 0.0,
            "accountant": None,
            "bounds": [],
            "ledger_head": None,
        }
        found |= last | {"releases": len(curve)}
    return found


def _disagreements(ledger: FileLedger, statement: Mapping[str, Any]) -> Iterator[str]:
    """Where the ledger is older than the run: it must hold the record that was its last when the run ended."""
    try:
        if statement.get("ledger_head"):
            ledger.compare({"this run": statement["ledger_head"]})
    except RunError as error:
        yield f"The ledger does not hold what the run charged: {error}"


def _facts(ledger: FileLedger, run: RunRecord, statement: Mapping[str, Any]) -> LedgerFacts:
    found, charges = summary(ledger, statement["delta"]), ledger.charges(run.name)
    dataset = charges[0].dataset if charges else None
    groups = (g for g in found["groups"] if dataset in g["datasets"] and g["unit"] == statement["unit"])
    return LedgerFacts(
        path=str(ledger.path),
        head=found["head"],
        records=found["records"],
        charges=len(charges),
        released=len(ledger.releases(run.name)),
        rounds=[charge.round for charge in charges],
        tainted=found["tainted"],
        spent=next(groups, None),
    )


def _assumes(statement: Mapping[str, Any]) -> Iterator[str]:
    plan = statement.get("plan") or {}
    if plan.get("kind") == "site":
        yield "the coordinator draws the noise as it should, and keeps it to itself"
    if plan.get("kind") == "patient":
        yield "every site adds its share of the noise; one that does not counts among the colluders"
    if statement.get("unit") == "patient":
        yield "each patient is at one site, under one identifier: a patient at several sites pays at each of them"
    if plan.get("sampling_rate", 1) < 1:
        yield "nobody learns which patients were drawn for a step"


def rounds_charged(ledger: LedgerFacts) -> str:
    """ "rounds 1-3, 5": what was charged, with the rounds that were charged more than once."""
    known = sorted(set(ledger.rounds))
    if not known:
        return "no round"
    spans: list[list[int]] = []
    for number in known:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)
    again = sorted({number for number in known if list(ledger.rounds).count(number) > 1})
    more = f" (more than once: {', '.join(map(str, again))})" if again else ""
    return f"round{'s' if len(known) > 1 else ''} {text}{more}"
