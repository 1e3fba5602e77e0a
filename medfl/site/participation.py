"""Which patients of a site took part in which rounds, and who was withdrawn. Patients are keyed hashes throughout.

One chain of records (`medfl.audit.chain`), so that no withdrawal is lost to a crash and none disappears unseen:

    begin      {"run", "study", "patients": [key, ..]}     a run takes up its data; again after a restart
    trained    {"run", "round", "order"}                   written before a round's update leaves
    withdrawn  {"patients": [key, ..]}
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from medfl.audit.chain import Form, Record
from medfl.audit.file import ChainFile, Clock, require_private, utc_now
from medfl.audit.log import LOG
from medfl.errors import RunError

_FORM = Form(
    name="a record of who took part",
    remedy="keep the file as it is, and find out who or what changed it; no order is taken before that",
    restore="restore the newest whole copy",
    room=LOG.room,
    kinds=frozenset({"open", "begin", "trained", "withdrawn", "repair"}),
    forward=False,
)


class Part(NamedTuple):
    """A run that had a patient. rounds: those that were finished with the patient's images in them."""

    run: str
    study: str
    rounds: tuple[int, ...]


class Participation:
    """Open with `open`. Several processes may use one file, each with its own object.

    key_of: the keyed hash of a patient's identifier.
    """

    def __init__(self, path: Path, key_of: Callable[[str], str], clock: Clock = utc_now) -> None:
        self._key_of = key_of
        self._told = _Told()
        self._file = ChainFile(path, _FORM, self._told.take, clock)

    @classmethod
    def open(cls, path: Path, key_of: Callable[[str], str], clock: Clock = utc_now) -> "Participation":
        """RunError when the file was changed, names every line that was."""
        found = cls(path, key_of, clock)
        if not path.exists():
            found._file.create({"format": 1})
        require_private(path)
        return found

    def begin(self, run: str, study: str, patients: Iterable[str]) -> None:
        """A run takes up the data of these patients. study: its hash. A second time replaces the first for the rounds
        that follow; the same again is not written down again."""
        with self._file.turn():
            keys = sorted({self._key_of(patient) for patient in patients})
            last = self._told.runs.get(run, [None])[-1]
            if last is not None and (last.study, last.patients) == (study, frozenset(keys)):
                return
            self._file.append("begin", {"run": run, "study": study, "patients": keys})

    def trained(self, run: str, round_: int, order: str = "") -> None:
        """A round was trained on what the run had last begun with. order: `order_key` of what was asked; the same again
        is not written down again. RunError when the run never began."""
        with self._file.turn():
            stretches = self._told.runs.get(run)
            if stretches is None:
                raise RunError.at(f"run {run}, round {round_}", "was trained before the run began at this site")
            if (round_, order) not in stretches[-1].orders:
                self._file.append("trained", {"run": run, "round": round_, "order": order})

    def withdraw(self, patients: Iterable[str]) -> None:
        """Leave these patients out from now on."""
        with self._file.turn():
            keys = sorted({self._key_of(patient) for patient in patients} - self._told.withdrawn)
            if keys:
                self._file.append("withdrawn", {"patients": keys})

    @property
    def withdrawn(self) -> frozenset[str]:
        """The keys of the patients who were withdrawn."""
        with self._file.turn():
            return frozenset(self._told.withdrawn)

    def rounds_of(self, patient: str) -> list[Part]:
        """Every run whose data had the patient, in order; with no rounds where none was finished with them."""
        key, found = self._key_of(patient), list[Part]()
        with self._file.turn():
            for run, stretches in self._told.runs.items():
                mine = [stretch for stretch in stretches if key in stretch.patients]
                rounds = sorted({number for stretch in mine for number in stretch.rounds})
                found += [Part(run, mine[-1].study, tuple(rounds))] if mine else []
        return found

    def stands(self, run: str, round_: int) -> bool:
        """Whether a round was trained, and no patient who took part in it was withdrawn since."""
        with self._file.turn():
            stretches = [each for each in self._told.runs.get(run, ()) if round_ in each.rounds]
            return bool(stretches) and not any(each.patients & self._told.withdrawn for each in stretches)

    def rounds_of_study(self, study: str) -> frozenset[tuple[str, int]]:
        """(run, round) of every round that was trained of a study, given by its hash."""
        return frozenset((run, round_) for run, round_, _ in self._trainings(study))

    def trainings_of_study(self, study: str) -> int:
        """How often a study was trained, the rounds that were trained from another order again included."""
        return len(self._trainings(study))

    def _trainings(self, study: str) -> set[tuple[str, int, str]]:
        """(run, round, order) of what was trained of a study."""
        with self._file.turn():
            return {
                (run, *order)
                for run, stretches in self._told.runs.items()
                for stretch in stretches
                if stretch.study == study
                for order in stretch.orders
            }


class _Stretch:
    """A run between one beginning and the next. orders: (round, order) of what was trained."""

    def __init__(self, study: str, patients: frozenset[str]) -> None:
        self.study = study
        self.patients = patients
        self.orders: set[tuple[int, str]] = set()

    @property
    def rounds(self) -> set[int]:
        return {round_ for round_, _ in self.orders}


class _Told:
    """What the records say together."""

    def __init__(self) -> None:
        self.runs: dict[str, list[_Stretch]] = {}
        self.withdrawn: set[str] = set()

    def take(self, record: Record) -> None:
        try:
            self._take(record)
        except (LookupError, TypeError, ValueError) as error:
            what = f"is a record {record.kind!r} that makes no sense: {error!r}"
            raise RunError.at(f"{_FORM.name}, line {record.sequence}", what, _FORM.remedy) from error

    def _take(self, record: Record) -> None:
        body = record.body
        if record.kind == "begin":
            stretch = _Stretch(str(body["study"]), frozenset(body["patients"]))
            self.runs.setdefault(str(body["run"]), []).append(stretch)
        elif record.kind == "trained":
            # earlier versions wrote no order down
            self.runs[str(body["run"])][-1].orders.add((int(body["round"]), str(body.get("order", ""))))
        elif record.kind == "withdrawn":
            self.withdrawn |= set(body["patients"])
