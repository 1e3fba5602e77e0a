"""Who is not let in, who is thrown out, and what they cannot do to the others."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from toys.admission import Applicant
from toys.services import Caller, Hospital, Office, hello, reply, until

from medfl.coordinator.authority import Authority
from medfl.errors import RunError
from medfl.keys import new_tls_key, to_pem
from medfl.transport.calling import Refused
from medfl.transport.certificates import Subject
from medfl.transport.grpc.enrolment import EnrolmentServer, connect
from medfl.transport.limits import RateLimit
from medfl.transport.mail import Outgoing
from medfl.transport.post import Request
from medfl.transport.protocol.medfl_pb2 import Beat, Frame, Open
from medfl.transport.reception import Reception
from medfl.update.wire import parts


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path)
    yield found
    found.close()


@pytest.fixture
def callers() -> Iterator[list[Any]]:
    """What is ended when the test is over."""
    found: list[Any] = []
    yield found
    for each in found:
        each.end()


def status(caller: Caller) -> grpc.StatusCode:
    until(caller.over.is_set)
    return caller.error.code() if caller.error is not None else grpc.StatusCode.OK


def test_without_a_certificate_of_the_authority_nobody_gets_as_far_as_a_greeting(
    office: Office, callers: list[Any]
) -> None:
    good = office.admit("east")
    other, key = Authority.create("lead"), new_tls_key()
    subject = Subject("east", "site", Applicant("east").identity)
    forged = _pem(other.issue(key.public_key(), subject))
    for address in (
        replace(good, key=None, certificate=None),
        replace(good, key=to_pem(key), certificate=forged),
    ):
        caller = Caller(address, hello("east"))
        callers.append(caller)
        assert status(caller) == grpc.StatusCode.UNAVAILABLE and not caller.heard
    assert office.post.states() == {}
    insecure = grpc.insecure_channel(good.target)
    with pytest.raises(grpc.RpcError):
        insecure.unary_unary("/medfl.v1.Renewal/Renew")(b"", timeout=5)
    insecure.close()


def test_a_certificate_that_the_register_does_not_know_is_not_admitted(office: Office, callers: list[Any]) -> None:
    good, key = office.admit("east"), new_tls_key()
    stray = office.authority.issue(key.public_key(), Subject("east", "site", Applicant("east").identity))
    caller = Caller(replace(good, key=to_pem(key), certificate=_pem(stray)), hello("east"))
    callers.append(caller)
    assert status(caller) == grpc.StatusCode.UNAUTHENTICATED and not caller.heard


def test_an_expired_certificate_does_not_pass_tls(office: Office, callers: list[Any]) -> None:
    good, key = office.admit("east"), new_tls_key()
    old = office.authority.issue(
        key.public_key(), Subject("east", "site", Applicant("east").identity), life=timedelta(seconds=-60)
    )
    caller = Caller(replace(good, key=to_pem(key), certificate=_pem(old)), hello("east"))
    callers.append(caller)
    assert status(caller) == grpc.StatusCode.UNAVAILABLE and not caller.heard


def test_a_certificate_that_ends_while_its_stream_is_open_ends_the_stream(
    office: Office, callers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(office.admit("east"), hello("east"))
    callers.append(caller)
    until(lambda: office.there("east"))
    later = office.register._clock() + timedelta(days=91)
    monkeypatch.setattr(office.register, "_clock", lambda: later)
    assert until(lambda: not office.there("east"), 5.0) < 2.0


@pytest.mark.parametrize("talks", [True, False])
def test_a_revocation_ends_an_open_stream_within_two_seconds(talks: bool, office: Office, callers: list[Any]) -> None:
    caller = Caller(office.admit("east"), hello("east"))
    callers.append(caller)
    until(lambda: office.there("east"))
    office.register.revoke("east")
    begun = time.monotonic()
    while office.there("east"):
        assert time.monotonic() - begun < 2.0, "a revoked site is still there"
        if talks:
            caller.say(Frame(beat=Beat(state="ready")))
        time.sleep(0.05)
    until(caller.over.is_set, 5.0)
    assert caller.heard[-1].goodbye.again is False
    again = Caller(caller.address, hello("east"))
    callers.append(again)
    assert status(again) == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("role", "changed", "why"),
    [
        ("site", {"name": "west"}, "calls itself"),
        ("site", {"name": "x" * 200_000}, "calls itself"),
        ("site", {"name": "\x1b[2Jwest\u202e"}, "calls itself"),
        ("auditor", {}, "auditor"),
        ("site", {"versions": [2, 7]}, "protocol"),
        ("site", {"versions": [9] * 200_000}, "protocol"),
        ("site", {"session": ""}, "session"),
        ("site", {"session": "../../x" * 4}, "session"),
        ("site", {"audit": "x" * 200_000}, "SHA-256"),
        ("site", {"kept": "\n"}, "SHA-256"),
    ],
)
def test_a_greeting_that_is_not_right_is_answered_and_noted_in_few_plain_words(
    role: str, changed: dict[str, Any], why: str, office: Office, callers: list[Any]
) -> None:
    caller = Caller(office.admit("east", role), hello(**{"name": "east", **changed}))
    callers.append(caller)
    until(caller.over.is_set)
    (said,) = caller.heard
    assert why in said.goodbye.reason and not said.goodbye.again
    (noted,) = office.noted("refused")
    assert noted["reason"].isprintable() and len(noted["reason"]) < 400
    assert office.post.states() == {}


def test_a_stream_that_begins_with_something_else_or_nothing(
    office: Office, callers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfl.transport.grpc.server._GREETING", 0.3)
    address = office.admit("east")
    for frames in ((Frame(open=Open(id="a")),), (Frame(),), (b"\xff\xff\xff",), ()):
        caller = Caller(address, *frames)
        callers.append(caller)
        until(caller.over.is_set, 3.0)
    assert office.post.states() == {}


def test_one_peer_cannot_take_all_streams(office: Office, callers: list[Any], tmp_path: Path) -> None:
    greedy, good = office.admit("greedy"), office.admit("good")
    callers += [Caller(greedy) for _ in range(30)]
    until(lambda: sum(caller.over.is_set() for caller in callers) >= 26)
    site = Hospital("good", good, tmp_path / "good").start()
    callers.append(site)
    assert until(lambda: office.there("good"), 3.0) < 2.0


def test_of_two_processes_with_one_certificate_the_newer_wins_and_there_is_no_storm(
    office: Office, callers: list[Any], tmp_path: Path
) -> None:
    address = office.admit("east")
    older = Hospital("east", address, tmp_path / "older").start()
    callers.append(older)
    until(lambda: office.there("east"))
    newer = Hospital("east", address, tmp_path / "newer").start()
    callers.append(newer)
    until(lambda: older.error)
    assert isinstance(older.error, Refused) and "took its place" in str(older.error)
    order = {"round": 1, "site": "east", "values": {}}
    ticket = office.post.post("east", Request.of("train", order, [bytes(400_000)]))
    until(lambda: ticket.settled)
    time.sleep(1.0)
    assert (older.called, newer.called) == (1, 1)
    assert older.came == [] and newer.came == ["train"], "the update is made once"


def test_an_answer_that_is_replayed_is_not_taken(office: Office, callers: list[Any], tmp_path: Path) -> None:
    site = Hospital("east", office.admit("east"), tmp_path / "east").start()
    callers.append(site)
    until(lambda: office.there("east"))
    ask = lambda n: office.post.post("east", Request.of("train", {"round": n, "site": "east"}, [b"1234"]))  # noqa: E731
    first = ask(1)
    until(lambda: first.settled)
    kept = bytes(first.answer or b"")
    for _ in range(2):
        site.box.send(Outgoing(first.id, reply("east", 1, b"evil")))
        until(site.box.idle)
        assert first.answer == kept
        office.post.drop([first], "the round is over")
    site.answer = lambda header, buffers: None
    second = ask(2)
    site.box.send(Outgoing(first.id, reply("east", 1, b"evil")))
    until(site.box.idle)
    assert not second.settled and second.id != first.id and site.called == 1


def test_an_answer_for_another_site_is_not_taken(office: Office, callers: list[Any], tmp_path: Path) -> None:
    east = Hospital("east", office.admit("east"), tmp_path / "east", lambda header, buffers: None).start()
    west = Hospital("west", office.admit("west"), tmp_path / "west").start()
    callers += [east, west]
    until(lambda: office.there("east") and office.there("west"))
    ticket = office.post.post("east", Request.of("train", {"round": 1, "site": "east"}, [b"1234"]))
    until(lambda: east.came)
    for size in (4, 400_000):
        west.box.send(Outgoing(ticket.id, reply("east", 1, bytes(size))))
        until(west.box.idle)
    assert not ticket.settled and west.called == 1
    east.box.send(Outgoing(ticket.id, reply("east", 1)))
    until(lambda: ticket.settled)


def test_a_flood_of_enrolments_is_slowed_down_and_disturbs_no_site(
    office: Office, callers: list[Any], tmp_path: Path
) -> None:
    server = EnrolmentServer(Reception(office.register, office.note, RateLimit(0.5, 20)))
    port = server.start("127.0.0.1:0", office.key, office.pem)
    site = Hospital("east", office.admit("east"), tmp_path / "east").start()
    callers.append(site)
    until(lambda: office.there("east"))
    said = []
    try:
        for number in range(60):
            client = connect(f"127.0.0.1:{port}", office.authority.pem)
            with pytest.raises(RunError) as caught:
                client.enrol(f"guess {number}", b"request", "00", b"proof")
            said.append(str(caught.value))
        begun = time.monotonic()
        ticket = office.post.post("east", Request.of("echo", {}, [bytes(2**20)]))
        until(lambda: ticket.settled)
        assert time.monotonic() - begun < 2.0 and site.called == 1
    finally:
        server.stop()
    assert sum("too many" in text for text in said) >= 35
    assert len(office.noted("enrolment-refused")) <= 2 * 25


def test_inner_faults_are_not_told_to_strangers(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RunError.at("/secret/registry.db", "cannot be used: disk I/O error")

    monkeypatch.setattr(office.register, "enrol", broken)
    server = EnrolmentServer(Reception(office.register, office.note, RateLimit(0.5, 20)))
    port = server.start("127.0.0.1:0", office.key, office.pem)
    with pytest.raises(RunError) as caught:
        connect(f"127.0.0.1:{port}", office.authority.pem).enrol("token", b"", "", b"")
    server.stop()
    assert "secret" not in str(caught.value) and "try again later" in str(caught.value)


def test_a_coordinator_that_cannot_write_sends_nobody_away_for_good(
    office: Office, callers: list[Any], tmp_path: Path
) -> None:
    def broken(*_: str) -> tuple[str, str]:
        raise OSError(28, "No space left on device")

    office.post._witness, working = broken, office.post._witness
    site = Hospital("east", office.admit("east"), tmp_path / "east").start()
    callers.append(site)
    until(lambda: site.called >= 2)
    assert site.error is None
    office.post._witness = working
    until(lambda: office.there("east"))


def test_strikes_are_for_the_striker(office: Office, callers: list[Any], tmp_path: Path) -> None:
    """A peer that floods is cut, and noted a few times; the transfer of another goes on."""
    bad, good = office.admit("bad"), Hospital("good", office.admit("good"), tmp_path / "good").start()
    callers.append(good)
    until(lambda: office.there("good"))
    ticket = office.post.post("good", Request.of("echo", {}, [bytes(20 * 2**20)]))
    for _ in range(20):
        caller = Caller(bad, hello("bad"), *(Frame(open=Open(id=f"a{n}", size=10)) for n in range(200)))
        callers.append(caller)
        until(caller.over.is_set)
    until(lambda: ticket.settled)
    assert ticket.answer is not None and good.called == 1
    assert 1 <= len(office.noted("protocol")) <= 10


def _pem(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(Encoding.PEM))


def test_a_message_may_not_be_larger_than_was_said(office: Office, callers: list[Any], tmp_path: Path) -> None:
    site = Hospital("east", office.admit("east"), tmp_path / "east", lambda header, buffers: None).start()
    callers.append(site)
    until(lambda: office.there("east"))
    ticket = office.post.post("east", Request.of("train", {"round": 1}, [b"1234"]))
    until(lambda: site.came and site.line)
    assert site.line is not None
    with site.line._changed:
        site.line.control.append(Frame(open=Open(id=ticket.id, size=10 * 2**30)))
        site.line._changed.notify_all()
    until(lambda: ticket.settled)
    assert "announced an answer of 10737418240 bytes" in ticket.failure
    assert site.called == 1 and not list((tmp_path / "spool" / "east").iterdir())
    after = office.post.post("east", Request.of("train", {"round": 2}, [b"1234"]))
    site.box.send(Outgoing(after.id, parts({})))
    until(lambda: after.settled)
