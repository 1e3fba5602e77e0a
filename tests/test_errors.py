"""Errors carry all faults, in order, and survive a process boundary."""

import copy
import pickle

import pytest

from medfl.errors import DataError, Fault, Faults, InputError, MedflError, RunError, StudyError


def test_a_fault_reads_as_place_finding_and_remedy() -> None:
    assert str(Fault("a.yaml: seed", "is missing", "add it")) == "a.yaml: seed: is missing (add it)"
    assert str(Fault("a.yaml", "is empty")) == "a.yaml: is empty"


def test_an_error_has_all_faults() -> None:
    faults = Faults()
    faults.add("one", "is wrong")
    faults.extend([Fault("two", "too", "mend")])
    assert len(faults) == 2
    with pytest.raises(StudyError) as caught:
        faults.raise_if_any(StudyError)
    assert caught.value.faults == (Fault("one", "is wrong"), Fault("two", "too", "mend"))
    assert str(caught.value) == "one: is wrong\ntwo: too (mend)"


def test_no_fault_no_error() -> None:
    Faults().raise_if_any(StudyError)


@pytest.mark.parametrize(
    ("kind", "code"), [(MedflError, 1), (RunError, 1), (InputError, 2), (StudyError, 2), (DataError, 2)]
)
def test_exit_codes(kind: type[MedflError], code: int) -> None:
    error = kind.at("here", "is wrong")
    assert type(error) is kind and error.exit_code == code and isinstance(error, MedflError)


def test_errors_keep_their_faults_across_a_process_boundary() -> None:
    error = DataError(Fault("a", "b", "c"), Fault("d", "e"))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(again) is DataError and again.faults == error.faults and str(again) == str(error)
