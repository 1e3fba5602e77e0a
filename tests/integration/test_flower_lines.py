"""Lines over messages that somebody else carries, without Flower: what is lost comes again, what is meddled with ends
the line, and who carries sees nothing."""

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.federations import SITES, Federation

from medfl.coordinator.observer import Observer
from medfl.coordinator.service import CoordinatorService
from medfl.errors import InputError, RunError
from medfl.integrations.flower.dispatch import Courier, Dispatcher, Pace, Reply
from medfl.integrations.flower.envelope import Envelope, join_frames, split_frames, unpack_envelope
from medfl.integrations.flower.errand import ask
from medfl.integrations.flower.station import FlowerSite, Listener, socket_path
from medfl.integrations.flower.tunnel import Tunnel, TunnelError, context
from medfl.site.enrolment import load_credentials
from medfl.transport.mail import ProtocolError
from medfl.transport.pieces import Piece
from medfl.transport.protocol.medfl_pb2 import Beat, Frame

SWIFT = Pace(step=0.01, hold=5.0, idle=1.0, answer=6.0, grace=20.0, again=0.05)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_an_error(data: bytes) -> None:
    with suppress(RunError):
        unpack_envelope(data)
    with suppress(ProtocolError):
        list(split_frames(data))


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 9), st.text(max_size=20))
def test_envelopes_and_frames_come_back(texts: list[bytes], number: int, line: str) -> None:
    frames = [Piece("a", number, memoryview(text)) for text in texts]
    data = b"".join(join_frames(frames))
    envelope = Envelope(line, number, 2, 1.5)
    found, inner = unpack_envelope(envelope.pack(data))
    assert found == envelope
    assert list(split_frames(bytes(inner))) == frames


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("flower")).set_up() as made:
        yield made


def ends(federation: Federation, host: str = "127.0.0.1") -> tuple[Tunnel, Tunnel]:
    """A site's end and the coordinator's."""
    found = load_credentials(federation.site_home("hospital-a"))
    service = CoordinatorService(federation.home, Observer())
    key, certificate = service.home.server_credentials(service.home.authority())
    service.register.close()
    server = context(True, found.ca, key, certificate)
    return Tunnel(context(False, found.ca, found.key, found.certificate), host), Tunnel(server)


def shake(site: Tunnel, lead: Tunnel) -> None:
    site.feed(b"")
    lead.feed(site.outgoing())
    site.feed(lead.outgoing())
    lead.feed(site.outgoing())


def test_both_ends_prove_themselves_and_frames_come_through(federation: Federation) -> None:
    site, lead = ends(federation)
    shake(site, lead)
    assert site.ready and lead.ready
    assert lead.certificate.split() == load_credentials(federation.site_home("hospital-a")).certificate.split()
    large = Piece("m", 0, memoryview(random.Random(0).randbytes(300_000)))
    site.write([Frame(beat=Beat(state="ready")), large])
    carried = site.outgoing()
    assert bytes(large.data[:64]) not in carried
    lead.feed(carried)
    assert lead.frames() == [Frame(beat=Beat(state="ready")), large]


@pytest.mark.parametrize("meddle", ["change", "repeat", "cut"])
def test_what_was_meddled_with_is_noticed(federation: Federation, meddle: str) -> None:
    site, lead = ends(federation)
    shake(site, lead)
    site.write([Piece("m", 0, memoryview(bytes(1000)))])
    data = bytearray(site.outgoing())
    if meddle == "change":
        data[500] ^= 1
    lead.feed(data if meddle != "cut" else data[40:])
    with pytest.raises((TunnelError, ProtocolError)):
        lead.frames()
        lead.feed(data)
        lead.frames()


def test_a_coordinator_of_another_name_or_authority_is_refused(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(TunnelError):
        shake(*ends(federation, "elsewhere.example"))
    with Federation(tmp_path).set_up() as other, pytest.raises(TunnelError):
        shake(ends(federation)[0], ends(other)[1])


class Carrier(Courier):
    """Brings requests to the sites' sockets. fate: of each request: "lost", "unanswered", "changed", "twice" or ""."""

    def __init__(self, homes: Sequence[Path], fates: Iterable[str] = ()) -> None:
        self._homes = dict(enumerate(homes))
        self._fates = iter(fates)
        self._pool = ThreadPoolExecutor(8)
        self._waiting: dict[str, Future[Reply]] = {}
        self._count = 0
        self.seen: list[bytes] = []
        self.met: list[str] = []

    def nodes(self) -> set[int]:
        return set(self._homes)

    def push(self, requests: Sequence[tuple[int, bytes]], seconds: float) -> Sequence[str]:
        ids = []
        for node, data in requests:
            self._count += 1
            ids.append(str(self._count))
            self._waiting[ids[-1]] = self._pool.submit(self._carry, ids[-1], node, data, next(self._fates, ""))
        return ids

    def _carry(self, id_: str, node: int, data: bytes, fate: str) -> Reply:
        self.seen.append(data)
        self.met.append(fate)
        if fate == "lost":
            return Reply(id_, failure="node is away")
        try:
            answer = ask(self._homes[node], data)
            if fate == "twice":
                ask(self._homes[node], data)
        except RunError as error:
            return Reply(id_, failure=str(error))
        self.seen.append(answer)
        if fate == "changed":
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        return Reply(id_, failure="its process was killed") if fate == "unanswered" else Reply(id_, answer)

    def pull(self, ids: Sequence[str]) -> Iterable[Reply]:
        for id_ in ids:
            if self._waiting[id_].done():
                yield self._waiting.pop(id_).result()


@contextmanager
def serving(federation: Federation) -> Iterator[list[FlowerSite]]:
    sites = [FlowerSite(federation.site_home(name)) for name in SITES]
    threads = [threading.Thread(target=site.run, daemon=True) for site in sites]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while time.monotonic() < end and not all(socket_path(federation.site_home(name)).exists() for name in SITES):
        time.sleep(0.02)
    try:
        yield sites
    finally:
        for site in sites:
            site.stop()
        for thread in threads:
            thread.join(30)


def play(federation: Federation, carrier: Carrier) -> None:
    service = CoordinatorService(federation.home, Observer())
    home = service.home
    key, certificate = home.server_credentials(home.authority())
    settings = context(True, home.ca_certificate.read_bytes(), key, certificate)
    dispatcher = Dispatcher(service.post, service.register, service.note, carrier, settings, SWIFT)
    with serving(federation):
        dispatcher.start()
        try:
            service.run(wait=60)
        finally:
            dispatcher.finish(20)
            service.close()


def test_the_model_is_that_of_the_simulation_whatever_is_lost(short_path: Path) -> None:
    draw = random.Random(7)
    fates = [draw.choice(["lost", "unanswered", "changed", "twice", "", "", "", ""]) for _ in range(16)]
    with Federation(short_path).set_up() as federation:
        carrier = Carrier([federation.site_home(site) for site in SITES], fates)
        play(federation, carrier)
        assert federation.model() == federation.simulated()
        assert {"lost", "unanswered", "changed", "twice"} <= set(carrier.met)
        # who carries learns neither names nor what is asked
        carried = b"".join(carrier.seen)
        assert not [word for word in (b"hospital-a", b'"do"', b"federation") if word in carried]


def test_a_home_is_served_once_and_a_stale_socket_is_no_hindrance(federation: Federation) -> None:
    path = federation.folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    station = object()
    with Listener(station, path):  # type: ignore[arg-type]
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(InputError, match="served by another"):
            Listener(station, path)  # type: ignore[arg-type]
    assert not path.exists()


def test_without_a_service_the_errand_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not run"):
        ask(tmp_path, b"")


def test_an_end_without_a_certificate_is_refused(federation: Federation) -> None:
    found = load_credentials(federation.site_home("hospital-a"))
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.load_verify_locations(cadata=found.ca.decode())
    stranger, (_, lead) = Tunnel(plain, "127.0.0.1"), ends(federation)
    with pytest.raises(TunnelError):
        shake(stranger, lead)
