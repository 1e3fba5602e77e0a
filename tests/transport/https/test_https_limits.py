"""What the HTTPS port lets nobody do: strangers, former peers, peers with another's token, slow and large requests."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toys.https_callers import LIMITS, SESSION, Caller, closed_after, raw
from toys.https_lines import Lead, Stub, until

from medfl.errors import RunError
from medfl.keys import new_tls_key, to_pem
from medfl.transport.certificates import signing_request
from medfl.transport.https import http1
from medfl.transport.https.client import hold_https
from medfl.transport.https.enrolment import connect
from medfl.transport.https.frames import PATH, RENEWAL, TOKEN_HEADER, decode, encode
from medfl.transport.https.tls import client_context
from medfl.transport.mail import MAX_FRAME
from medfl.transport.peers import Peer
from medfl.transport.protocol.medfl_pb2 import Beat, Chunk, Frame, Hello, Open


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    return Lead(tmp_path)


@pytest.fixture
def port(lead: Lead) -> Iterator[int]:
    server, port = lead.serve(limits=LIMITS, poll=0.3)
    yield port
    server.stop()


# who


def test_a_stranger_without_a_certificate_gets_no_answer(lead: Lead, port: int):
    context = ssl.create_default_context(cadata=lead.ca.decode())
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
        connection.request("POST", PATH, b"")
        connection.getresponse()


def test_a_certificate_of_another_authority_gets_no_answer(lead: Lead, port: int, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Lead(tmp_path / "other")
    stranger = Caller(other, port)
    stranger.context = client_context(stranger.key, stranger.certificate, lead.ca)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        stranger.ask(PATH, stranger.hello())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_not_spoken(lead: Lead, port: int):
    peer = Caller(lead, port)
    peer.context.set_ciphers("DEFAULT@SECLEVEL=0")
    peer.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with peer.connect() as connection:
        assert connection.version() == "TLSv1.2"
    peer.context.minimum_version = ssl.TLSVersion.TLSv1
    peer.context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        peer.connect()


def test_a_client_does_not_talk_to_a_server_of_another_authority(port: int, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Lead(tmp_path / "other")
    stub = Stub(other, "north", tmp_path / "sites")
    thread = stub.start(hold_https, port)
    until(lambda: stub.away)
    assert "certificate is not good" in stub.away[0]
    stub.stop.set()
    thread.join(5)


def test_only_http_1_is_agreed_on(lead: Lead, port: int):
    peer = Caller(lead, port)
    peer.context.set_alpn_protocols(["h2", "http/1.1"])
    with peer.connect() as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"


def test_a_revoked_peer_is_refused_in_the_middle_of_its_line(lead: Lead, port: int):
    peer = Caller(lead, port)
    line = peer.line()
    beat = encode([Frame(beat=Beat(state="ready")).SerializeToString()])
    assert peer.ask(f"{line}/up?after=0", beat)[0] == 200
    lead.register.revoke("north")
    status, body, _ = peer.ask(f"{line}/up?after=1", beat)
    assert status == 403
    (frame,) = decode(body)
    assert not frame.goodbye.again and "not admitted any more" in frame.goodbye.reason
    assert peer.ask(PATH, peer.hello())[:2] == (403, b"")
    assert not lead.here("north")
    assert "refused" in [kind for kind, _ in lead.house.notes]


def test_tokens_are_long_and_good_for_their_own_peer_only(lead: Lead, port: int):
    north, south = Caller(lead, port), Caller(lead, port, "south")
    line = north.line()
    token = line.rpartition("/")[2]
    assert len(token) == 43 and north.line().rpartition("/")[2] != token
    line = north.line()
    assert south.ask(f"{line}/down?after=0")[0] == 404
    assert south.ask(f"{line}/up?after=0", encode([Frame(beat=Beat(state="gone")).SerializeToString()]))[0] == 404
    wrong = f"{PATH}/{'A' * 43}"
    # whether there is such a line is not told
    assert south.ask(f"{line}/down?after=0")[1:] == south.ask(f"{wrong}/down?after=0")[1:]
    assert lead.post.states()["north"][0] == "connected"
    assert north.ask(f"{line}/down?after=1")[0] == 200


def test_a_token_does_not_outlive_its_certificate(lead: Lead, port: int):
    north = Caller(lead, port)
    line = north.line()
    fresh = lead.register.renew(lead.register.admit(north.certificate), north.applicant.request)
    north.context = client_context(north.key, fresh, lead.ca)
    assert north.ask(f"{line}/down?after=1")[0] == 404


# what


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", PATH, 405),
        ("POST", "/", 404),
        ("POST", f"{PATH}/", 404),
        ("POST", f"{PATH}/short/up?after=0", 404),
        ("POST", f"{PATH}/{'A' * 43}/up", 404),
        ("POST", f"{PATH}/{'A' * 43}/up?after=-1", 404),
        ("POST", f"{PATH}/{'A' * 43}/../up?after=1", 404),
        ("DELETE", PATH, 405),
        ("GET", "/favicon.ico", 404),
    ],
)
def test_there_is_nothing_else_there(lead: Lead, port: int, method: str, path: str, status: int):
    found, body, fields = Caller(lead, port).ask(path, method=method)
    assert (found, body) == (status, b"")
    assert not fields.keys() & {"Server", "Date", "X-Powered-By"}


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"POST /v1/line HTTP/1.1\r\nHost: a\r\nContent-Length: 4194305\r\n\r\n", b"413"),
        (b"POST /v1/line HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /v1/line HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n", b"431"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
    ],
)
def test_what_is_malformed_or_too_large_is_refused_and_closed(lead: Lead, port: int, request_: bytes, status: bytes):
    with Caller(lead, port).connect() as connection:
        answer = raw(connection, request_)
    assert answer.startswith(b"HTTP/1.1 " + status) and b"Connection: close" in answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x05abc",
        encode([b"\xff\xff\xff"]),
        encode([Frame(beat=Beat()).SerializeToString()]),
        encode([Frame(hello=Hello(name="north")).SerializeToString()] * 2),
        encode([Frame(hello=Hello(name="north", versions=[99], session=SESSION)).SerializeToString()]),
    ],
)
def test_a_greeting_that_is_none_opens_no_line(lead: Lead, port: int, body: bytes):
    status, answer, fields = Caller(lead, port).ask(PATH, body)
    assert status == 200 and TOKEN_HEADER not in fields
    assert decode(answer)[0].WhichOneof("kind") == "goodbye"
    assert not lead.here("north")


@pytest.mark.parametrize(
    "query, frames",
    [
        ("up?after=5", [Frame(beat=Beat())]),
        ("down?after=7", []),
        ("up?after=0", [Frame(hello=Hello())]),
        ("up?after=0", [Frame(open=Open(id="../etc", size=3, data=b"abc"))]),
        ("up?after=0", [Frame(chunk=Chunk(id="m", data=bytes(MAX_FRAME)))]),
    ],
)
def test_who_breaks_the_protocol_loses_its_line_and_no_more(lead: Lead, port: int, query: str, frames: list[Frame]):
    peer = Caller(lead, port)
    line = peer.line()
    assert peer.ask(f"{line}/{query}", encode(frame.SerializeToString() for frame in frames))[0] == 410
    assert "protocol" in [kind for kind, _ in lead.house.notes]
    until(lambda: not lead.here("north"))
    assert peer.line() != line and lead.here("north")


# how long


def test_a_handshake_that_does_not_come_is_cut(port: int):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert closed_after(connection) < 3


@pytest.mark.parametrize("start", [b"", b"POST /v1/line HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"])
def test_a_byte_now_and_then_does_not_keep_a_request_open(lead: Lead, port: int, start: bytes):
    with Caller(lead, port).connect() as connection:
        connection.sendall(start)
        begun, cut = time.monotonic(), False
        while not cut and time.monotonic() - begun < 8:
            try:
                connection.sendall(b"P")
                connection.settimeout(0.2)
                cut = connection.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                cut = True
        assert cut and time.monotonic() - begun < 5


def test_an_idle_connection_is_closed(lead: Lead, port: int):
    with Caller(lead, port).connect() as connection:
        assert closed_after(connection) < 6


def test_strangers_do_not_shut_out_peers_for_long(lead: Lead, port: int):
    peer = Caller(lead, port)
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    try:
        until(lambda: _answers(peer), 6)
    finally:
        for connection in waiting:
            connection.close()


def _answers(peer: Caller) -> bool:
    try:
        return peer.ask("/")[0] == 404
    except OSError:
        return False


def test_a_peer_has_few_connections_and_the_newest_count(lead: Lead, port: int):
    peer = Caller(lead, port)
    held = [peer.connect() for _ in range(LIMITS.each)]
    assert peer.ask("/")[0] == 404
    assert closed_after(held[0]) < 1
    for connection in held:
        connection.close()


def test_the_audit_log_is_not_filled(lead: Lead, port: int):
    peer = Caller(lead, port)
    for _ in range(30):
        peer.ask(PATH, b"")
    assert 5 <= [kind for kind, _ in lead.house.notes].count("refused") <= 12


# certificates


def test_a_certificate_is_renewed(lead: Lead, port: int):
    peer = Caller(lead, port)
    key = new_tls_key()
    client = connect(f"127.0.0.1:{port}", lead.ca, peer.key, peer.certificate)
    fresh = client.renew(signing_request(key, "north"))
    assert lead.register.admit(fresh).name == "north"
    peer.context = client_context(to_pem(key), fresh, lead.ca)
    assert peer.line()


def test_a_renewal_that_is_none_is_refused(lead: Lead, port: int):
    peer = Caller(lead, port)
    for body in (b"", b"\xff", b"no request"):
        assert peer.ask(RENEWAL, body)[:2] == (403, b"")
    assert lead.register.admit(peer.certificate).name == "north"


def test_a_register_that_cannot_be_read_for_a_while_ends_nobody(
    lead: Lead, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites are not told to stay away for good, and a revocation counts once the register can be read again."""
    caller = Caller(lead, port)
    line = caller.line()
    until(lambda: lead.here("north"))
    asked: set[str] = set()
    with monkeypatch.context() as patch:

        def broken(_: bytes) -> Peer:
            asked.add(threading.current_thread().name)
            raise RunError.at("registry.db", "cannot be read")

        patch.setattr(lead.register, "admit", broken)
        assert caller.ask(PATH, caller.hello())[0] == 503
        assert caller.ask(f"{line}/down?after=1")[0] == 503
        until(lambda: "https-lines" in asked, 3)
    assert caller.ask(f"{line}/down?after=1")[0] == 200, "the line goes on"
    lead.register.revoke("north")
    until(lambda: not lead.here("north"), 3)


def test_a_coordinator_that_cannot_welcome_a_site_does_not_send_it_away_for_good(
    lead: Lead, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(lead, port)
    with monkeypatch.context() as patch:

        def full(*_: str) -> tuple[str, str]:
            raise RunError.at("audit.log", "cannot be written: No space left on device")

        patch.setattr(lead.post, "_witness", full)
        status, body, _ = caller.ask(PATH, caller.hello())
        assert status == 503 and not body
    caller.line()


def test_a_frame_that_sets_off_an_error_costs_its_line_and_no_more(
    lead: Lead, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> None:
        raise KeyError("surprise")

    caller = Caller(lead, port)
    line = caller.line()
    until(lambda: lead.here("north"))
    monkeypatch.setattr(lead.post, "take", wrong)
    frame = Frame(open=Open(id="a-1", size=1)).SerializeToString()
    assert caller.ask(f"{line}/up?after=0", encode([frame]))[0] in (200, 410)
    until(lambda: not lead.here("north"), 3)


def test_a_port_outlives_a_machine_without_threads(lead: Lead, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, failed = Caller(lead, port), list[int]()

    def thread(**how: Any) -> threading.Thread:
        if how.get("name") == "https" and len(failed) < LIMITS.strangers + 1:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        return threading.Thread(**how)

    stand_in = SimpleNamespace(Thread=thread, Lock=threading.Lock, Event=threading.Event)
    monkeypatch.setattr(http1, "threading", stand_in)
    for _ in range(LIMITS.strangers + 1):
        with pytest.raises(OSError):
            caller.connect()
    caller.line()
