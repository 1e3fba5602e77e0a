"""Sites that are lost, slow, wrong or unwilling: each is a failure with its reason, and the round goes on."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.services import Hospital, Office, hello, reply, until

from medfl.learning.messages import Beginning, SiteFailure, TrainOrder, TrainReply
from medfl.transport import post as office
from medfl.transport.base import Delivery
from medfl.transport.line import Line
from medfl.transport.messages import encode_statistics
from medfl.transport.peers import Peer
from medfl.transport.pieces import Piece
from medfl.transport.post import Post, Request
from medfl.transport.protocol.medfl_pb2 import Frame, Have
from medfl.transport.remote import Patience, Remote, Terms
from medfl.update.base import Payload
from medfl.update.wire import parts

NAMES = ("east", "north", "west")
PATIENCE = Patience(start=10.0, lost=0.5, deadline=5.0, exchange=2.0, misses=2)


class Federation:
    """Three sites that joined and began; `odd` is the one that a test makes behave oddly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.office = Office(folder)
        self.remote = self.terms(PATIENCE)
        self.addresses = {name: self.office.admit(name) for name in NAMES}
        self.sites = {name: self.call(name) for name in NAMES}
        assert [info.name for info in self.remote.open()] == list(NAMES)
        self.remote.begin(Beginning("run1", {}))
        self.odd = self.sites["north"]

    def terms(self, patience: Patience) -> Remote:
        terms = Terms({}, frozenset(NAMES), 3, patience)
        return Remote(self.office.post, terms, lambda: pytest.fail("no model is needed"))

    def call(self, name: str) -> Hospital:
        return Hospital(name, self.addresses[name], self.folder / f"site-{name}").start()

    def patience(self, **changed: Any) -> None:
        self.remote._terms = replace(self.remote._terms, patience=replace(PATIENCE, **changed))

    def round(self, number: int) -> dict[str, Delivery]:
        model = Payload("fp32", 2, (b"12345678",))
        orders = [TrainOrder(name, number, {}) for name in NAMES]
        found = list(self.remote.train(orders, model))
        assert [delivery.answer.site for delivery in found] == list(NAMES)
        for name in ("east", "west"):
            assert isinstance(found[NAMES.index(name)].answer, TrainReply), "the others are served"
        return {delivery.answer.site: delivery for delivery in found}

    def failure(self, number: int) -> SiteFailure:
        answer = self.round(number)["north"].answer
        assert isinstance(answer, SiteFailure)
        assert answer.reason.isprintable() and len(answer.reason) <= 400
        return answer

    def close(self) -> None:
        for site in self.sites.values():
            site.end()
        self.office.close()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path)
    yield found
    found.close()


def usual(site: Hospital, odd: Any) -> Any:
    """Odd to train requests only."""
    return lambda header, buffers: odd(header) if header["do"] == "train" else site.usual(header, buffers)


RUBBISH: list[tuple[Any, str]] = [
    (lambda header: [b"rubbish"], "rubbish"),
    (lambda header: [b""], "rubbish"),
    (lambda header: [bytes(200_000)], "rubbish"),
    (lambda header: reply("north", 99), "round 99"),
    (lambda header: reply("east", header["round"]), "answered for east"),
    (lambda header: reply("north", header["round"], cases=-1), "cases"),
    (lambda header: reply("north", header["round"], cases=10**300), "cases"),
    (lambda header: parts({"answer": "failure", "reason": "no GPU"}), "no GPU"),
    (lambda header: parts({"answer": "failure", "reason": "\x1b[31m" + "x" * 100_000}), "xxx"),
    (lambda header: parts({"answer": "failure", "reason": {"a": [1]}}), "a"),
    (
        lambda header: parts({"answer": "error", "faults": [["site north", "out of memory", "buy some"]]}),
        "out of memory",
    ),
    (lambda header: parts({"answer": "error", "faults": [[1, 2, 3, 4], 7, None]}), "without saying why"),
    (lambda header: parts({"answer": "error", "input": True, "faults": "x"}), "without saying why"),
    (lambda header: parts({"answer": ["x"]}), "without saying why"),
]


def test_what_a_site_answers_wrongly_is_its_failure(federation: Federation) -> None:
    federation.patience(misses=99)
    for number, (odd, why) in enumerate(RUBBISH):
        federation.odd.answer = usual(federation.odd, odd)
        found = federation.failure(2 * number + 1)
        assert why in found.reason and not found.late, number
        federation.odd.answer = federation.odd.usual
        assert isinstance(federation.round(2 * number + 2)["north"].answer, TrainReply), "the next round is its own"
    assert federation.odd.called == 1


def test_a_site_that_does_not_answer_is_late_and_its_late_answer_is_not_taken(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    federation.patience(deadline=0.5)
    release = threading.Event()
    federation.odd.answer = usual(
        federation.odd, lambda header: release.wait(10) and reply("north", header["round"], b"late")
    )
    found = federation.failure(1)
    assert found.late and "site north" in found.reason and "before the round's deadline" in found.reason
    release.set()
    until(lambda: "is not awaited any more, and is not taken" in caplog.text)
    federation.odd.answer = federation.odd.usual
    until(lambda: isinstance(federation.round(2)["north"].answer, TrainReply), 5.0)


def test_a_lost_site_is_dropped_pruned_and_let_in_again(federation: Federation) -> None:
    federation.odd.answer = usual(federation.odd, lambda header: None)
    gone = threading.Timer(0.3, federation.odd.stop.set)
    gone.start()
    assert "was lost" in federation.failure(1).reason
    until(lambda: (federation.office.post.away("north") or 0) > 0.5)
    assert "away" in federation.failure(2).reason
    assert federation.office.state("north") == "pruned"
    assert "has not come back" in federation.failure(3).reason
    federation.odd.end()
    federation.sites["north"] = federation.call("north")
    until(lambda: federation.office.state("north") == "ready")
    assert isinstance(federation.round(4)["north"].answer, TrainReply)


def test_a_site_that_answered_and_starts_anew_is_not_asked_again(federation: Federation) -> None:
    """While the others still train; nor what its process before was greeted with and did not take."""
    release = threading.Event()
    late = federation.sites["west"]
    late.answer = usual(late, lambda header: release.wait(20) and reply("west", header["round"]))
    orders = [TrainOrder(name, 1, {}) for name in ("north", "west")]
    deliveries = federation.remote.train(orders, Payload("fp32", 2, (b"12345678",)))
    assert isinstance(next(deliveries).answer, TrainReply)
    done = threading.Thread(target=lambda: list(deliveries))
    done.start()
    federation.odd.end()
    site = federation.sites["north"] = federation.call("north")
    until(lambda: federation.office.state("north") == "ready" and federation.office.post.awaits("north") == 0)
    release.set()
    done.join(20)
    assert site.came == ["join", "begin"]


def test_a_greeting_that_a_process_did_not_take_is_not_for_the_next_one(tmp_path: Path) -> None:
    post = Post("lead", tmp_path / "spool", lambda site, state, detail: None)
    post.greet(Request.of("join", {"study": {}}))
    peer = Peer("east", "site", "f" * 64, "e" * 64)
    for session in ("1" * 32, "2" * 32, "3" * 32):
        line = post.welcome(peer, hello("east", session=session))
    opened = [frame.open.id for frame in line.ready(0.0, 2**20) if frame.WhichOneof("kind") == "open"]
    assert opened == [f"join-{'3' * 16}-0"]


def test_large_messages_to_all_sites_take_turns_and_a_lost_site_gives_its_turn_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office, "_AT_ONCE", 1)
    monkeypatch.setattr(office, "_TURN", 100.0)
    post = Post("lead", tmp_path / "spool", lambda site, state, detail: None)
    peers = [Peer(name, "site", digit * 64, digit * 64) for name, digit in (("east", "e"), ("west", "a"))]
    lines = [post.welcome(peer, hello(peer.name)) for peer in peers]
    tickets = [post.post(peer.name, Request.of("train", {"site": peer.name}, [bytes(200_000)])) for peer in peers]

    def pieces(line: Line) -> int:
        return sum(isinstance(frame, Piece) for frame in line.ready(0.0, 2**20))

    for peer, line, ticket in zip(peers, lines, tickets, strict=True):
        line.ready(0.0, 2**20)
        post.take(peer, line, Frame(have=Have(id=ticket.id, offset=0)))
    assert pieces(lines[0]) and not pieces(lines[1])
    lines[0].end()
    post.gone(peers[0], lines[0], "lost")
    assert lines[1]._sending, "it is told: it may be asleep"
    assert pieces(lines[1])


def test_a_site_that_joins_with_rubbish_takes_no_part(federation: Federation) -> None:
    federation.odd.end()
    site = Hospital("north", federation.addresses["north"], federation.folder / "again")
    site.answer = lambda header, buffers: parts({"answer": "open", "info": {"name": "north", "cases": {"train": -1}}})
    federation.sites["north"] = site.start()
    until(lambda: federation.office.state("north") == "rejected")
    assert federation.failure(1).reason and site.called == 1


@pytest.mark.parametrize("identity", ["zz", "", "ab" * 32])
def test_a_site_signs_with_the_key_that_its_certificate_names(identity: str, federation: Federation) -> None:
    """Its key goes to all sites: one that is none would end the run, another's would be believed."""
    federation.odd.end()
    site = Hospital("north", federation.addresses["north"], federation.folder / "again")
    site.identity = identity
    federation.sites["north"] = site.start()
    until(lambda: federation.office.state("north") == "rejected")
    assert "another signing key" in federation.failure(1).reason and site.called == 1


def test_a_key_holder_has_no_images(federation: Federation) -> None:
    address = federation.office.admit("keys", "key-holder")
    federation.sites["keys"] = Hospital("keys", address, federation.folder / "keys").start()
    until(lambda: federation.office.state("keys") == "rejected")
    assert [info.name for info in federation.remote.gather(1)] == list(NAMES)


@pytest.mark.parametrize(
    "heads", [[], "x", {"north": 7}, {"north": {"head": 1}}, {"north": {"head": "", "kept": "x" * 1000}}]
)
def test_a_site_that_begins_with_rubbish_takes_no_part(heads: Any, federation: Federation) -> None:
    federation.odd.end()
    site = Hospital("north", federation.addresses["north"], federation.folder / "again")
    site.answer = lambda header, buffers: (
        parts({"answer": "begun", "heads": heads}) if header["do"] == "begin" else site.usual(header, buffers)
    )
    federation.sites["north"] = site.start()
    until(lambda: federation.office.state("north") in ("rejected", "ready") and site.came[-1:] == ["begin"])
    federation.round(1) if isinstance(heads, (list, str)) else federation.failure(1)
    assert site.called == 1


def test_statistics_that_are_rubbish_are_left_out(federation: Federation) -> None:
    good = parts({"answer": "statistics"}, [encode_statistics({"loss": np.array([1.0, 2.0])})])
    for site in federation.sites.values():
        site.answer = lambda header, buffers: good
    for odd in (
        [b"x"],
        parts({"answer": "statistics"}),
        parts({"answer": "statistics"}, [b"x"]),
        parts({"answer": "error"}),
    ):
        federation.odd.answer = lambda header, buffers, odd=odd: odd  # type: ignore[misc]
        model = Payload("fp32", 2, (os.urandom(8),))
        found = list(federation.remote.evaluate([(name, "val") for name in NAMES], model))
        assert [evaluation.site for evaluation in found] == ["east", "west"]
