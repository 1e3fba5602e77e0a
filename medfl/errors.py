"""One family of errors: every fault names its place, what is wrong and what to do about it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    where: the site, round, file or key, as its reader would look it up.
    what: what was found there, in one sentence.
    remedy: what to do about it.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class MedflError(Exception):
    """Base of all errors that medfl raises on purpose; carries all faults at once."""

    exit_code = 1

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))

    def __reduce__(self) -> tuple[type["MedflError"], tuple[Fault, ...]]:
        # exceptions are rebuilt from their arguments when they cross a process boundary
        return type(self), self.faults

    @classmethod
    def at(cls, where: object, what: str, remedy: str = "") -> "MedflError":
        """The error for a single fault."""
        return cls(Fault(str(where), what, remedy))


class InputError(MedflError):
    """Something the user gave is wrong: a study, a site file, an image, an option. Exit code 2."""

    exit_code = 2


class StudyError(InputError):
    """A study or site file cannot be used as it is."""


class DataError(InputError):
    """Images, labels or a manifest cannot be used as they are."""


class RunError(MedflError):
    """A run that was started cannot go on. Exit code 1."""


class Faults:
    """Collects faults so that all of them are reported together."""

    def __init__(self) -> None:
        self._found: list[Fault] = []

    def add(self, where: object, what: str, remedy: str = "") -> None:
        self._found.append(Fault(str(where), what, remedy))

    def extend(self, faults: Iterable[Fault]) -> None:
        self._found.extend(faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self, error: type[MedflError]) -> None:
        """Raise `error` with every fault found so far; do nothing when there is none."""
        if self._found:
            raise error(*self._found)
