"""A federation without networks, and raw gRPC beside it: what moving a model costs, round by round.

    python tests/benchmarks/transport_harness.py --mb 1 25 100 --rounds 5
    python tests/benchmarks/transport_harness.py --mb 10 --sites 3 30 --no-floor
    python tests/benchmarks/transport_harness.py --mb 25 --agents

Coordinator and sites are processes of their own, on loopback, in mutual TLS with certificates of a real register. A site
adds a constant to every value and sends all of them back; the coordinator takes the mean. Nothing imports torch. The
floor is gRPC's own streams of 1 MiB pieces, added into one array as they come (`floor`); its rounds and medfl's take
turns, so that both see the same machine. A round is timed at the coordinator, from its plan to its model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
STEP = np.float32(1e-3)
PIECE = 2**20
TENSORS = 606


def prepare(folder: Path, sites: int, agents: bool = False) -> None:
    """A register, the server's certificate and those of the sites; with agents, a home for each site."""
    from medfl.coordinator.authority import Authority
    from medfl.coordinator.register import Register
    from medfl.keys import new_tls_key, to_pem
    from toys.admission import Applicant

    authority = Authority.create("lead")
    register = Register.create(folder / "registry.db", authority, lambda kind, detail: None)
    key = new_tls_key()
    _write(folder, "server", to_pem(key), _pem(authority.issue_server(key.public_key(), ["127.0.0.1", "localhost"])))
    (folder / "ca.pem").write_bytes(authority.pem)
    for name in names(sites):
        applicant = Applicant(name)
        certificate = applicant.enrol(register, register.invite(name, "site")[0])
        _write(folder, name, to_pem(applicant.key), certificate)
        if agents:
            from toys.soak import make_home

            make_home(folder, name)
    register.close()


def names(sites: int) -> list[str]:
    return [f"s{number:02d}" for number in range(sites)]


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _write(folder: Path, name: str, key: bytes, certificate: bytes) -> None:
    (folder / f"{name}.key").write_bytes(key)
    (folder / f"{name}.pem").write_bytes(certificate)


def _own(folder: Path, name: str) -> tuple[bytes, bytes, bytes]:
    """Key, certificate and the authority's certificate."""
    return (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes(), (folder / "ca.pem").read_bytes()


def usage() -> dict[str, float]:
    """Peak of this process's memory in MB, the part that is no mapped file now, and its CPU seconds."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    spent = os.times()
    return {
        "rss": int(lines["VmHWM"].split()[0]) / 1000,
        "anonymous": int(lines["RssAnon"].split()[0]) / 1000,
        "cpu": spent.user + spent.system,
    }


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def obey(play: Callable[[], float]) -> None:
    """Play rounds as told on the standard input, until it ends."""
    for line in sys.stdin:
        if line.strip() == "round":
            tell(seconds=play())
        else:
            tell(**usage())


# medfl


def coordinator(folder: Path, port: int, sites: int, values: int) -> None:
    from medfl.coordinator.register import Register
    from medfl.learning.messages import Beginning
    from medfl.transport.grpc.server import FederationServer
    from medfl.transport.post import Post
    from medfl.transport.remote import Remote, Terms

    key, certificate, ca = _own(folder, "server")
    register = Register.open(folder / "registry.db", None, lambda kind, detail: None)
    post = Post("lead", folder / "spool", lambda site, state, detail: None)
    server = FederationServer(post, register, lambda kind, detail: None)
    server.start(f"127.0.0.1:{port}", key, certificate, ca)
    study = json.loads((folder / "study.json").read_text()) if (folder / "study.json").exists() else {}
    remote = Remote(post, Terms(study, frozenset(names(sites)), sites), lambda: _model(values))
    infos = remote.open()
    remote.begin(Beginning("bench", {info.name: info.identity for info in infos}))
    play = _rounds(remote, {info.name: info.cases["train"] for info in infos})
    tell(ready=time.time())
    obey(play)
    post.close("over", over=True)
    server.stop()


def _model(values: int) -> tuple[Any, Any]:
    from medfl.update.vector import Layout

    sizes = [len(part) for part in np.array_split(np.empty(values, np.bool_), min(values, TENSORS))]
    layout = Layout.of((f"tensor{number}", (size,)) for number, size in enumerate(sizes))
    return np.random.default_rng(0).standard_normal(values, np.float32), layout


def _rounds(remote: Any, cases: dict[str, int]) -> Callable[[], float]:
    from medfl.federation.aggregation.base import AGGREGATORS
    from medfl.federation.regulator.base import REGULATORS
    from medfl.federation.round import Federation, FederationParts
    from medfl.federation.schedule.base import SCHEDULES
    from medfl.federation.server_steps.base import SERVER_STEPS
    from medfl.update.base import Update
    from medfl.update.codecs.base import CODECS

    codec = CODECS.build(CODECS.default("fp32"))
    parts = FederationParts(
        schedule=SCHEDULES.build(SCHEDULES.default("all")),
        codec=codec,
        regulator=[REGULATORS.build(REGULATORS.default("finite"))],
        aggregator=AGGREGATORS.build(AGGREGATORS.default("weighted_mean")),
        server=SERVER_STEPS.build(SERVER_STEPS.default("sgd")),
        values={},
    )
    federation = Federation(parts, 0, remote.initial_model()[0])
    rng = np.random.default_rng(0)

    def play() -> float:
        begun = time.perf_counter()
        plan = federation.plan(cases)
        before = float(federation.model[0])
        model = codec.encode(Update(federation.model, federation.model.size), rng)
        round_ = federation.open(plan)
        with closing(remote.train(plan.orders(), model)) as deliveries:
            for delivery in deliveries:
                round_.receive(delivery.answer)
        federation.close(round_)
        spent = time.perf_counter() - begun
        if not np.isclose(federation.model[0], 2 * before + STEP, rtol=1e-5):
            raise RuntimeError("the mean is not what the sites sent")
        return spent

    return play


def site(folder: Path, port: int, name: str) -> None:
    import queue
    import threading
    from secrets import token_hex

    from medfl.transport.grpc.client import Address, hold
    from medfl.transport.mail import Mailbox, Outgoing
    from medfl.transport.protocol.medfl_pb2 import Hello
    from medfl.update.wire import unpack

    key, certificate, ca = _own(folder, name)
    address = Address(f"127.0.0.1:{port}", ca, key, certificate)
    requests: queue.Queue[Any] = queue.Queue()
    stop, session = threading.Event(), token_hex(16)
    box: Mailbox

    def delivered(id_: str) -> None:
        box.clear()

    box = Mailbox(
        folder / "homes" / name, lambda id_, size: "take", lambda *message: requests.put(message), delivered=delivered
    )

    def work() -> None:
        while True:
            id_, message, _ = requests.get()
            header, buffers = unpack(message)
            box.send(Outgoing(id_, _answer(name, header, buffers)))

    threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=_report, daemon=True).start()
    hold(lambda: address, lambda: Hello(name=name, session=session), box, lambda welcome, line: None, stop)


def _report() -> None:
    for _ in sys.stdin:
        tell(**usage())


def _answer(name: str, header: dict[str, Any], buffers: Sequence[memoryview]) -> Any:
    from medfl.learning.messages import SiteInfo, TrainReply
    from medfl.transport.messages import encode_reply
    from medfl.transport.serving import info_json
    from medfl.update.base import Payload
    from medfl.update.wire import as_bytes, parts

    if header["do"] == "join":
        return parts({"answer": "open", "info": info_json(SiteInfo(name, {"train": 8}, {}, "aa"))})
    if header["do"] == "begin":
        return parts({"answer": "begun", "heads": {}})
    sent = np.frombuffer(buffers[0], np.float32) + STEP
    payload = Payload("fp32", sent.size, (as_bytes(sent),))
    return encode_reply(TrainReply(name, header["round"], payload, 8, 1, 1, 0.5, 0.5))


def agent(folder: Path, port: int, name: str) -> None:
    import threading

    from toys.soak import bench_agent

    key, certificate, ca = _own(folder, name)
    threading.Thread(target=_report, daemon=True).start()
    bench_agent(folder, name, f"127.0.0.1:{port}", ca, key, certificate, STEP)


# the floor


def floor(folder: Path, port: int, sites: int, values: int) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    key, certificate, ca = _own(folder, "server")
    model = np.random.default_rng(0).standard_normal(values, np.float32)
    total, changed = np.zeros_like(model), threading.Condition()
    state = {"round": 0, "done": 0, "there": 0}

    def download(request: bytes, context: Any) -> Iterator[bytes]:
        with changed:
            state["there"] += 1
            changed.notify_all()
            changed.wait_for(lambda: state["round"] == int(request))
        view = memoryview(model).cast("B")
        for start in range(0, len(view), PIECE):
            yield bytes(view[start : start + PIECE])

    def upload(pieces: Iterator[bytes], context: Any) -> bytes:
        at = 0
        for piece in pieces:
            part = np.frombuffer(piece, np.float32)
            with changed:
                total[at : at + part.size] += part
            at += part.size
        with changed:
            state["done"] += 1
            changed.notify_all()
        return b""

    def play() -> float:
        with changed:
            changed.wait_for(lambda: state["there"] == sites)
            begun = time.perf_counter()
            state.update(round=state["round"] + 1, done=0, there=0)
            total.fill(0)
            changed.notify_all()
            changed.wait_for(lambda: state["done"] == sites)
        np.divide(total, sites, out=model)
        return time.perf_counter() - begun

    server = grpc.server(ThreadPoolExecutor(2 * sites + 2), options=[("grpc.max_receive_message_length", -1)])
    methods = {
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", methods),))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    tell(ready=time.time())
    obey(play)
    server.stop(0)


def floor_client(folder: Path, port: int, name: str) -> None:
    import threading

    import grpc

    key, certificate, ca = _own(folder, name)
    threading.Thread(target=_report, daemon=True).start()
    options = [("grpc.max_receive_message_length", -1)]
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        download, upload = channel.unary_stream("/floor/Download"), channel.stream_unary("/floor/Upload")
        for number in range(1, 10**6):
            pieces = download(str(number).encode(), wait_for_ready=True)
            model = np.frombuffer(b"".join(pieces), np.float32) + STEP
            view = memoryview(model).cast("B")
            upload(bytes(view[start : start + PIECE]) for start in range(0, len(view), PIECE))


# the driver


class Party:
    """One process, asked and answering in lines of JSON."""

    def __init__(self, role: str, *arguments: object) -> None:
        command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "GRPC_VERBOSITY": "NONE"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str = "") -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if what:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return dict(json.loads(line))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass(frozen=True)
class Measured:
    """start: seconds from the first process's start to the first round; rounds: seconds each; then of the server and
    of one site: peak memory in MB and CPU seconds."""

    start: float
    rounds: list[float]
    server: dict[str, float]
    site: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@contextmanager
def group(folder: Path, roles: tuple[str, str], sites: int, values: int) -> Iterator[tuple[Party, list[Party], float]]:
    """A server and its sites; seconds until the first round may begin."""
    from toys.federations import free_port

    with ExitStack() as stack:
        port, begun = free_port(), time.time()
        server = Party(roles[0], folder, port, sites, values)
        stack.callback(server.end)
        clients = []
        for name in names(sites):
            clients.append(Party(roles[1], folder, port, name))
            stack.callback(clients[-1].end)
        yield server, clients, server.ask()["ready"] - begun


MEDFL, AGENTS, FLOOR = ("coordinator", "site"), ("coordinator", "agent"), ("floor", "floor_client")


def measure(mb: float, sites: int, rounds: int, kinds: Sequence[tuple[str, str]]) -> list[Measured]:
    """Of each kind, round by round in turn; the first round warms up."""
    values, found = round(mb * 1e6 / 4), []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        groups = []
        for number, roles in enumerate(kinds):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            prepare(folder, sites, agents="agent" in roles)
            groups.append(stack.enter_context(group(folder, roles, sites, values)))
        spent: list[list[float]] = [[] for _ in kinds]
        for _ in range(rounds + 1):
            for times, (server, _, _) in zip(spent, groups, strict=True):
                times.append(server.ask("round")["seconds"])
        for times, (server, clients, start) in zip(spent, groups, strict=True):
            found.append(Measured(start, times[1:], server.ask("usage"), clients[0].ask("usage")))
    return found


def show(mb: float, sites: int, rounds: int, kinds: Sequence[tuple[str, str]]) -> None:
    sys.stdout.write(f"{mb:g} MB, {sites} sites, {rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    found = measure(mb, sites, rounds, kinds)
    for roles, one in zip(kinds, found, strict=True):
        spent = " ".join(f"{value:.3f}" for value in one.rounds)
        sys.stdout.write(
            f"  {roles[0]:12} {roles[1]:12} median {one.median:.3f} s (min {min(one.rounds):.3f}; {spent}), "
            f"start {one.start:.2f} s, "
            f"server {one.server['rss']:.0f} MB ({one.server['anonymous']:.0f} own at the end) {one.server['cpu']:.1f} CPU-s, "
            f"site {one.site['rss']:.0f} MB {one.site['cpu']:.1f} CPU-s\n"
        )
    if FLOOR in kinds:
        base = found[list(kinds).index(FLOOR)]
        ratios = [f"{one.median / base.median:.2f}" for one in found]
        sys.stdout.write(f"  ratio to the floor: {', '.join(ratios)}\n")
    sys.stdout.flush()


ROLES: dict[str, tuple[Callable[..., None], tuple[type, ...]]] = {
    "coordinator": (coordinator, (Path, int, int, int)),
    "floor": (floor, (Path, int, int, int)),
    "site": (site, (Path, int, str)),
    "agent": (agent, (Path, int, str)),
    "floor_client": (floor_client, (Path, int, str)),
}


def main() -> None:
    if sys.argv[1:2] == ["--role"]:
        play, kinds = ROLES[sys.argv[2]]
        play(*(kind(value) for kind, value in zip(kinds, sys.argv[3:], strict=True)))
        return
    sys.path.insert(0, str(TESTS))
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=float, nargs="+", default=[1, 25, 28, 100])
    parser.add_argument("--sites", type=int, nargs="+", default=[3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--agents", action="store_true", help="also sites with the real agent and its memory on disk")
    given = parser.parse_args()
    kinds = [MEDFL] + [AGENTS] * given.agents + [FLOOR] * (not given.no_floor)
    for mb in given.mb:
        for sites in given.sites:
            show(mb, sites, given.rounds, kinds)


if __name__ == "__main__":
    main()
