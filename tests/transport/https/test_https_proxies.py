"""Sites behind proxies, real ones where they are installed: what gets through, and what the site does about it."""

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toys.https_lines import Lead, Pipe, Stub, until
from toys.proxies import firewall, squid, tinyproxy
from toys.proxies import run as run

from medfl.errors import InputError
from medfl.transport.grpc.client import hold
from medfl.transport.grpc.server import FederationServer
from medfl.transport.https import Fallback
from medfl.transport.https.client import hold_https
from medfl.transport.https.fallback import Habits, Ways
from medfl.transport.https.proxy import Proxy

QUICK = Habits(patience=5.0, again=0.5)


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    return Lead(tmp_path)


@pytest.fixture
def ports(lead: Lead) -> Iterator[tuple[int, int]]:
    """Of gRPC and of HTTPS."""
    federation = FederationServer(lead.post, lead.register, lead.house.note)
    server, port = lead.serve()
    yield federation.start("127.0.0.1:0", lead.key, lead.certificate, lead.ca), port
    server.stop()
    federation.stop()


def ways(stub: Stub, ports: tuple[int, int], fallback: Fallback = Fallback.AUTO, **changed: Any) -> Ways:
    memory = stub.box.spool.parent / f"{stub.name}.json"
    return Ways(stub.address(ports[0]), stub.address(ports[1]), fallback, memory, **{"habits": QUICK, **changed})


def begin(stub: Stub, way: Ways) -> threading.Thread:
    arguments = (stub.hello, stub.box, stub.welcomed, stub.stop, stub.contact)
    thread = threading.Thread(target=way.hold, args=arguments, daemon=True)
    thread.start()
    return thread


def round_trip(lead: Lead, size: int = 2**21) -> float:
    begun, payload = time.monotonic(), os.urandom(size)
    ticket = lead.ask("north", "train", payload)
    until(lambda: ticket.settled, 60)
    assert bytes(ticket.answer or b"").endswith(payload)
    return time.monotonic() - begun


def finish(stub: Stub, thread: threading.Thread) -> None:
    stub.stop.set()
    thread.join(15)
    assert not thread.is_alive()


# blocked HTTP/2


def test_a_firewall_that_blocks_http_2_is_got_round(lead: Lead, ports, run, tmp_path: Path):
    through = firewall(run, tmp_path, ports[0]), firewall(run, tmp_path, ports[1])
    stub = Stub(lead, "north", tmp_path / "sites")

    thread = stub.start(hold, through[0])
    until(lambda: len(stub.away) >= 3, 30)
    assert not stub.welcomes and not lead.here("north")
    finish(stub, thread)

    stub.stop = threading.Event()
    way = ways(stub, through)
    thread = begin(stub, way)
    until(lambda: lead.here("north"), 30)
    round_trip(lead)
    assert way.by_https and not way.reachable(2)
    finish(stub, thread)

    # the next process does not begin with what does not work
    before = len(stub.away)
    stub.stop = threading.Event()
    thread = begin(stub, ways(stub, through))
    until(lambda: lead.here("north"), 30)
    assert len(stub.away) == before
    finish(stub, thread)


def test_without_the_fallback_such_a_site_stays_away(lead: Lead, ports, run, tmp_path: Path):
    through = firewall(run, tmp_path, ports[0]), firewall(run, tmp_path, ports[1])
    stub = Stub(lead, "north", tmp_path / "sites")
    thread = begin(stub, ways(stub, through, Fallback.NEVER))
    until(lambda: len(stub.away) >= 5, 30)
    assert not stub.welcomes
    finish(stub, thread)


# choosing


def test_where_both_work_grpc_is_used(lead: Lead, ports, tmp_path: Path):
    stub = Stub(lead, "north", tmp_path / "sites")
    way = ways(stub, ports)
    thread = begin(stub, way)
    until(lambda: stub.welcomes)
    assert not way.by_https and stub.welcomes[0].beat == pytest.approx(2.0)
    finish(stub, thread)


def test_always_means_always(lead: Lead, ports, tmp_path: Path):
    pipe = Pipe(ports[0])
    stub = Stub(lead, "north", tmp_path / "sites")
    way = ways(stub, (pipe.port, ports[1]), Fallback.ALWAYS)
    thread = begin(stub, way)
    until(lambda: lead.here("north"))
    round_trip(lead)
    assert way.by_https and not pipe.connections
    finish(stub, thread)
    pipe.close()


def test_always_needs_somewhere_to_call(lead: Lead, tmp_path: Path):
    stub = Stub(lead, "north", tmp_path / "sites")
    with pytest.raises(InputError, match="offers no HTTPS"):
        Ways(stub.address(1), None, Fallback.ALWAYS, tmp_path / "line.json")


def test_grpc_takes_over_again_when_it_works_and_no_message_is_lost(lead: Lead, ports, tmp_path: Path):
    pipe = Pipe(ports[0])
    pipe.open = False
    stub = Stub(lead, "north", tmp_path / "sites")
    way = ways(stub, (pipe.port, ports[1]))
    thread = begin(stub, way)
    until(lambda: lead.here("north"), 30)
    round_trip(lead)
    assert way.by_https
    welcomes = len(stub.welcomes)
    # looking did not touch the line
    time.sleep(1.2)
    assert len(stub.welcomes) == welcomes
    ticket = lead.ask("north", "train", os.urandom(2**23))
    pipe.open = True
    until(lambda: not way.by_https, 30)
    until(lambda: ticket.settled, 30)
    round_trip(lead)
    assert sorted(set(stub.got)) == sorted(stub.got)
    finish(stub, thread)
    pipe.close()


def test_a_way_that_connects_and_says_nothing_is_given_up(lead: Lead, ports, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stub = Stub(lead, "north", tmp_path / "sites")
        habits = Habits(patience=1.0, again=60)
        way = ways(stub, (silent.getsockname()[1], ports[1]), habits=habits)
        thread = begin(stub, way)
        until(lambda: stub.welcomes, 30)
        assert way.by_https
        finish(stub, thread)


def test_a_run_that_is_over_ends_either_way(lead: Lead, ports, tmp_path: Path):
    stubs = [Stub(lead, name, tmp_path / "sites") for name in ("north", "south")]
    threads = [begin(stubs[0], ways(stubs[0], ports)), begin(stubs[1], ways(stubs[1], ports, Fallback.ALWAYS))]
    until(lambda: lead.here("north") and lead.here("south"))
    lead.post.close("the run is over", over=True)
    for stub, thread in zip(stubs, threads, strict=True):
        thread.join(10)
        assert not thread.is_alive() and stub.stop.is_set()


def test_a_damaged_memory_is_no_obstacle(lead: Lead, ports, tmp_path: Path):
    stub = Stub(lead, "north", tmp_path / "sites")
    way = ways(stub, ports)
    way._memory.write_bytes(b"[]")
    thread = begin(stub, way)
    until(lambda: stub.welcomes)
    finish(stub, thread)
    assert way._memory.read_bytes() == b'{"way": "grpc"}'


# forward proxies


@pytest.mark.parametrize("kind", [tinyproxy, squid])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_https_goes_through_a_forward_proxy(
    lead: Lead, ports, run, tmp_path: Path, monkeypatch, kind: Callable[..., int], variable: str
):
    proxy = kind(run, tmp_path)
    seen = Pipe(proxy)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{seen.port}")
    stub = Stub(lead, "north", tmp_path / "sites")
    thread = stub.start(hold_https, ports[1])
    until(lambda: lead.here("north"))
    round_trip(lead)
    assert seen.passed > 2**22
    finish(stub, thread)
    seen.close()


def test_grpc_goes_through_a_forward_proxy(lead: Lead, ports, run, tmp_path: Path, monkeypatch):
    seen = Pipe(tinyproxy(run, tmp_path))
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{seen.port}")
    stub = Stub(lead, "north", tmp_path / "sites")
    thread = stub.start(hold, ports[0])
    until(lambda: lead.here("north"))
    round_trip(lead)
    assert seen.passed > 2**22
    finish(stub, thread)
    seen.close()


def test_a_proxy_that_asks_for_a_password_gets_it_and_nobody_else(
    lead: Lead, ports, run, tmp_path: Path, monkeypatch, caplog
):
    caplog.set_level("DEBUG")
    proxy = tinyproxy(run, tmp_path, "BasicAuth steward s3cret")
    stub = Stub(lead, "north", tmp_path / "sites")
    monkeypatch.setenv("HTTPS_PROXY", f"http://steward:wr0ng@127.0.0.1:{proxy}")
    thread = stub.start(hold_https, ports[1])
    until(lambda: stub.away)
    assert "407" in stub.away[0] or "401" in stub.away[0]
    monkeypatch.setenv("HTTPS_PROXY", f"http://steward:s3cret@127.0.0.1:{proxy}")
    until(lambda: lead.here("north"), 30)
    finish(stub, thread)
    told = caplog.text + "".join(stub.away)
    for secret in ("s3cret", "wr0ng", base64.b64encode(b"steward:s3cret").decode()):
        assert secret not in told


def test_no_proxy_is_honoured(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    assert Proxy.of_environment("fl.example.org") == Proxy("proxy.example.org", 3128)
    monkeypatch.setenv("NO_PROXY", "localhost,.example.org")
    assert Proxy.of_environment("fl.example.org") is None
    assert Proxy.of_environment("fl.example.net") is not None
    monkeypatch.setenv("NO_PROXY", "*")
    assert Proxy.of_environment("fl.example.net") is None


def test_a_proxy_has_an_address_and_its_password_is_not_shown():
    found = Proxy.parse("http://some%40body:pass%3Aword@proxy:8080")
    assert (found.host, found.port) == ("proxy", 8080)
    assert base64.b64decode(found.authorization.removeprefix("Basic ")) == b"some@body:pass:word"
    assert "Basic" not in repr(found)
    assert Proxy.parse("proxy:8080") == Proxy("proxy", 8080)
    for url in ("https://me:secret@proxy", "socks5://me:secret@proxy:1", "http://me:secret@", "http://me:secret@a:x"):
        with pytest.raises(InputError) as caught:
            Proxy.parse(url)
        assert "secret" not in str(caught.value)
