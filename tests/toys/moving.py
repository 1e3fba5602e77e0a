"""The processes of `benchmarks/transport_harness.py`: medfl's coordinator and sites without networks, raw gRPC's server
and clients. `python moving.py ROLE ARGUMENTS`; commands on stdin, answers on stdout as JSON.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

STEP = np.float32(1e-3)
PIECE = 2**20
TENSORS = 606
CASES = 8


def names(sites: int) -> list[str]:
    return [f"s{number:02d}" for number in range(sites)]


def own(folder: Path, name: str) -> tuple[bytes, bytes, bytes]:
    """Key, certificate and the authority's certificate."""
    return (
        (folder / f"{name}.key").read_bytes(),
        (folder / f"{name}.pem").read_bytes(),
        (folder / "ca.pem").read_bytes(),
    )


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

    key, certificate, ca = own(folder, "server")
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
    from medfl.federation.parts import FederationParts
    from medfl.federation.regulator.base import REGULATORS
    from medfl.federation.round import Federation
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
    from secrets import token_hex

    from medfl.transport.grpc.client import Address, hold
    from medfl.transport.mail import Mailbox, Outgoing
    from medfl.transport.protocol.medfl_pb2 import Hello
    from medfl.update.wire import unpack

    key, certificate, ca = own(folder, name)
    address = Address(f"127.0.0.1:{port}", ca, key, certificate)
    requests: queue.Queue[Any] = queue.Queue()
    stop, session = threading.Event(), token_hex(16)
    box: Mailbox

    def delivered(_: str) -> None:
        box.clear()

    box = Mailbox(
        folder / "homes" / name, lambda id_, size: "take", lambda *message: requests.put(message), delivered=delivered
    )

    def work() -> None:
        while True:
            id_, message, _ = requests.get()
            header, buffers = unpack(message)
            box.send(Outgoing(id_, _answer(name, _identity(certificate), header, buffers)))

    threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=report, daemon=True).start()
    hold(lambda: address, lambda: Hello(name=name, session=session), box, lambda welcome, line: None, stop)


def report() -> None:
    for _ in sys.stdin:
        tell(**usage())


def _identity(certificate: bytes) -> str:
    from cryptography.x509 import load_pem_x509_certificate

    from medfl.transport.certificates import subject_of

    return subject_of(load_pem_x509_certificate(certificate)).identity


def _answer(name: str, identity: str, header: dict[str, Any], buffers: Sequence[memoryview]) -> Any:
    from medfl.learning.messages import SiteInfo, TrainReply
    from medfl.transport.messages import encode_reply
    from medfl.transport.serving import info_json
    from medfl.update.base import Payload
    from medfl.update.wire import as_bytes, parts

    if header["do"] == "join":
        return parts({"answer": "open", "info": info_json(SiteInfo(name, {"train": CASES}, {}, identity))})
    if header["do"] == "begin":
        return parts({"answer": "begun", "heads": {}})
    sent = np.frombuffer(buffers[0], np.float32) + STEP
    payload = Payload("fp32", sent.size, (as_bytes(sent),))
    return encode_reply(TrainReply(name, header["round"], payload, CASES, 1, 1, 0.5, 0.5))


def agent(folder: Path, port: int, name: str) -> None:
    """The real agent, its audit log and its memory on disk."""
    from medfl.site.agent import Agent
    from medfl.site.home import SiteHome
    from medfl.transport.grpc.client import Address, hold

    key, certificate, ca = own(folder, name)
    address = Address(f"127.0.0.1:{port}", ca, key, certificate)
    # nothing is signed here
    identity: Any = SimpleNamespace(name=name, public=bytes.fromhex(_identity(certificate)))
    party = Agent(SiteHome.open(folder / "homes" / name), identity, make=_host)
    threading.Thread(target=report, daemon=True).start()
    threading.Thread(
        target=hold, args=(lambda: address, party.hello, party.box, party.welcomed, party.stop), daemon=True
    ).start()
    party.work()


def _host(inputs: Any, cases: Sequence[Any], memory: Any, identity: Any) -> Any:
    """A site's host that adds a constant."""
    from medfl.learning.checkpoint import order_key
    from medfl.learning.messages import SiteInfo, TrainReply
    from medfl.update.base import Payload
    from medfl.update.wire import as_bytes

    (site,) = inputs.sites

    class Host:
        run = ""

        def open(self) -> list[SiteInfo]:
            return [SiteInfo(site.name, {"train": len(cases)}, {}, identity.public.hex())]

        def admit(self) -> None: ...

        def begin(self, beginning: Any) -> dict[str, Any]:
            self.run = beginning.run
            memory.begin(beginning.run)
            return {}

        def train(self, order: Any, model: Any, step_done: Any) -> Any:
            step_done(1, 1)
            vector = np.frombuffer(model.buffers[0], np.float32)
            key, sent = order_key(self.run, order, vector, CASES), vector + STEP
            payload = Payload("fp32", sent.size, (as_bytes(sent),))
            reply = TrainReply(site.name, order.round, payload, CASES, 1, 1, 0.5, 0.5)
            memory.keep(key, reply, {})
            return reply, {}

    return Host()


# the floor


def floor(folder: Path, port: int, sites: int, values: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    key, certificate, ca = own(folder, "server")
    model = np.random.default_rng(0).standard_normal(values, np.float32)
    total, changed = np.zeros_like(model), threading.Condition()
    state = {"round": 0, "done": 0, "there": 0}

    def download(request: bytes, _: Any) -> Iterator[bytes]:
        with changed:
            state["there"] += 1
            changed.notify_all()
            changed.wait_for(lambda: state["round"] == int(request))
        view = memoryview(model).cast("B")
        for start in range(0, len(view), PIECE):
            yield bytes(view[start : start + PIECE])

    def upload(pieces: Iterator[bytes], _: Any) -> bytes:
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
    import grpc

    key, certificate, ca = own(folder, name)
    threading.Thread(target=report, daemon=True).start()
    options = [("grpc.max_receive_message_length", -1)]
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        download, upload = channel.unary_stream("/floor/Download"), channel.stream_unary("/floor/Upload")
        for number in range(1, 10**6):
            pieces = download(str(number).encode(), wait_for_ready=True)
            model = np.frombuffer(b"".join(pieces), np.float32) + STEP
            view = memoryview(model).cast("B")
            upload(bytes(view[start : start + PIECE]) for start in range(0, len(view), PIECE))


ROLES: dict[str, tuple[Callable[..., None], tuple[type, ...]]] = {
    "coordinator": (coordinator, (Path, int, int, int)),
    "floor": (floor, (Path, int, int, int)),
    "site": (site, (Path, int, str)),
    "agent": (agent, (Path, int, str)),
    "floor_client": (floor_client, (Path, int, str)),
}


if __name__ == "__main__":
    play, kinds = ROLES[sys.argv[1]]
    play(*(kind(value) for kind, value in zip(kinds, sys.argv[2:], strict=True)))
