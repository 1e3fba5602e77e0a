"""What the records of a chain say together: charges, releases, plans, taint, and what was spent. Pure."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medfl.errors import InputError, RunError
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.ledger.base import Charge, Unit
from medfl.privacy.ledger.chain import Record, is_hash

FORMAT = 1

_CHARGE = TypeAdapter(Charge)
_EVENT = TypeAdapter(GaussianEvent)

_Spent = Counter[tuple[float, float]]  # steps by noise multiplier and sampling rate


class Book:
    """Grows record by record. entries: the charges by the hash of their record. digests: what was released, by entry.
    witnessed: the heads of each other party that were kept, in order. plans: by run and unit."""

    def __init__(self) -> None:
        self.owner = ""
        self.commitment = ""
        self.entries: dict[str, Charge] = {}
        self.times: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.plans: dict[tuple[str, Unit], GaussianEvent] = {}
        self.witnessed: dict[str, list[str]] = {}
        self.hashes: set[str] = set()
        self.repairs = 0
        self.tainted = False
        self.last: Record | None = None
        self._of_run: defaultdict[tuple[str, Unit], _Spent] = defaultdict(Counter)
        self._of_dataset: defaultdict[tuple[str, Unit], _Spent] = defaultdict(Counter)

    @property
    def head(self) -> str:
        return self.last.hash if self.last else ""

    def add(self, record: Record, where: str) -> None:
        """Take the next record of a chain whose hashes were verified; RunError when it makes no sense."""
        place = f"{where}, line {record.sequence}"
        try:
            self._take[record.kind](self, record)
        except (ValidationError, InputError, KeyError, TypeError, ValueError) as error:
            what = f"is a record {record.kind!r} that makes no sense: {_brief(error)}"
            raise RunError.at(place, what, "use the version of medfl that wrote it") from error
        self.hashes.add(record.hash)
        self.last = record

    def has_started(self, run: str, unit: Unit) -> bool:
        return (run, unit) in self._of_run

    def of_run(self, run: str, unit: Unit) -> list[GaussianEvent]:
        """The run's charges about this unit, equal ones together."""
        return _events([self._of_run[run, unit]] if self.has_started(run, unit) else [])

    def of_datasets(self, datasets: Iterable[str], unit: Unit) -> list[GaussianEvent]:
        """All charges about this unit on these data sets, equal ones together."""
        return _events(self._of_dataset[name, unit] for name in datasets if (name, unit) in self._of_dataset)

    def datasets(self, unit: Unit) -> list[str]:
        """The data sets that were charged for this unit, in the order of their first charges."""
        return [name for name, kind in self._of_dataset if kind == unit]

    def units(self) -> list[Unit]:
        return list(dict.fromkeys(charge.unit for charge in self.entries.values()))

    def _open(self, record: Record) -> None:
        if record.body["format"] != FORMAT:
            raise ValueError(f"format {record.body['format']}, this version reads {FORMAT}")
        self.owner, self.commitment = str(record.body["owner"]), str(record.body["commitment"])

    def _plan(self, record: Record) -> None:
        run, unit = str(record.body["run"]), record.body["unit"]
        if (run, unit) in self.plans or self.has_started(run, unit):
            raise ValueError(f"the run {run} had begun")
        self.plans[run, unit] = _EVENT.validate_python(record.body["plan"])

    def _charge(self, record: Record) -> None:
        charge = _CHARGE.validate_python(record.body["charge"])
        if charge.to_json() != record.body["charge"]:
            raise ValueError("it has fields that this version does not know")
        key = (charge.event.noise_multiplier, charge.event.sampling_rate)
        self._of_run[charge.run, charge.unit][key] += charge.event.steps
        self._of_dataset[charge.dataset, charge.unit][key] += charge.event.steps
        self.entries[record.hash] = charge
        self.times[record.hash] = record.time
        self.tainted |= charge.randomness != "system"

    def _done(self, record: Record) -> None:
        entry, digest = record.body["entry"], record.body["digest"]
        if entry not in self.entries:
            raise ValueError(f"there is no charge {entry}")
        if entry in self.digests:
            raise ValueError(f"the charge {entry} has a release already")
        if not is_hash(digest):
            raise ValueError(f"{digest!r} is not a SHA-256")
        self.digests[entry] = digest

    def _witness(self, record: Record) -> None:
        self.witnessed.setdefault(str(record.body["party"]), []).append(str(record.body["head"]))

    def _repair(self, record: Record) -> None:
        self.repairs += 1

    _take: Mapping[str, Callable[["Book", Record], None]] = {
        "open": _open,
        "plan": _plan,
        "charge": _charge,
        "done": _done,
        "witness": _witness,
        "repair": _repair,
    }


def _events(spent: Iterable[_Spent]) -> list[GaussianEvent]:
    total: _Spent = Counter()
    for part in spent:
        total.update(part)
    return [GaussianEvent(noise, rate, steps) for (noise, rate), steps in total.items()]


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    return f"{error}" if isinstance(error, ValueError | InputError) else f"{type(error).__name__}: {error}"


def as_body(charge: Charge, version: str) -> dict[str, Any]:
    """The body of a charge's record; InputError when it could not be read again as it is."""
    body = charge.to_json()
    try:
        same = _CHARGE.validate_json(json.dumps(body, allow_nan=False)).to_json() == body
        wrong = "" if same else "some values are of another type than theirs"
    except (ValidationError, InputError, TypeError, ValueError) as error:
        wrong = _brief(error)
    if wrong:
        raise InputError.at(f"run {charge.run}, round {charge.round}", f"this charge cannot be kept: {wrong}")
    return {"charge": body, "version": version}
