"""The proxy server by itself: which model it keeps, when a task begins, what it takes from sites, what that costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import federation_parts

from medfl.errors import RunError
from medfl.federation.proxy import Proposal, ProxyServer
from medfl.federation.round import Federation
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

CLASSES, LENGTH, IMAGES = 6, 8, 4
Vector = npt.NDArray[np.float32]


class Bench:
    """A gradient's label is its first value; a model's score is its first value, less what the images say."""

    length = LENGTH

    def __init__(self) -> None:
        self.rebuilt: list[tuple[int, int]] = []

    def label(self, values: Vector) -> int:
        return int(values[0])

    def rebuild(self, values: Vector, label: int, start: int) -> Vector | None:
        self.rebuilt.append((label, start))
        return None if values[1] < 0 else np.full((1, 2, 2), values[2], np.float32)

    def score(self, model: Vector, images: Vector, labels: Sequence[int]) -> float:
        assert len(images) == len(labels)
        return float(model[0] - images.mean())


def gradient(label: int, good: float = 1, image: float = 0) -> Vector:
    return np.array([label, good, image, *[0] * (LENGTH - 3)], np.float32)


def told(*labels: int) -> Proposal:
    return {label: gradient(label) for label in labels}


def model(score: float) -> Vector:
    return np.array([score, 0], np.float32)


def server(kind: type[ProxyServer] = ProxyServer) -> tuple[ProxyServer, Bench]:
    made, bench = kind(CLASSES, IMAGES), Bench()
    made.bind(bench)
    return made, bench


def learn(
    made: ProxyServer, round_: int, score: float, proposals: Mapping[str, Proposal] | None = None, answered: str = "abc"
) -> None:
    made.learn(round_, model(score), proposals or {}, list(answered))


def all_of(*labels: int) -> dict[str, Proposal]:
    return {name: told(*labels) for name in "abc"}


# which model


class KeepsTheLast(ProxyServer):
    """The fake: the last model of a task, whatever its score."""

    def _scored(self, model: Vector) -> float:
        return 0.0


@pytest.mark.parametrize(("kind", "good"), [(ProxyServer, True), (KeepsTheLast, False)])
def test_the_old_model_is_that_of_the_best_score(kind: type[ProxyServer], good: bool) -> None:
    made, _ = server(kind)
    scores = [0.2, 0.5, 0.9, 0.4, 0.6]
    for number, score in enumerate(scores, 1):
        learn(made, number, score, all_of(0, 1) if number == 1 else {})
    learn(made, 6, 0.1, all_of(2))
    assert (made.models["previous"][0] == np.float32(max(scores))) == good
    assert made.models["current"][0] == np.float32(0.1)


def test_of_equals_the_later_one_is_kept() -> None:
    made, _ = server()
    for number in (1, 2):
        made.learn(number, np.array([0.5, number], np.float32), all_of(0) if number == 1 else {}, ["a", "b", "c"])
    assert made.models["current"][1] == 2


def test_scores_are_compared_on_the_same_images() -> None:
    """More images make a model look worse than before: the one that is kept is scored anew."""
    made, _ = server()
    learn(made, 1, 0.9, {"a": {0: gradient(0)}, "b": {0: gradient(0)}})
    learn(made, 2, 0.6, {"c": {1: gradient(1, image=1)}})
    assert made.models["current"][0] == np.float32(0.9)
    assert made.score == pytest.approx(0.9 - 1 / 3)


def test_models_are_copies() -> None:
    made, _ = server()
    moving = model(0.5)
    made.learn(1, moving, all_of(0), ["a", "b", "c"])
    moving[0] = 7
    assert made.models["current"][0] == np.float32(0.5)


# when a task begins


def test_a_task_begins_with_more_than_half_of_those_who_answered() -> None:
    made, _ = server()
    learn(made, 1, 0.1, all_of(0, 1))
    assert made.since == 1
    learn(made, 2, 0.2, {"a": told(2)})
    assert made.since == 1 and "previous" not in made.models
    learn(made, 3, 0.3, {"b": told(3), "c": told(3)})
    assert made.since == 3 and made.models["previous"][0] == np.float32(0.2)


def test_those_who_come_late_begin_no_other_task() -> None:
    made, _ = server()
    learn(made, 1, 0.1, all_of(0, 1))
    learn(made, 2, 0.2, {name: told(2, 3) for name in "ab"}, "ab")
    assert made.since == 2
    # all of the next round's sites switch only now, or are new
    learn(made, 3, 0.3, {"c": told(2, 3), "d": told(0, 3)}, "cd")
    assert made.since == 2


def test_one_site_can_neither_begin_tasks_nor_keep_them_from_beginning() -> None:
    made, _ = server()
    learn(made, 1, 0.1, {"a": told(*range(CLASSES)), "b": told(0), "c": told(0)})
    assert made.since == 1
    learn(made, 2, 0.2, {"b": told(1), "c": told(1)})
    assert made.since == 2, "that a named all classes before must not hide the switch of the others"
    hostile, _ = server()
    learn(hostile, 1, 0.1, {"a": told(0), "b": told(0), "c": told(0)})
    for label in range(1, CLASSES):
        learn(hostile, 1 + label, 0.1, {"a": told(label)})
    assert hostile.since == 1


# what comes to whom


def test_who_told_of_a_switch_gets_both_models_once() -> None:
    made, _ = server()
    learn(made, 1, 0.1, all_of(0, 1))
    assert not any(made.old_models(name) for name in "abc"), "there is no earlier task"
    learn(made, 2, 0.2, {"a": told(2), "b": told(2)})
    assert made.old_models("a").keys() == {"previous", "current"} and not made.old_models("c")
    # b failed, and may not have got them
    learn(made, 3, 0.3, answered="ac")
    assert not made.old_models("a") and made.old_models("b")


def test_who_is_ahead_of_the_federation_gets_the_present_task_s_best() -> None:
    made, _ = server()
    learn(made, 1, 0.5, all_of(0, 1))
    learn(made, 2, 0.2, {"a": told(2)})
    assert made.old_models("a").keys() == {"current"}
    assert made.old_models("a")["current"][0] == np.float32(0.5)


# what is taken


def payload(*rows: Vector, **changes: Any) -> Payload:
    values = np.concatenate(rows)
    return Payload(**{"codec": "fp32", "size": values.size, "buffers": (as_bytes(values),)} | changes)


WRONG = {
    "another codec": (payload(gradient(1), codec="fp16"), "gradients of 8 values"),
    "a part of a gradient": (payload(gradient(1)[:5]), "gradients of 8 values"),
    "none": (payload(np.zeros(0, np.float32)), "1 to 6 gradients"),
    "more than there are classes": (payload(*[gradient(n) for n in range(CLASSES + 1)]), "1 to 6 gradients"),
    "fewer bytes than said": (payload(gradient(1), size=2 * LENGTH), "gradients of 8 values"),
    "two buffers": (payload(gradient(1), buffers=(b"", b"")), "gradients of 8 values"),
    "not a number": (payload(gradient(1, good=float("nan"))), "not finite"),
    "a class twice": (payload(gradient(1), gradient(1)), "a class twice"),
    "a class again": (payload(gradient(0)), "a class twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_proposal_is_refused(name: str) -> None:
    made, _ = server()
    learn(made, 1, 0.1, all_of(0))
    wrong, why = WRONG[name]
    with pytest.raises(RunError, match=f"site a: sent prototypes .*{why}"):
        made.checked("a", wrong)
    found = made.checked("a", payload(gradient(1), gradient(3)))
    assert found is not None and sorted(found) == [1, 3]
    assert made.checked("a", None) is None


def test_what_sites_send_costs_a_bounded_work() -> None:
    made, bench = server()
    names = [f"s{number}" for number in range(50)]
    for round_ in range(1, 4):
        made.learn(round_, model(0.1), {f"{name}{round_}": told(*range(CLASSES)) for name in names}, names)
    assert sorted(bench.rebuilt) == [(label, start) for label in range(CLASSES) for start in range(IMAGES)]


def test_one_site_does_not_use_up_what_is_for_all() -> None:
    made, _ = server()
    learn(made, 1, 0.1, {"a": {0: gradient(0, image=9)}})
    learn(made, 2, 0.1, {name: told(0) for name in "bcde"})
    images, labels = made.rebuilt
    assert images is not None and labels == [0] * IMAGES
    assert (images == 9).mean() == 1 / IMAGES


def test_images_that_are_not_found_are_left_out() -> None:
    made, bench = server()
    learn(made, 1, 0.1, {"a": {0: gradient(0, good=-1), 1: gradient(1)}})
    assert made.rebuilt[1] == [1] and (0, 0) in bench.rebuilt


def test_without_images_the_last_model_is_kept() -> None:
    made, _ = server()
    for number in (1, 2):
        learn(made, number, 1 / number)
    assert made.score == 0 and made.models["current"][0] == np.float32(0.5)


def test_it_asks_for_its_workshop() -> None:
    with pytest.raises(RunError, match="before it was told of the networks"):
        ProxyServer(CLASSES, IMAGES).checked("a", payload(gradient(1)))


# state


def test_it_goes_on_from_its_state() -> None:
    whole, _ = server()
    learn(whole, 1, 0.3, all_of(0, 1))
    learn(whole, 2, 0.2, {"a": told(2), "b": told(2)})
    plain, arrays = whole.state()
    again, _ = server()
    again.restore(plain, {name: array.copy() for name, array in arrays.items()})
    for made in (whole, again):
        learn(made, 3, 0.4, {"c": told(2)}, "ac")
        learn(made, 4, 0.1)
    assert again.state()[0] == whole.state()[0]
    ours, theirs = again.state()[1], whole.state()[1]
    assert ours.keys() == theirs.keys() == {"previous", "current", "images"}
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    fresh, _ = server()
    learn(fresh, 3, 0.4, {"c": told(2)}, "ac")
    assert fresh.state()[0] != whole.state()[0], "a server that forgot is another one"


# in the round


def reply(name: str, round_: int, prototypes: Payload | None) -> TrainReply:
    values = np.ones(2, np.float32)
    return TrainReply(name, round_, Payload("fp32", 2, (as_bytes(values),)), 10, 1, 1, 1.0, 1.0, prototypes=prototypes)


def federation(proxy: ProxyServer | None) -> Federation:
    return Federation(federation_parts(proxy=proxy), 0, model(0.0))


def test_a_reply_with_a_wrong_proposal_is_refused_whole_and_others_count() -> None:
    made, _ = server()
    federated = federation(made)
    round_ = federated.open(federated.plan(dict.fromkeys("abc", 10)))
    wrong = round_.receive(reply("a", 1, payload(gradient(1), gradient(1))))
    assert wrong.verdict is not None and wrong.verdict.outcome == "refuse" and not wrong.prototypes
    assert round_.receive(reply("b", 1, payload(gradient(1), gradient(2)))).prototypes == 2
    round_.fail(SiteFailure("c", 1, "was away"))
    outcome = federated.close(round_)
    assert outcome.moved and federated.model[0] == 1
    plain, arrays = federated.state()
    assert plain["proxy"]["told"] == {"b": 1} and "proxy.images" in arrays


@pytest.mark.parametrize(("quorum", "heard"), [(1, {"a": 1}), (2, {})])
def test_what_came_in_a_round_that_moved_nothing_is_not_heard(quorum: int, heard: dict[str, int]) -> None:
    """Its site is told that nothing of it counted, and tells it again: that must not be the class's second time."""
    made, _ = server()
    federated = Federation(federation_parts(proxy=made, quorum=quorum), 0, model(0.0))
    for number in (1, 2):
        round_ = federated.open(federated.plan(dict.fromkeys("abc", 10)))
        assert round_.receive(reply("a", number, payload(gradient(1)))).counts == (number == 1 or not heard)
        outcome = federated.close(round_)
        assert outcome.moved == (bool(heard) and number == 1)
        assert federated.counted == federated.state()[0]["proxy"]["told"] == heard


def test_prototypes_that_nobody_asked_for_are_refused() -> None:
    federated = federation(None)
    round_ = federated.open(federated.plan(dict.fromkeys("abc", 10)))
    mine = round_.receive(reply("a", 1, payload(gradient(1))))
    assert mine.verdict is not None and mine.verdict.outcome == "refuse"
    assert "does not ask for" in mine.verdict.reason
