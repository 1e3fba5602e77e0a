"""Which rounds had a patient: the rounds after each beginning, for those whom that beginning named."""

from pathlib import Path

import pytest

from medfl.errors import RunError
from medfl.site.participation import Part, Participation


def key_of(patient: str) -> str:
    return f"{patient:0>64}"


@pytest.fixture
def kept(tmp_path: Path) -> Participation:
    found = Participation.open(tmp_path / "participation.jsonl", key_of)
    found.begin("one", "a", ["1", "2"])
    for round_ in (1, 2):
        found.trained("one", round_)
    found.begin("one", "a", ["1"])  # after a restart, without the second
    for round_ in (2, 3):
        found.trained("one", round_)
    found.begin("two", "a", ["2", "3"])
    return found


def test_rounds_of_a_patient(kept: Participation):
    assert kept.rounds_of("1") == [Part("one", "a", (1, 2, 3))]
    assert kept.rounds_of("2") == [Part("one", "a", (1, 2)), Part("two", "a", ())]
    assert kept.rounds_of("4") == []


def test_a_fake_that_knows_the_last_beginning_only_forgets(kept: Participation):
    last = kept._told.runs["one"][-1]
    fake = {name: sorted(last.rounds) for name in "12" if key_of(name) in last.patients}
    assert fake == {"1": [2, 3]}, "round 1 of the first, and all of the second, are lost"


def test_outlives_its_process_and_is_shared(kept: Participation, tmp_path: Path):
    other = Participation.open(tmp_path / "participation.jsonl", key_of)
    other.trained("two", 1)
    other.withdraw(["3"])
    assert kept.rounds_of("3") == [Part("two", "a", (1,))] and kept.withdrawn == {key_of("3")}
    assert kept.rounds_of_study("a") == {("one", 1), ("one", 2), ("one", 3), ("two", 1)}
    assert kept.rounds_of_study("b") == frozenset()


def test_a_round_is_noted_once(kept: Participation, tmp_path: Path):
    kept.trained("one", 3, "order")
    assert kept.trainings_of_study("a") == 4 and kept.rounds_of("1") == [Part("one", "a", (1, 2, 3))]
    before = (tmp_path / "participation.jsonl").read_bytes()
    kept.trained("one", 3)
    kept.trained("one", 3, "order")
    kept.withdraw([])
    assert (tmp_path / "participation.jsonl").read_bytes() == before
    with pytest.raises(RunError, match="run three, round 1: was trained before the run began"):
        kept.trained("three", 1)
