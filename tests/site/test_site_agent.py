"""What a site's agent does when something about its data, its home or its life changes between two requests."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from medfl.audit.log import read_log
from medfl.data.base import Case
from medfl.errors import InputError
from medfl.learning.checkpoint import order_key
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.privacy.channels.base import HAND_OVER, Message
from medfl.privacy.identity import Ed25519Identity
from medfl.site import agent as module
from medfl.site import studies
from medfl.site.agent import Agent
from medfl.site.home import SiteHome
from medfl.site.studies import Studies
from medfl.study.load import load_study
from medfl.transport.memory import SiteMemory
from medfl.transport.messages import encode_order
from medfl.update.base import Payload
from medfl.update.wire import Buffer, parts, unpack

MODEL = Payload("fp32", 2, (b"12345678",))
MINIMUM = 3


class Host:
    """Stands for what trains: its policy wants three cases, and it tells which it was asked to train on."""

    used: ClassVar[list[tuple[str, list[str]]]] = []
    on_step: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(self, inputs: Any, cases: Sequence[Case], memory: SiteMemory, identity: Any) -> None:
        self.study = inputs.study.name
        self.patients = sorted(case.patient for case in cases)
        self.memory = memory

    def open(self) -> list[SiteInfo]:
        return [SiteInfo("east", {"train": len(self.patients)})]

    def admit(self) -> None:
        if len(self.patients) < MINIMUM:
            raise InputError.at("site east", f"{len(self.patients)} cases are fewer than its policy wants")

    def begin(self, beginning: Beginning) -> Mapping[str, LedgerHeads]:
        self.memory.begin(beginning.run)
        return {}

    def train(
        self, order: TrainOrder, model: Payload, step_done: Any
    ) -> tuple[TrainReply | SiteFailure, dict[str, Any]]:
        type(self).used.append((self.study, self.patients))
        type(self).on_step()
        try:
            step_done(1, 2)
        except Exception as error:  # as medfl.transport.host does
            return SiteFailure("east", order.round, str(error)), {}
        reply = TrainReply("east", order.round, MODEL, 3, 2, 1, 0.7, 0.5)
        self.memory.keep(order_key("run1", order, np.frombuffer(model.buffers[0], np.float32), 3), reply, {})
        return reply, {}

    def answer(self, site: str, stage: str, message: Message) -> Message:
        return Message({}, (b"update",))

    def evaluate(self, site: str, split: str, model: Payload) -> dict[str, Any]:
        type(self).used.append((split, self.patients))
        return {}


class Ward:
    """An agent whose site has some patients. offer: study by study, as another start of the coordinator would."""

    def __init__(self, tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiny = tiny
        self.patients = ["a", "b", "c", "d"]
        site = tiny.sites / "east.yaml"
        site.write_text(f"{site.read_text()}policy:\n  approve: allowed\n")
        self.home = SiteHome.create(folder / "home", site)
        self.agent = Agent(self.home, Ed25519Identity.generate("east"), Host)  # type: ignore[arg-type]
        self.sent: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(module, "own_cases", lambda inputs: self.cases())
        monkeypatch.setattr(self.agent.box, "send", lambda message: self.sent.append((message.id, self.said(message))))

    def cases(self) -> list[Case]:
        return [Case(f"{name}.png", Path(f"/{name}.png"), patient=name, split="train") for name in self.patients]

    @staticmethod
    def said(message: Any) -> dict[str, Any]:
        return unpack(b"".join(message._pieces))[0]

    def ask(self, kind: str, header: Mapping[str, Any], buffers: Sequence[Buffer] = (), id_: str = "x-1") -> Any:
        """The agent's answer; None when it gave none."""
        self.sent.clear()
        self.agent._answer(id_, memoryview(b"".join(parts({"do": kind, **header}, buffers))))
        return self.sent[0][1] if self.sent else None

    def join(self, **changed: Any) -> Any:
        study = load_study(self.tiny.study, [f"{key}={value}" for key, value in changed.items()])
        return self.ask("join", {"study": study.to_json()})

    def begin(self, run: str = "run1") -> Any:
        return self.ask("begin", {"run": run, "roster": {}})

    def train(self, round_: int, model: Payload = MODEL) -> Any:
        header, buffers = unpack(b"".join(encode_order(TrainOrder("east", round_, {}), model)))
        return self.ask("train", header, buffers, f"train-{round_}")

    def hand_over(self, order: int) -> Any:
        message = {"round": 9, "order": order, "weights": {}}
        return self.ask("exchange", {"site": "east", "stage": HAND_OVER, "message": message})

    def evaluate(self) -> Any:
        header = {"site": "east", "split": "val", "model": MODEL.header()}
        return self.ask("evaluate", header, MODEL.buffers)


@pytest.fixture
def ward(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    Host.used, Host.on_step = [], staticmethod(lambda: None)
    yield Ward(tiny, tmp_path, monkeypatch)


def why(answer: Mapping[str, Any]) -> str:
    return str(answer.get("faults") or answer.get("reason"))


def test_the_usual_course(ward: Ward) -> None:
    assert ward.join()["answer"] == "open" and ward.begin()["answer"] == "begun"
    assert ward.train(1)["round"] == 1 and ward.evaluate()["answer"] == "statistics"
    assert Host.used == [("tiny", ["a", "b", "c", "d"]), ("val", ["a", "b", "c", "d"])]


def test_a_round_that_is_asked_for_again_with_another_model_is_another_training(ward: Ward) -> None:
    ward.join()
    ward.begin()
    (study,) = [offer.hash for offer in Studies(ward.home).all()]
    for model, trainings in ((MODEL, 1), (MODEL, 1), (Payload("fp32", 2, (b"87654321",)), 2)):
        assert ward.train(1, model)["round"] == 1
        assert ward.home.participation.trainings_of_study(study) == trainings
    assert len(ward.home.participation.rounds_of_study(study)) == 1


def test_metrics_are_told_as_often_as_the_approval_says(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.join()
    ward.begin()
    (study,) = [offer.hash for offer in Studies(ward.home).all()]
    ward.agent._studies.approve(study, "me")
    monkeypatch.setattr(studies, "evaluations", lambda rounds: 2)
    assert [ward.evaluate()["answer"] for _ in range(2)] == ["statistics"] * 2
    assert "metrics were told 2 times" in why(ward.evaluate())
    assert ward.train(1)["round"] == 1, "it may go on training"


def test_who_was_withdrawn_is_used_no_more_also_when_too_few_are_left(ward: Ward) -> None:
    """What the policy wants is not met without them: then nobody is used, now and at the next order."""
    ward.join()
    ward.begin()
    ward.home.participation.withdraw(["b", "d"])
    for round_ in (1, 2):
        assert "fewer than its policy wants" in why(ward.train(round_))
    assert "fewer than its policy wants" in why(ward.evaluate())
    assert Host.used == []
    ward.patients.append("e")
    assert ward.train(3)["round"] == 3, "the steward added a patient"
    assert Host.used == [("tiny", ["a", "c", "e"])]


def test_the_stewards_word_counts_while_an_update_waits_for_its_sum(ward: Ward) -> None:
    ward.join()
    ward.begin()
    ward.train(1)
    assert ward.hand_over(1)["answer"] == "message"
    (told,) = [record.body for record in ward.home.audit.entries() if record.kind == "handed-over"]
    assert told == {"run": "run1", "round": 9, "order": 1}
    assert "was not trained" in why(ward.hand_over(2))
    ward.home.pause("steward", "not today")
    assert "paused by its steward: not today" in why(ward.hand_over(1))
    ward.home.resume("steward")
    ward.home.participation.withdraw(["d"])
    assert "withdrawn since" in why(ward.hand_over(1))
    ward.evaluate()
    assert "withdrawn since" in why(ward.hand_over(1)), "also when the images were loaded anew"
    ward.train(2)
    assert ward.hand_over(2)["answer"] == "message"


def test_who_was_withdrawn_is_not_evaluated_on(ward: Ward) -> None:
    ward.join()
    ward.begin()
    ward.home.participation.withdraw(["d"])
    ward.evaluate()
    assert Host.used == [("val", ["a", "b", "c"])]


def test_a_study_that_cannot_be_loaded_is_not_trained_as_the_one_before(ward: Ward) -> None:
    ward.join()
    ward.begin()
    ward.patients = ["a"]
    for _ in range(2):
        assert "fewer than its policy wants" in why(ward.join(name="other"))
    assert "answer" in ward.begin("run2") and "before it joined" in why(ward.train(1))
    assert Host.used == []
    ward.patients = ["a", "b", "c"]
    assert ward.join(name="other")["answer"] == "open"
    assert "before the run began" in why(ward.train(1)), "the run of the study before is not this one's"
    ward.begin("run2")
    ward.train(1)
    assert Host.used == [("other", ["a", "b", "c"])]


def test_a_training_that_the_agent_itself_breaks_off_is_no_failed_round(ward: Ward) -> None:
    """SIGTERM: the next process of the site trains, and the round goes on with it."""
    ward.join()
    ward.begin()
    Host.on_step = staticmethod(ward.agent.stop.set)
    assert ward.train(1) is None
    assert "failed" not in [record.kind for record in ward.home.audit.entries()]


def test_a_home_that_cannot_be_read_for_a_while_does_not_end_the_agent(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.join()
    looked = []

    def look() -> None:
        looked.append(1)
        if len(looked) > 2:
            ward.agent.stop.set()
        Agent.look_around(ward.agent)

    monkeypatch.setattr(module_answering(), "LOOK", 0.01)
    monkeypatch.setattr(ward.agent, "look_around", look)
    (ward.home.folder / "paused.json").write_text("{")
    ward.agent.work()
    assert len(looked) == 3


def module_answering() -> Any:
    from medfl.site import answering

    return answering


def test_a_run_that_begins_again_with_the_same_patients_is_written_down_once(ward: Ward) -> None:
    ward.join()
    path = ward.home.studies / "participation.jsonl"
    ward.begin()
    size = path.stat().st_size
    for _ in range(3):
        ward.begin()
    assert path.stat().st_size == size
    ward.home.participation.withdraw(["d"])
    ward.train(1)
    assert [part.rounds for part in ward.home.participation.rounds_of("d")] == [()]
    assert [part.rounds for part in ward.home.participation.rounds_of("a")] == [(1,)]


def test_what_is_old_is_pruned_when_a_run_begins_and_the_run_itself_is_spared(ward: Ward) -> None:
    runs, then = ward.home.work / "runs", time.time() - 100 * 24 * 3600
    for run in ("old", "run1"):
        (runs / run).mkdir(parents=True)
        (runs / run / "round-000001").write_bytes(b"an answer")
        os.utime(runs / run / "round-000001", (then, then))
    ward.join()
    ward.begin("run1")
    assert not (runs / "old" / "round-000001").exists() and (runs / "run1" / "round-000001").exists()
    (told,) = [record.body for record in read_log(ward.home.audit.path)[1] if record.kind == "pruned"]
    assert told["run"] == "old" and "pruned" in why(ward.begin("old"))


def test_what_the_file_says_of_storage_counts_at_once_and_while_it_is_edited_what_it_said(ward: Ward) -> None:
    text = ward.home.site_file.read_text()
    ward.home.site_file.write_text(f"{text}storage: {{quota_gib: 3}}\n")
    assert ward.agent.storage().quota_gib == 3
    ward.home.site_file.write_text(f"{text}storage: {{quota_gib: -")
    assert ward.agent.storage().quota_gib == 3


def test_an_order_that_has_no_room_is_not_trained(ward: Ward) -> None:
    ward.join()
    ward.begin()
    with ward.home.site_file.open("a") as file:
        file.write("storage: {quota_gib: 1e-9}\n")
    assert "storage.quota_gib" in why(ward.train(1)) and Host.used == []
