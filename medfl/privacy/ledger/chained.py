"""A ledger as a hash chain; where the lines are kept is left to its kinds."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from medfl import __version__
from medfl.errors import RunError
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.ledger.base import Charge, Ledger, Permit, Unit
from medfl.privacy.ledger.book import FORMAT, Book, as_body
from medfl.privacy.ledger.chain import Record, compare, is_hash
from medfl.privacy.ledger.limits import Limit, require_affordable, require_sound
from medfl.privacy.ledger.units import Keys, Units, commitment, hashed, name_of

Ceiling = Mapping[Unit, Budget]
"""What a ledger's owner allows in all, by unit: over all studies and runs on data sets that share a unit."""


class ChainedLedger(Ledger):
    """All checks and all reading; a kind of ledger says how to have it to oneself and how to append durably."""

    def __init__(self, where: str, ceiling: Ceiling | None) -> None:
        self._where = where
        self._ceiling: Ceiling = ceiling or {}
        self._book = Book()
        self._units = Units()

    @contextmanager
    @abstractmethod
    def _turn(self) -> Iterator[None]:
        """Have the ledger to oneself, with all records and data sets read. Turns are not nested."""

    @abstractmethod
    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        """Make a record durable and enter it in the book; within a turn."""

    @abstractmethod
    def _salt(self) -> bytes:
        """The ledger's secret salt; RunError when it is not the one that the ledger was opened with."""

    @abstractmethod
    def _keep(self, dataset: str, keys: Keys) -> None:
        """Keep a new data set's hashes durably; within a turn."""

    @property
    def owner(self) -> str:
        """The party whose ledger this is."""
        return self._book.owner

    @property
    def head(self) -> str:
        with self._turn():
            return self._book.head

    @property
    def tainted(self) -> bool:
        """Whether noise was ever drawn from a generator that is not the system's: the guarantee is void, for good."""
        with self._turn():
            return self._book.tainted

    def check(self, charge: Charge, budget: Budget | None) -> None:
        with self._turn():
            self._check(charge, budget)

    def charge(self, charge: Charge, budget: Budget | None) -> Permit:
        with self._turn():
            self._check(charge, budget)
            body, key = as_body(charge, __version__), (charge.run, charge.unit)
            if charge.plan and not self._book.has_started(*key) and key not in self._book.plans:
                self._write_plan(charge.run, charge.unit, charge.plan)
            entry = self._append("charge", body).hash
        return Permit(charge, entry)

    def done(self, permit: Permit, digest: str) -> None:
        """RunError when the charge is not in this ledger, or has released other bytes: one release, one noise. The same
        bytes may be sent, and noted, again."""
        if not is_hash(digest):
            raise RunError.at(self._where, f"{digest!r} is not a SHA-256", "give the hexadecimal digest of the bytes")
        with self._turn():
            self._known(permit.entry)
            before = self._book.digests.get(permit.entry)
            if before is None:
                self._append("done", {"entry": permit.entry, "digest": digest})
            elif before != digest:
                what = f"released {before[:12]} already and cannot release {digest[:12]} too"
                raise RunError.at(f"charge {permit.entry[:12]}", what, "send the kept bytes again, or charge anew")

    def recall(self, entry: str) -> Permit:
        """The permit of an earlier charge, void, for `done` after a crash: it gives no right to draw noise."""
        with self._turn():
            permit = Permit(self._known(entry), entry)
        permit.void()
        return permit

    def write_plan(self, run: str, unit: Unit, plan: GaussianEvent) -> None:
        """Write down what a run will do before it starts, which allows the tighter bounds that hold for fixed plans.
        The first charge of a run does so too. RunError when the run has begun."""
        with self._turn():
            self._write_plan(run, unit, plan)

    def charges(self, run: str | None = None) -> Sequence[Charge]:
        return tuple(self.entries(run).values())

    def entries(self, run: str | None = None) -> Mapping[str, Charge]:
        """The charges by the hash of their record, in order."""
        with self._turn():
            return {key: charge for key, charge in self._book.entries.items() if run is None or charge.run == run}

    def releases(self, run: str | None = None) -> Sequence[tuple[str, str]]:
        """(entry of the charge, SHA-256 of the released bytes) of each release that was noted, in order."""
        with self._turn():
            found = self._book.digests.items()
            return [(key, digest) for key, digest in found if run is None or self._book.entries[key].run == run]

    def witness(self, party: str, head: str) -> None:
        """RunError when the party's ledger was put back to an older copy."""
        if not is_hash(head):
            raise RunError.at(f"ledger of {party}", f"{head!r} is not the head of a chain", "send a SHA-256")
        with self._turn():
            compare(self._where, (), {}, self._book.witnessed, {party: head})
            if self._book.witnessed.get(party, [""])[-1] != head:
                self._append("witness", {"party": party, "head": head})

    def witnessed(self) -> Mapping[str, str]:
        with self._turn():
            return {party: heads[-1] for party, heads in self._book.witnessed.items()}

    def compare(self, kept: Mapping[str, str], present: Mapping[str, str] | None = None) -> None:
        """Tell a ledger that was put back to an older copy, when parties meet.

        kept: the head of this ledger that each other party kept. present: the head of its own ledger that each other
        party has now. RunError names every ledger that is older than it was.
        """
        with self._turn():
            compare(self._where, self._book.hashes, kept, self._book.witnessed, present or {})

    def register(self, keys: Iterable[str]) -> str:
        """The id of the data set with these units. Only salted hashes of the keys are kept, at the owner's."""
        with self._turn():
            found = hashed(keys, self._salt())
            dataset = name_of(found)
            if dataset not in self._units.known:
                self._keep(dataset, found)
                self._units.known[dataset] = found
        return dataset

    def verified(self) -> dict[str, Any]:
        """The head and the number of records of the chain, which reading it has verified. JSON-able."""
        with self._turn():
            return {"valid": True, "records": len(self._book.hashes), "head": self._book.head}

    @contextmanager
    def reading(self) -> Iterator[tuple[Book, Units]]:
        """The book and the data sets, up to date, for statements; not to be changed."""
        with self._turn():
            yield self._book, self._units

    def _opening(self, owner: str, salt: bytes) -> dict[str, Any]:
        return {"format": FORMAT, "owner": owner, "commitment": commitment(salt), "version": __version__}

    def _known(self, entry: str) -> Charge:
        found = self._book.entries.get(entry)
        if found is None:
            raise RunError.at(f"charge {entry[:12]}", f"is not in {self._where}", "charge before anything is released")
        return found

    def _write_plan(self, run: str, unit: Unit, plan: GaussianEvent) -> None:
        if self._book.has_started(run, unit) or (run, unit) in self._book.plans:
            raise RunError.at(f"run {run}", "has begun or has a plan", "write a plan down before the first charge")
        self._append("plan", {"run": run, "unit": unit, "plan": asdict(plan)})

    def _plan(self, charge: Charge) -> GaussianEvent | None:
        """The charge's plan if it was written down before the run's first charge; a plan that was changed is none."""
        if not self._book.has_started(charge.run, charge.unit):
            written = self._book.plans.get((charge.run, charge.unit), charge.plan)
        else:
            written = self._book.plans.get((charge.run, charge.unit))
        return written if written == charge.plan else None

    def _check(self, charge: Charge, budget: Budget | None) -> None:
        ceiling = self._ceiling.get(charge.unit)
        require_sound(charge, self.owner)
        limits = []
        if budget:
            spent = self._book.of_run(charge.run, charge.unit)
            limits.append(Limit("the run", budget, spent, self._plan(charge), _STOP))
        if ceiling:
            datasets = self._units.overlapping(charge.dataset, self._book.datasets(charge.unit))
            spent = self._book.of_datasets(datasets, charge.unit)
            limits.append(Limit(f"all studies on these data at {self.owner}", ceiling, spent, None, _CEILING))
        require_affordable(charge, self.owner, limits)


_STOP = (
    "stop here and keep the parameters of the last round; more rounds need a study with a larger budget or more noise"
)
_CEILING = "the site takes part no more, unless its owner raises the ceiling in the site's policy"
