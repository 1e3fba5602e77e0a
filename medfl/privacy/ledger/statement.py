"""What a ledger says to a reader: what was spent on which data, by whom. Pure, JSON-able."""

from collections.abc import Iterable, Sequence
from typing import Any

from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.ledger.base import Charge, Unit
from medfl.privacy.ledger.book import Book
from medfl.privacy.ledger.chained import ChainedLedger
from medfl.privacy.ledger.limits import least_epsilon
from medfl.privacy.ledger.units import Units

TAINTED = "noise was drawn from a generator for tests, which is not secret: no epsilon here holds, for good"


def summary(ledger: ChainedLedger, delta: float) -> dict[str, Any]:
    """What was charged, by groups of data sets that share units and by runs, with epsilon by accountant at `delta`.

    A group's epsilon holds for each of its units: it is that of the unit whose data sets paid most. `bounds` are those
    of all accountants, `accountant` the one whose valid bound is the tightest.
    """
    with ledger.reading() as (book, units):
        charges = list(book.entries.values())
        return {
            "owner": book.owner,
            "head": book.head,
            "records": book.last.sequence if book.last else 0,
            "charges": len(charges),
            "releases": len(book.digests),
            "repairs": book.repairs,
            "tainted": book.tainted,
            "void": TAINTED if book.tainted else None,
            "adjacency": sorted({charge.adjacency for charge in charges}),
            "delta": delta,
            "groups": [
                _group(book, units, unit, group, delta)
                for unit in book.units()
                for group in units.groups(book.datasets(unit))
            ],
            "runs": _runs(book),
            "witnessed": {party: heads[-1] for party, heads in book.witnessed.items()},
        }


def _group(book: Book, units: Units, unit: Unit, group: Sequence[str], delta: float) -> dict[str, Any]:
    charges = [charge for charge in book.entries.values() if charge.unit == unit and charge.dataset in group]
    runs = _unique(charge.run for charge in charges)
    plan = book.plans.get((runs[0], unit)) if len(runs) == 1 else None
    spent = [book.of_datasets(together, unit) for together in units.together(group)]
    worst = max(spent, key=lambda events: least_epsilon(events, delta))
    return {
        "unit": unit,
        "datasets": sorted(group),
        "registered": all(dataset in units.known for dataset in group),
        "charges": len(charges),
        "studies": _unique(charge.study for charge in charges),
        "runs": len(runs),
        **_costs(worst, delta, plan),
    }


def _runs(book: Book) -> list[dict[str, Any]]:
    found: dict[tuple[str, str, Unit], list[tuple[str, Charge]]] = {}
    for entry, charge in book.entries.items():
        found.setdefault((charge.study, charge.run, charge.unit), []).append((entry, charge))
    return [_run(book, *key, of_run) for key, of_run in found.items()]


def _run(book: Book, study: str, run: str, unit: Unit, entries: Sequence[tuple[str, Charge]]) -> dict[str, Any]:
    charges = [charge for _, charge in entries]
    return {
        "study": study,
        "run": run,
        "unit": unit,
        "charges": len(charges),
        "released": sum(entry in book.digests for entry, _ in entries),
        "releases": _unique(charge.release for charge in charges),
        "mechanisms": _unique(charge.mechanism for charge in charges),
        "rounds": [min(charge.round for charge in charges), max(charge.round for charge in charges)],
        "noise_multiplier": [pick(charge.event.noise_multiplier for charge in charges) for pick in (min, max)],
        "from": book.times[entries[0][0]],
        "to": book.times[entries[-1][0]],
        "planned": (run, unit) in book.plans,
        "tainted": any(charge.randomness != "system" for charge in charges),
    }


def _costs(events: Sequence[GaussianEvent], delta: float, plan: GaussianEvent | None) -> dict[str, Any]:
    from medfl.privacy.accounting.bounds import bounds, tightest

    found = bounds(events, delta, plan)
    best = tightest(found).to_json()
    return {
        "epsilon": best["epsilon"],
        "accountant": best["accountant"],
        "bounds": [bound.to_json() for bound in found],
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
