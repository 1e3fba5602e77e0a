"""Lines by HTTPS: what one end sends arrives at the other once and whole, whatever happens in between."""

import os
import threading
import time
from pathlib import Path

import pytest
from toys.https_lines import Lead, Pipe, Stub, until
from toys.ports import free_port

from medfl.errors import RunError
from medfl.transport.calling import Refused
from medfl.transport.https.client import hold_https
from medfl.transport.https.server import HttpsServer
from medfl.transport.post import Request

LARGE = 30 * 2**20


@pytest.fixture
def lead(tmp_path: Path):
    return Lead(tmp_path)


@pytest.fixture
def served(lead: Lead):
    server, port = lead.serve(lost=1.0)
    yield server, port
    server.stop()


def stub_of(lead: Lead, tmp_path: Path, name: str = "north") -> Stub:
    return Stub(lead, name, tmp_path / "sites")


def finish(stub: Stub, thread: threading.Thread) -> None:
    stub.stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_messages_of_all_sizes_go_both_ways(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, served[1])
    until(lambda: lead.here("north"))
    payloads = [os.urandom(size) for size in (0, 1, 2**16, 2**20 + 1, LARGE)]
    tickets = [lead.ask("north", "train", payload) for payload in payloads]
    until(lambda: all(ticket.settled for ticket in tickets), 60)
    for ticket, payload in zip(tickets, payloads, strict=True):
        assert bytes(ticket.answer or b"").endswith(payload)
        assert ticket.up_bytes >= len(payload) and ticket.down_bytes >= len(payload)
    assert sorted(stub.got) == sorted(ticket.id for ticket in tickets)
    assert stub.welcomes[0].coordinator == "lead"
    finish(stub, thread)


def test_a_small_message_overtakes_a_large_one(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, served[1])
    until(lambda: lead.here("north"))
    large = lead.ask("north", "train", os.urandom(LARGE))
    small = lead.ask("north", "evaluate", b"quick")
    until(lambda: small.settled)
    assert not large.settled
    until(lambda: large.settled, 60)
    finish(stub, thread)


def test_the_greeting_is_answered_and_presence_is_told(lead: Lead, served, tmp_path: Path):
    lead.post.greet(Request.of("join", {"study": {}}))
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, served[1])
    until(lambda: lead.greeted)
    assert lead.greeted[0].site == "north"
    until(lambda: ("north", "ready", "") in lead.presence)
    finish(stub, thread)
    # a site that stops says so: it is not waited for
    until(lambda: not lead.here("north"), 2)


def test_a_transfer_that_was_cut_goes_on_at_the_missing_byte(lead: Lead, served, tmp_path: Path):
    pipe, stub = Pipe(served[1]), stub_of(lead, tmp_path)
    thread = stub.start(hold_https, pipe.port)
    until(lambda: lead.here("north"))
    pipe.cut_after = pipe.passed + LARGE // 2
    ticket = lead.ask("north", "train", os.urandom(LARGE))
    until(lambda: ticket.settled, 60)
    assert pipe.cut_after is None
    # both ways, and not half of one way again
    assert pipe.passed < 2 * LARGE + LARGE // 4
    assert len(stub.got) == 1
    finish(stub, thread)
    pipe.close()


def test_a_line_that_died_is_made_anew_and_its_transfers_go_on(lead: Lead, served, tmp_path: Path):
    pipe, stub = Pipe(served[1]), stub_of(lead, tmp_path)
    thread = stub.start(hold_https, pipe.port, silence=0.5)
    until(lambda: lead.here("north"))
    pipe.cut_after, pipe.shut = pipe.passed + LARGE // 2, True
    ticket = lead.ask("north", "train", os.urandom(LARGE))
    until(lambda: not lead.here("north"))
    assert not ticket.settled and not stub.got
    pipe.open = True
    until(lambda: ticket.settled, 60)
    assert len(stub.welcomes) == 2
    # counted over both lines: not half of it again
    assert stub.came[ticket.id] < LARGE + LARGE // 4
    finish(stub, thread)
    pipe.close()


@pytest.mark.parametrize("every", [2, 3])
def test_lost_answers_lose_and_double_nothing(lead: Lead, served, tmp_path: Path, every: int):
    pipe, stub = Pipe(served[1]), stub_of(lead, tmp_path)
    pipe.drop = lambda answer: answer % every == 0
    thread = stub.start(hold_https, pipe.port)
    until(lambda: lead.here("north"))
    tickets = [lead.ask("north", "train", os.urandom(size)) for size in (10, 3 * 2**20, 10, 2**20, 100)]
    until(lambda: all(ticket.settled for ticket in tickets), 60)
    assert pipe.dropped >= 3
    assert sorted(stub.got) == sorted(ticket.id for ticket in tickets)
    assert "protocol" not in [kind for kind, _ in lead.house.notes]
    finish(stub, thread)
    pipe.close()


class Forgetful(HttpsServer):
    """A fake that takes a repeated request's frames once more."""

    def _up(self, held, after, body):
        held.received = min(held.received, after)
        return super()._up(held, after, body)


def test_the_fake_that_takes_frames_twice_is_noticed(lead: Lead, tmp_path: Path):
    server = Forgetful(lead.post, lead.register, lead.house.note)
    port = server.start("127.0.0.1:0", lead.key, lead.certificate, lead.ca)
    pipe, stub = Pipe(port), stub_of(lead, tmp_path)
    thread = stub.start(hold_https, pipe.port)
    until(lambda: lead.here("north"))
    pipe.drop = lambda answer: answer % 3 == 0
    ticket = lead.ask("north", "train", os.urandom(8 * 2**20))
    until(lambda: ticket.settled or "protocol" in [kind for kind, _ in lead.house.notes], 60)
    assert "protocol" in [kind for kind, _ in lead.house.notes]
    finish(stub, thread)
    server.stop()
    pipe.close()


def test_the_coordinator_comes_back(lead: Lead, tmp_path: Path):
    port = free_port()
    server, _ = lead.serve(port)
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, port)
    until(lambda: lead.here("north"))
    lead.post.close("the coordinator stops", over=False)
    server.stop()
    assert not lead.here("north")
    again, _ = lead.serve(port)
    until(lambda: lead.here("north"))
    assert lead.ask("north", "train", b"x").failure == ""
    finish(stub, thread)
    again.stop()


def test_a_run_that_is_over_ends_its_sites(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, served[1])
    until(lambda: lead.here("north"))
    lead.post.close("the run is over", over=True)
    thread.join(5)
    assert not thread.is_alive() and stub.stop.is_set()


def test_a_site_that_vanishes_is_lost_soon(lead: Lead, served, tmp_path: Path):
    pipe, stub = Pipe(served[1]), stub_of(lead, tmp_path)
    thread = stub.start(hold_https, pipe.port)
    until(lambda: lead.here("north"))
    pipe.open = False
    pipe.cut()
    begun = time.monotonic()
    until(lambda: not lead.here("north"), 10)
    assert time.monotonic() - begun < 4
    finish(stub, thread)
    pipe.close()


def test_a_line_that_is_silent_is_dead(lead: Lead, tmp_path: Path):
    server, port = lead.serve(silence=1.0, poll=0.2)
    pipe, stub = Pipe(port), stub_of(lead, tmp_path)
    thread = stub.start(hold_https, pipe.port)
    until(lambda: lead.here("north"))
    # connections stay open, and nothing comes through any more
    release = threading.Event()
    pipe.drop = lambda answer: release.wait(20)
    until(lambda: not lead.here("north"), 6)
    assert any("nothing was heard" in detail for _, state, detail in lead.presence if state == "lost")
    release.set()
    finish(stub, thread)
    server.stop()
    pipe.close()


def test_a_new_line_takes_the_place_of_the_one_before(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    first, second = threading.Event(), threading.Event()
    arguments = (stub.address(served[1]), stub.hello, stub.box, stub.welcomed)
    threads = [threading.Thread(target=hold_https, args=(*arguments, stop), daemon=True) for stop in (first, second)]
    threads[0].start()
    until(lambda: lead.here("north"))
    threads[1].start()
    until(lambda: len(stub.welcomes) >= 2)
    first.set()
    threads[0].join(5)
    ticket = lead.ask("north", "train", b"x")
    until(lambda: ticket.settled)
    second.set()
    threads[1].join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_a_renewed_certificate_is_used_without_losing_a_message(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    thread = stub.start(hold_https, served[1])
    # the coordinator knows of a line before the site does, and one that the site never knew of is not counted
    until(lambda: stub.welcomes)
    peer = lead.register.admit(stub.certificate)
    stub.certificate = lead.register.renew(peer, stub.applicant.request)
    ticket = lead.ask("north", "train", b"x")
    until(lambda: ticket.settled)
    until(lambda: len(stub.welcomes) >= 2, 30)
    assert not stub.stop.is_set()
    finish(stub, thread)


def test_a_site_of_another_name_is_refused_for_good(lead: Lead, served, tmp_path: Path):
    stub = stub_of(lead, tmp_path)
    stub.name = "south"
    arguments = (stub.address(served[1]), stub.hello, stub.box, stub.welcomed, stub.stop)
    with pytest.raises(Refused, match="its certificate says 'north'"):
        hold_https(*arguments)
    assert ("refused", "north") in [(kind, detail.get("peer")) for kind, detail in lead.house.notes]


def test_a_revocation_ends_a_line_that_waits(lead: Lead, served, tmp_path: Path):
    stub, caught = stub_of(lead, tmp_path), list[RunError]()

    def hold(*arguments) -> None:
        try:
            hold_https(*arguments)
        except RunError as error:
            caught.append(error)

    thread = stub.start(hold, served[1])
    until(lambda: lead.here("north"))
    lead.register.revoke("north")
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(caught[0], Refused) and "not admitted any more" in str(caught[0])
    assert not lead.here("north")
