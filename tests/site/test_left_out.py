"""Names of images and patients stay at the site: in no log, in no message."""

import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from medfl.data.reasons import _OTHER, _REASONS, outward
from medfl.errors import DataError, Fault, InputError, StudyError
from medfl.site import left_out

SENTENCES = {*dict(_REASONS).values(), _OTHER}
NAMES = ("MUELLER HANS.png", "/data/Schmidt_Anna/1.dcm", "o'brien", "label: x does not exist")


@given(st.text(), st.sampled_from(["does not exist", "cannot be read as PNG: {}", "has label {}", "{}"]), st.text())
def test_what_is_told_is_one_of_few_sentences(name: str, what: str, more: str) -> None:
    told = outward(f"{name}: {what.format(more)}")
    assert told in SENTENCES


def test_keys_become_numbers_and_reasons_stay_distinct() -> None:
    skipped = {NAMES[0]: f"{NAMES[0]}: cannot be read as PNG: broken", NAMES[1]: f"{NAMES[1]}: does not exist"}
    told = left_out.outward_all(skipped)
    assert told == {"case 1": "the file is damaged", "case 2": "the file does not exist"}
    assert left_out.in_words(skipped) == "1: the file is damaged; 1: the file does not exist"


def test_the_steward_finds_all_of_it(tmp_path: Path) -> None:
    assert left_out.read(tmp_path) is None
    problem = DataError(Fault("MUELLER", "is gone"))
    left_out.keep(tmp_path, {NAMES[0]: "why"}, problem)
    found = left_out.read(tmp_path)
    assert found is not None
    assert (found["cases"], found["faults"]) == ({NAMES[0]: "why"}, ["MUELLER: is gone"])
    assert stat.S_IMODE(left_out.path_in(tmp_path).stat().st_mode) == 0o600


def test_faults_of_images_become_a_number_and_those_of_the_study_stay() -> None:
    policy = Fault("site a", "its policy does not allow detection")
    told = left_out.discreet("a", InputError(policy, Fault("MUELLER", "is gone"), Fault("a", "1 case; MUELLER: bad")))
    assert "MUELLER" not in str(told)
    assert told.faults[0] == policy
    assert "2 faults" in told.faults[1].what
    for whole in (StudyError(Fault("task.classes", "differ")), InputError(policy)):
        assert left_out.discreet("a", whole) is whole
