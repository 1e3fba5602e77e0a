"""A patient's withdrawal: left out from now on, and told where they were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.errors import MedflError
from medfl.site.home import SiteHome, patient_of
from medfl.site.participation import Part


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """For the eyes of the data steward alone: it names patients. parts: the runs that had them, by patient. unknown:
    who is in no data set and no run. problem: why the data set could not be looked at, "" when it could."""

    patients: Sequence[str]
    parts: Mapping[str, Sequence[Part]]
    unknown: Sequence[str]
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        parts = {patient: [part._asdict() for part in found] for patient, found in self.parts.items()}
        return {
            "patients": list(self.patients),
            "runs": parts,
            "unknown": list(self.unknown),
            "problem": self.problem or None,
        }


def withdraw(home: SiteHome, patients: Sequence[str], by: str) -> Withdrawal:
    """Leave patients out from now on; which runs and rounds had them. The audit log gets numbers and no identifier."""
    named = list(dict.fromkeys(patient.strip() for patient in patients))
    home.participation.withdraw(named)
    parts = {patient: found for patient in named if (found := home.participation.rounds_of(patient))}
    home.audit.append("withdrawn", {"by": by, "patients": len(named), "runs": _by_run(parts)})
    try:
        known, problem = _in_data(home), ""
    except (MedflError, OSError) as error:
        known, problem = None, str(error)
    unknown = [] if known is None else [p for p in named if p not in parts and home.key_of(p) not in known]
    return Withdrawal(named, parts, unknown, problem)


def _by_run(parts: Mapping[str, Sequence[Part]]) -> list[dict[str, Any]]:
    """Each run with the rounds that had any of the patients, and how many of them it had."""
    found: dict[str, dict[str, Any]] = {}
    for mine in parts.values():
        for part in mine:
            entry = found.setdefault(part.run, {"run": part.run, "study": part.study, "rounds": set(), "patients": 0})
            entry["rounds"] |= set(part.rounds)
            entry["patients"] += 1
    return [{**entry, "rounds": sorted(entry["rounds"])} for entry in found.values()]


def _in_data(home: SiteHome) -> frozenset[str]:
    """The keys of the patients in the site's images, and in those that it may train on beside them."""
    from medfl.data.importers import find_datalist

    lists = [home.site.data, *(entry.manifest for entry in home.site.shared)]
    return frozenset(
        home.key_of(patient_of(case)) for data in lists if data is not None for case in find_datalist(data).cases
    )
