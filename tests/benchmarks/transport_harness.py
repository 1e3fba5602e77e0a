"""A federation without networks, and raw gRPC beside it: what moving a model costs, round by round.

    python tests/benchmarks/transport_harness.py --mb 1 25 100 --rounds 5
    python tests/benchmarks/transport_harness.py --mb 10 --sites 3 30 --no-floor
    python tests/benchmarks/transport_harness.py --mb 25 --agents
    python tests/benchmarks/transport_harness.py --mb 1 25 28 100 --flower

Coordinator and sites are processes of their own, on loopback, in mutual TLS with certificates of a real register. A
site adds a constant to every value and sends all of them back; the coordinator takes the mean. Nothing imports torch.
The floor is gRPC's own streams of 1 MiB pieces, added into one array as they come; its rounds and medfl's take
turns, so that both see the same machine. A round is timed at the coordinator, from its plan to its model.

With --flower, Flower's own deployment moves the same model after them: SuperLink and SuperNodes with TLS and
registered keys, in the environment of `make test-flower`. There the model is 20 tensors, and 606 at 28 MB: medfl packs
tensors into one vector, so that their number is nothing to it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))

from toys.admission import Applicant  # noqa: E402
from toys.moving import CASES, names  # noqa: E402
from toys.ports import free_port  # noqa: E402

from medfl.coordinator.authority import Authority  # noqa: E402
from medfl.coordinator.register import Register  # noqa: E402
from medfl.keys import new_tls_key, to_pem  # noqa: E402
from medfl.site.home import SiteHome  # noqa: E402
from medfl.study.model import Study  # noqa: E402

STUDY = {
    "name": "bench",
    "task": {"kind": "classification", "classes": ["a", "b"]},
    "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [8, 8], "channels": 1}},
    "stop": {"rounds": 1000},
}


def prepare(folder: Path, sites: int, agents: bool = False) -> None:
    """A register, the server's certificate and those of the sites; with agents, a home for each site."""

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
            _home(folder, name)
    if agents:
        (folder / "study.json").write_text(json.dumps(Study.model_validate(STUDY).to_json()))
    register.close()


def _home(folder: Path, name: str) -> None:
    """A site's home, with a list of images that nobody opens."""
    data = folder / "data" / name
    data.mkdir(parents=True)
    training = [{"image": f"{number}.png", "label": number % 2} for number in range(CASES)]
    about = {"name": "bench", "task": "classification", "labels": {"0": "a", "1": "b"}, "training": training}
    (data / "datalist.json").write_text(json.dumps(about))
    for entry in training:
        (data / str(entry["image"])).touch()
    (folder / f"{name}.yaml").write_text(f"name: {name}\ndata: {data}\npolicy: {{approve: allowed}}\n")
    SiteHome.create(folder / "homes" / name, folder / f"{name}.yaml")


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _write(folder: Path, name: str, key: bytes, certificate: bytes) -> None:
    (folder / f"{name}.key").write_bytes(key)
    (folder / f"{name}.pem").write_bytes(certificate)


# the driver


class Party:
    """One process, asked and answering in lines of JSON."""

    def __init__(self, role: str, *arguments: object) -> None:
        command = [sys.executable, str(TESTS / "toys" / "moving.py"), role, *map(str, arguments)]
        # as in docs/deploy
        arenas = "1" if role == "coordinator" else "2"
        deployed = {"MALLOC_ARENA_MAX": arenas, "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **deployed, "PYTHONPATH": str(TESTS), "GRPC_VERBOSITY": "NONE"}
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


def over_flower(mb: float, sites: int, rounds: int) -> list[float]:
    """Seconds of each round over Flower's SuperLink; the first round warms up."""
    from toys.federations import until
    from toys.flower_env import Flower

    settings = {"values": round(mb * 1e6 / 4), "tensors": 606 if mb == 28 else 20, "rounds": rounds + 1, "sites": sites}
    with tempfile.TemporaryDirectory() as scratch, Flower(Path(scratch) / "flower") as flower:
        out = Path(scratch) / "rounds.json"
        flower.superlink()
        for number in range(sites):
            flower.node(f"node-{number}", f"partition-id={number}")
        given = " ".join(f"{name}={value}" for name, value in settings.items())
        run = flower.run(Path(__file__).with_name("flower_app"), f'{given} out="{out}"')
        until(lambda: out.exists() or flower.over(run), 1200, flower.text)
        if not out.exists():
            raise RuntimeError(flower.text())
        until(lambda: flower.over(run), 60, flower.text)
        return list(json.loads(out.read_text())["rounds"])[1:]


def show(title: str, kinds: Sequence[tuple[str, str]], found: Sequence[Measured]) -> None:
    sys.stdout.write(f"{title}, load {os.getloadavg()[0]:.1f}\n")
    for roles, one in zip(kinds, found, strict=True):
        spent = " ".join(f"{value:.3f}" for value in one.rounds)
        sys.stdout.write(
            f"  {roles[0]:12} {roles[1]:12} median {one.median:.3f} s (min {min(one.rounds):.3f}; {spent}), "
            f"start {one.start:.2f} s, "
            f"server {one.server['rss']:.0f} MB ({one.server['anonymous']:.0f} own at the end), "
            f"{one.server['cpu']:.1f} CPU-s, "
            f"site {one.site['rss']:.0f} MB {one.site['cpu']:.1f} CPU-s\n"
        )
    if FLOOR in kinds:
        base = found[list(kinds).index(FLOOR)]
        ratios = [f"{one.median / base.median:.2f}" for one in found]
        sys.stdout.write(f"  ratio to the floor: {', '.join(ratios)}\n")
    sys.stdout.flush()


def show_flower(rounds: Sequence[float], medfl: Measured) -> None:
    middle, spent = statistics.median(rounds), " ".join(f"{value:.2f}" for value in rounds)
    sys.stdout.write(f"  Flower       median {middle:.2f} s ({spent}), {middle / medfl.median:.0f} times medfl's\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=float, nargs="+", default=[1, 25, 28, 100])
    parser.add_argument("--sites", type=int, nargs="+", default=[3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--agents", action="store_true", help="also sites with the real agent and its memory on disk")
    parser.add_argument("--flower", action="store_true", help="also Flower's own deployment")
    parser.add_argument("--json", action="store_true", help="one object a line")
    given = parser.parse_args()
    kinds = [MEDFL] + [AGENTS] * given.agents + [FLOOR] * (not given.no_floor)
    for mb in given.mb:
        for sites in given.sites:
            found = measure(mb, sites, given.rounds, kinds)
            flower = over_flower(mb, sites, given.rounds) if given.flower else []
            if given.json:
                named = {roles[1]: asdict(one) for roles, one in zip(kinds, found, strict=True)}
                sys.stdout.write(json.dumps({"mb": mb, "sites": sites, **named, "flower": flower}) + "\n")
            else:
                show(f"{mb:g} MB, {sites} sites, {given.rounds} rounds", kinds, found)
            if flower and not given.json:
                show_flower(flower, found[0])


if __name__ == "__main__":
    main()
