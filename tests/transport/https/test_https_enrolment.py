"""Enrolment where no HTTP/2 gets through: by the HTTPS port, with what the invitation says and nothing else."""

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys.admission import Applicant
from toys.https_callers import LIMITS, Caller, closed_after, raw
from toys.https_lines import Lead, Pipe
from toys.ports import free_port
from toys.proxies import firewall, squid, tinyproxy
from toys.proxies import run as run

from medfl.errors import InputError, RunError
from medfl.transport.grpc.enrolment import EnrolmentServer
from medfl.transport.https import Fallback
from medfl.transport.https.enrolment import connect, connector
from medfl.transport.https.frames import ENROLMENT, PATH
from medfl.transport.https.tls import client_context
from medfl.transport.limits import RateLimit
from medfl.transport.peers import NotCertified, Unreached
from medfl.transport.protocol.medfl_pb2 import EnrolRequest
from medfl.transport.reception import Reception


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    return Lead(tmp_path)


@pytest.fixture
def reception(lead: Lead) -> Reception:
    return Reception(lead.register, lead.house.note, RateLimit(0.01, 4))


@pytest.fixture
def port(lead: Lead, reception: Reception) -> Iterator[int]:
    server, port = lead.serve(limits=LIMITS, poll=0.3, reception=reception)
    yield port
    server.stop()


@pytest.fixture
def by_grpc(lead: Lead, reception: Reception) -> Iterator[int]:
    server = EnrolmentServer(reception)
    yield server.start("127.0.0.1:0", lead.key, lead.certificate)
    server.stop()


class Guest:
    """Somebody with an invitation."""

    def __init__(self, lead: Lead, name: str = "north") -> None:
        self.lead, self.name, self.applicant = lead, name, Applicant(name)
        self.token, _ = lead.register.invite(name, "site")

    def asks(self, client, token: str | None = None) -> bytes:
        applicant = self.applicant
        proof = applicant.signer.sign(applicant.request)
        found: bytes = client.enrol(token or self.token, applicant.request, applicant.identity, proof)
        return found

    def certified(self, certificate: bytes) -> bool:
        return self.lead.register.admit(certificate).name == self.name

    def body(self, token: str | None = None) -> bytes:
        given = {"token": token or self.token, "request": self.applicant.request, "identity": self.applicant.identity}
        proof = self.applicant.signer.sign(self.applicant.request)
        return EnrolRequest(**given, proof=proof).SerializeToString()


def here(port: int) -> str:
    return f"127.0.0.1:{port}"


def stranger(lead: Lead, port: int) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    return client_context(None, None, lead.ca).wrap_socket(plain, server_hostname="127.0.0.1")


def ask(lead: Lead, port: int, path: str, body: bytes = b"", method: str = "POST") -> int:
    context = client_context(None, None, lead.ca)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    connection.request(method, path, body)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_invitation_is_answered_and_used_up(lead: Lead, port: int):
    guest = Guest(lead)
    certificate = guest.asks(connect(here(port), lead.ca))
    assert guest.certified(certificate)
    # the same keys get the same again, as after a lost answer; other keys get nothing
    assert guest.asks(connect(here(port), lead.ca)) == certificate
    guest.applicant = Applicant("north")
    with pytest.raises(NotCertified, match="ask the study lead for a new invitation"):
        guest.asks(connect(here(port), lead.ca))


def test_the_token_is_told_to_nobody_but_the_coordinator(lead: Lead, port: int, tmp_path: Path):
    """Whoever cannot show a certificate of the invitation's authority gets no byte of the request."""
    (tmp_path / "other").mkdir()
    guest, pipe = Guest(lead), Pipe(port)
    with pytest.raises(Unreached, match="certificate is not good"):
        guest.asks(connect(here(pipe.port), Lead(tmp_path / "other").ca))
    pipe.close()
    assert guest.certified(guest.asks(connect(here(port), lead.ca)))


def test_both_ways_share_one_limit(lead: Lead, port: int, by_grpc: int):
    guest = Guest(lead)
    for number in range(4):
        client = connector(here(port), Fallback.ALWAYS if number % 2 else Fallback.NEVER)(here(by_grpc), lead.ca)
        with pytest.raises(NotCertified, match="new invitation"):
            guest.asks(client, "x" * 43)
    for fallback in (Fallback.ALWAYS, Fallback.NEVER, Fallback.AUTO):
        with pytest.raises(NotCertified, match="too many attempts"):
            guest.asks(connector(here(port), fallback)(here(by_grpc), lead.ca))
    assert [kind for kind, _ in lead.house.notes].count("enrolled") == 0


def test_without_a_certificate_there_is_nothing_else(lead: Lead, port: int):
    for method, path in (("POST", PATH), ("GET", ENROLMENT), ("POST", f"{PATH}/{'a' * 43}/up?after=0"), ("POST", "/")):
        assert ask(lead, port, path, method=method) == 404
    for body in (b"", b"\xff", b"no request"):
        assert ask(lead, port, ENROLMENT, body) == 400
    head = f"POST {ENROLMENT} HTTP/1.1\r\nHost: a\r\nContent-Length: {2**14 + 1}\r\n\r\n"
    with stranger(lead, port) as connection:
        assert raw(connection, head.encode()).startswith(b"HTTP/1.1 413")
    # nor the other way round: who has a certificate enrols nobody with it
    assert Caller(lead, port, "south").ask(ENROLMENT, Guest(lead).body())[0] == 404


def test_a_stranger_has_one_request(lead: Lead, port: int):
    head = f"POST {ENROLMENT} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode()
    with stranger(lead, port) as connection:
        found = raw(connection, head * 3)
    assert found.count(b"HTTP/1.1") == 1 and b"Connection: close" in found


def test_a_stranger_that_says_nothing_is_cut_and_shuts_nobody_out(lead: Lead, port: int):
    peer = Caller(lead, port)
    waiting = [stranger(lead, port) for _ in range(2)]
    begun = time.monotonic()
    assert all(closed_after(connection) < 2.0 for connection in waiting)
    assert peer.line() and time.monotonic() - begun < 4.0


def test_a_certificate_of_another_authority_is_still_no_certificate(lead: Lead, port: int, tmp_path: Path):
    (tmp_path / "other").mkdir()
    bad = Caller(Lead(tmp_path / "other"), port)
    bad.context = client_context(bad.key, bad.certificate, lead.ca)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        bad.ask(ENROLMENT, Guest(lead).body())


def test_a_coordinator_that_enrols_by_grpc_alone_keeps_strangers_out(lead: Lead, by_grpc: int):
    """The fake of the tests above: a port without a reception lets nobody in."""
    server, port = lead.serve(limits=LIMITS)
    guest = Guest(lead)
    with pytest.raises(Unreached):
        guest.asks(connect(here(port), lead.ca))
    server.stop()
    assert guest.certified(guest.asks(connector(here(port))(here(by_grpc), lead.ca)))


def test_inner_faults_are_not_told(lead: Lead, port: int, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> bytes:
        raise RunError.at("/secret/registry.db", "cannot be used: disk I/O error")

    monkeypatch.setattr(lead.register, "enrol", broken)
    with pytest.raises(RunError, match="try again later") as caught:
        Guest(lead).asks(connect(here(port), lead.ca))
    # it may have been certified all the same
    assert "secret" not in str(caught.value) and not isinstance(caught.value, NotCertified)


# ways


def test_what_grpc_reached_is_not_asked_again_by_https(lead: Lead, port: int, by_grpc: int):
    guest = Guest(lead)
    with pytest.raises(NotCertified, match="new invitation"):
        guest.asks(connector(here(port))(here(by_grpc), lead.ca), "x" * 43)
    assert lead.house.reasons and len([kind for kind, _ in lead.house.notes if kind == "enrolment-refused"]) == 2


def test_where_neither_gets_through_both_say_why(lead: Lead):
    first, second = free_port(), free_port()
    with pytest.raises(Unreached) as caught:
        Guest(lead).asks(connector(here(second))(here(first), lead.ca))
    assert [str(first) in fault.where or str(second) in fault.where for fault in caught.value.faults] == [True, True]


def test_always_needs_somewhere_to_call():
    with pytest.raises(InputError, match="offers no HTTPS"):
        connector(None, Fallback.ALWAYS)


def test_a_firewall_that_blocks_http_2_is_got_round(lead: Lead, port: int, by_grpc: int, run, tmp_path: Path):
    grpc, https = (firewall(run, tmp_path, target) for target in (by_grpc, port))
    guest = Guest(lead)
    with pytest.raises(Unreached):
        guest.asks(connector(None)(here(grpc), lead.ca))
    assert guest.certified(guest.asks(connector(here(https))(here(grpc), lead.ca)))


@pytest.mark.parametrize("kind", [tinyproxy, squid])
def test_it_goes_through_a_forward_proxy(
    lead: Lead, port: int, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[..., int]
):
    seen = Pipe(kind(run, tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{seen.port}")
    guest = Guest(lead)
    certificate = guest.asks(connector(here(port), Fallback.ALWAYS)(here(free_port()), lead.ca))
    assert guest.certified(certificate) and seen.passed > 1000
    seen.close()
