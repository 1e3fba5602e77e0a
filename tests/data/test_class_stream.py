"""Class streams: which samples a site trains on in which round, and what it weighs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import Federated, configured, federation_parts, plugin
from toys.tasks import Classifier, Rows, site

from medfl.data.base import SampleInfo
from medfl.data.plans.base import PLANS
from medfl.data.plans.class_stream import EXEMPLARS, ClassStream, ClassStreamConfig, exemplars
from medfl.errors import DataError, StudyError

CLASSES = ("a", "b", "c", "d", "e")
LABELS = np.array([0, 1, 2, 3, 4, 4, 3, 2, 1, 0])


class AllAtOnce(ClassStream):
    """The fake: no stream at all."""

    def indices(self, site: str, round: int, labels: Any, state: Any) -> npt.NDArray[np.int64]:
        return np.arange(len(labels))


def stream(**settings: Any) -> ClassStream:
    made: ClassStream = plugin(PLANS, "class_stream", **settings)
    made.bind(CLASSES, 0)
    return made


def used(plan: ClassStream, round_: int, labels: Any = LABELS, kept: Any = ()) -> list[int]:
    """The classes that a site trains on."""
    labels, kept = np.asarray(labels), np.array(kept, np.int64)
    state = {EXEMPLARS: np.stack([kept, labels[kept]])} if len(kept) else {}
    indices = plan.indices("s", round_, labels, state)
    assert indices.dtype == np.int64
    return sorted(set(labels[indices].tolist()))


@pytest.mark.parametrize(
    ("settings", "tasks"),
    [
        ({"classes_per_task": 2}, [[0, 1], [2, 3], [4]]),
        ({"tasks": [["e", "a"], ["c"], ["b", "d"]]}, [[0, 4], [2], [1, 3]]),
        ({}, [[0], [1], [2], [3], [4]]),
    ],
)
def test_classes_come_task_by_task_and_the_last_stay(settings: dict[str, Any], tasks: list[list[int]]) -> None:
    plan = stream(rounds_per_task=3, **settings)
    for number, classes in enumerate(tasks):
        for round_ in range(3 * number + 1, 3 * number + 4):
            assert used(plan, round_) == classes
            assert plan.stage("s", round_, LABELS) == number
    assert used(plan, 1000) == tasks[-1]
    assert plan.stage("s", 1000, LABELS) == len(tasks) - 1


def test_all_samples_of_the_present_classes_and_nothing_else() -> None:
    plan = stream(classes_per_task=2, rounds_per_task=1)
    assert plan.indices("s", 2, LABELS, {}).tolist() == [2, 3, 6, 7]


def test_exemplars_of_earlier_classes_stay() -> None:
    plan = stream(classes_per_task=2, rounds_per_task=1)
    state = {EXEMPLARS: np.array([[9, 1, 3], [0, 1, 3]])}
    assert plan.indices("s", 2, LABELS, state).tolist() == [1, 2, 3, 6, 7, 9]
    # those of present classes are there anyway
    assert plan.indices("s", 1, LABELS, {EXEMPLARS: np.array([[9], [0]])}).tolist() == [0, 1, 8, 9]


def test_a_site_without_present_classes_stays_with_what_it_had() -> None:
    plan = stream(rounds_per_task=1)
    mine = [0, 2, 2]
    assert [used(plan, round_, mine) for round_ in (1, 2, 3, 4, 5)] == [[0], [0], [2], [2], [2]]
    assert [plan.stage("s", round_, np.array(mine)) for round_ in (1, 2, 3, 4)] == [0, 0, 2, 2]
    assert not used(plan, 1, [3, 4])


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(0, 30),
)
def test_nothing_of_classes_to_come_is_used(labels: list[int], each: int, rounds: int, round_: int, kept: int) -> None:
    def early(plan: ClassStream) -> bool:
        plan.bind(CLASSES, 0)
        task = (round_ - 1) // rounds
        chosen = np.arange(len(labels))[:kept]
        chosen = chosen[np.array(labels, np.int64)[chosen] // each <= task]
        classes = used(plan, round_, labels, chosen)
        return any(number // each > task for number in classes)

    config = ClassStreamConfig(classes_per_task=each, rounds_per_task=rounds)
    assert not early(ClassStream(config))
    to_come = any(number // each > (round_ - 1) // rounds for number in labels)
    assert early(AllAtOnce(config)) == to_come


class Variants(Rows):
    """Each case as three samples."""

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(f"case{index // 3}", "", (1.0,))


def test_the_weight_is_the_cases_of_the_round() -> None:
    plan = stream(rounds_per_task=1)
    labels = np.repeat([0, 0, 1, 2], 3)
    rows = Variants(np.zeros((12, 2)), labels, 4)
    for round_, cases in ((1, 2), (2, 1), (3, 1)):
        assert plan.unique("s", round_, rows, plan.indices("s", round_, labels, {})) == cases
    state = {EXEMPLARS: np.array([[0, 1, 5], [0, 0, 0]])}
    assert plan.unique("s", 2, rows, plan.indices("s", 2, labels, state)) == 3


def test_a_federation_trains_on_the_stream_and_weighs_by_it() -> None:
    rng = np.random.default_rng(0)
    labels = {"a": np.array([0] * 6 + [1] * 2 + [2]), "b": np.array([0] * 3 + [2] * 5)}
    rows = {name: Rows(rng.normal(size=(len(own), 3)), own) for name, own in labels.items()}
    made = Federated(
        Classifier(3, 3),
        [site(name, own) for name, own in rows.items()],
        federation_parts(),
        plan=plugin(PLANS, "class_stream", rounds_per_task=1),
    )
    cases = [{name: mine.cases for name, mine in outcome.sites.items()} for outcome in made.run(3)]
    assert cases == [{"a": 6, "b": 3}, {"a": 2, "b": 3}, {"a": 1, "b": 5}]
    assert [sorted(set(labels["a"][asked].tolist())) for asked in rows["a"].asked] == [[0], [1], [2]]
    assert [sorted(set(labels["b"][asked].tolist())) for asked in rows["b"].asked] == [[0], [0], [2]]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([["a", "b"], ["c", "d", "e", "f"]], "tasks: f: is not a class"),
        ([["a", "b"], ["c", "d", "e", "a"]], "tasks: a: is in 2 tasks"),
        ([["a", "b"], ["d", "e"]], "tasks: c: is in no tasks"),
        ([["a", "b", "c", "d", "e"], []], "a task has no classes"),
    ],
)
def test_tasks_that_do_not_fit_the_classes_are_refused(tasks: list[list[str]], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        stream(tasks=tasks)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(StudyError) as caught:
        stream(tasks=[["a", "a"], ["x"], []])
    assert len(caught.value.faults) == 7


@pytest.mark.parametrize("settings", [{"tasks": []}, {"classes_per_task": 0}, {"rounds_per_task": 0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClassStreamConfig(**settings)


@pytest.mark.parametrize("label", [-1, 5])
def test_unknown_labels_are_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"site s: has labels {label}"):
        stream().indices("s", 1, np.array([0, label]), {})


@pytest.mark.parametrize("kept", [[[10], [0]], [[-1], [0]], [[1], [0]]])
def test_exemplars_that_are_no_longer_there_are_refused(kept: list[list[int]]) -> None:
    assert exemplars("s", LABELS, {EXEMPLARS: np.array([[1], [1]])}).tolist() == [1]
    with pytest.raises(DataError, match="no longer where they were"):
        stream().indices("s", 1, LABELS, {EXEMPLARS: np.array(kept)})


def test_it_says_what_it_is() -> None:
    assert configured(PLANS, "class_stream").traits() == {"streams-classes"}
