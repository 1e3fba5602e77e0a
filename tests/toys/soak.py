"""Coordinator and sites of a soak, in processes that tests kill: `python soak.py FOLDER`, commands on stdin as JSON.

    {"sites": ["s00", ..], "seconds": 0, "fault": ""}    a child with these sites' real agents, a thread each
    {"coordinator": true, "seconds": 0, "fault": ""}     a child that runs the real service until the run is over

The id of each child is printed.

Toys are the network, its training and the images; nothing imports torch. An update says who made it, for which round
and at which attempt, so the model's own numbers prove what was counted.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medfl.data.base import Case, SiteData
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.learning.checkpoint import order_key
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.privacy.channels.base import Identity, Message
from medfl.privacy.codec import GridCodec
from medfl.privacy.grid import BIT, BOUND, CAP, CLIP, Grid, weight_of
from medfl.site.agent import Agent
from medfl.site.home import SiteHome
from medfl.site.service import SiteService
from medfl.study.build import build_codec_down
from medfl.study.sources import RunInputs
from medfl.transport.door import SiteDoor
from medfl.transport.memory import SiteMemory
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import as_bytes
from toys.federations import Federation

CASES = 8
NOISE = 20_000
"""Values of an update that depend on everything: on site, round, attempt and on the model that it starts from."""
PIECE = 2**15
"""Bytes: transfers have a few pieces, so that they can be cut in the middle."""


def study(rounds: int, **sections: Any) -> dict[str, Any]:
    return {
        "name": "soak",
        "task": {"kind": "classification", "classes": ["a", "b"], "class_balance": "none"},
        "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [8, 8], "channels": 1}},
        "local": {"learning_rate": 0.01, "batch_size": 4},
        "stop": {"rounds": rounds},
        "evaluation": {"every": 1_000_000},
        "federation": {"regulator": ["finite"], "prune_after": 1_000_000},
        **sections,
    }


def names(sites: int) -> list[str]:
    return [f"s{number:02d}" for number in range(sites)]


def layout(sites: int, rounds: int) -> Layout:
    return Layout.of([("marks", (rounds, sites)), ("noise", (NOISE,))])


def change(model: FloatVector, place: tuple[int, int, int], number: int) -> FloatVector:
    """What the `number`th training of a site adds to the model. place: round, site's number, sites."""
    round_, site, sites = place
    found = np.zeros_like(model)
    found[(round_ - 1) * sites + site] = number
    tail = np.random.default_rng([round_, site, number]).standard_normal(NOISE, np.float32)
    found[-NOISE:] = tail + np.float32(0.1) * model[-NOISE:]
    return found


class ToyHost:
    """A `SiteHost` around `change`; the door, the memory and the ledger are real. kept.jsonl has a line for each answer
    that became durable. seconds: that a training takes at most."""

    seconds = 0.0

    def __init__(self, inputs: RunInputs, cases: Sequence[Case], memory: SiteMemory, identity: Identity) -> None:
        (site,) = inputs.sites
        self._name, self._cases, self._inputs, self._memory = site.name, cases, inputs, memory
        self._door = SiteDoor(self._name, inputs, identity, memory)
        self._codec = build_codec_down(inputs.study)
        self._folder = inputs.cache.parent
        self._data = SiteData(self._name, {"train": Images(len(cases))})  # type: ignore[dict-item]
        self._run = ""

    def open(self) -> list[SiteInfo]:
        return [SiteInfo(self._name, {"train": len(self._cases)}, {}, self._door.public)]

    def admit(self) -> None:
        assert not list(self._door.refusals(self._data))

    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        self._run = beginning.run
        self._sites = sorted(beginning.roster)
        self._memory.begin(beginning.run)
        heads = self._door.begin(beginning, self._data)
        return {} if heads is None else {self._name: heads}

    def answer(self, site: str, stage: str, message: Message) -> Message | None:
        assert site == self._name
        return self._door.answer(stage, message)

    def train(
        self, order: TrainOrder, model: Payload, step_done: Any = None
    ) -> tuple[TrainReply | SiteFailure, dict[str, Any]]:
        vector = self._codec.decode(model, model.size).dense()
        self._door.witness(order, vector)
        key = order_key(self._run, order, vector, CASES)
        reply = self._memory.reply(key)
        if reply is None:
            reply = self._trained(order, vector, step_done)
            self._memory.keep(key, reply, {})
            self._note("kept.jsonl", order.round, reply.steps)
        return self._door.seal(reply), {}

    def _trained(self, order: TrainOrder, vector: FloatVector, step_done: Any) -> TrainReply:
        number = self._count("begun.jsonl", order.round) + 1
        self._note("begun.jsonl", order.round, number)
        step_done(1, 2)
        time.sleep(self.seconds * float(np.random.default_rng().random()))
        place = order.round, self._sites.index(self._name), len(self._sites)
        payload = self._payload(change(vector, place, number), order)
        disclosure = self._door.disclosure
        if disclosure is not None:
            disclosure.permit(order.round)
        return TrainReply(
            site=self._name,
            round=order.round,
            payload=payload,
            cases=CASES,
            steps=number,
            epochs=1,
            loss_start=0.5,
            loss=0.5,
        )

    def _payload(self, vector: FloatVector, order: TrainOrder) -> Payload:
        if self._door.disclosure is None:
            return Payload("fp32", vector.size, (as_bytes(vector),))
        values, rng = order.values, np.random.default_rng(0)
        grid = Grid(values[CLIP], int(values[BOUND]))
        coder = GridCodec(grid, weight_of(CASES, values[CAP]), int(values[BIT]))
        return coder.encode(Update(vector, vector.size), rng)

    def _count(self, file: str, round_: int) -> int:
        return sum(found[0] == round_ for found in lines(self._folder / file))

    def _note(self, file: str, round_: int, number: int) -> None:
        with (self._folder / file).open("a") as out:
            out.write(f"[{round_}, {number}]\n")


class Images:
    def __init__(self, cases: int) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return self.cases


def lines(path: Path) -> list[Any]:
    """The whole lines of a file of JSON; a killed process may have left half of one."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("]\n")]


class Forgetful(SiteMemory):
    """The fake: a site that answers, and does not keep what it answered."""

    def __init__(self, real: SiteMemory) -> None:
        self._real = real

    def begin(self, run: str) -> None:
        self._real.begin(run)

    def reply(self, key: str) -> None:
        return None

    def state(self, round_: int) -> dict[str, Any]:
        return {}

    def keep(self, key: str, reply: TrainReply, state: Mapping[str, Any]) -> None: ...

    def opening(self, round_: int, survivors: tuple[str, ...]) -> None:
        self._real.opening(round_, survivors)

    def answered(self, order: int) -> None:
        return None

    def handing_over(self, order: int, round_: int, told: str) -> None:
        self._real.handing_over(order, round_, told)

    @property
    def checkpoints(self) -> None:
        return None


def forgetful_host(inputs: RunInputs, cases: Sequence[Case], memory: SiteMemory, identity: Identity) -> ToyHost:
    return ToyHost(inputs, cases, Forgetful(memory), identity)


class ToyService(SiteService):
    make: Any = ToyHost

    def _party(self) -> Agent:
        return Agent(SiteHome.open(self._folder), self._credentials.identity, make=self.make)


class ForgetfulService(ToyService):
    make = staticmethod(forgetful_host)


class Soaked(Federation):
    """Homes of a coordinator and its sites, who call by way of `public_port`."""

    def __init__(self, folder: Path, sites: int, rounds: int, public_port: int, **sections: Any) -> None:
        super().__init__(folder, names(sites))
        self.study_file.write_text(yaml.safe_dump(study(rounds, **sections)))
        self.public_port = public_port
        self.rounds_wanted = rounds

    def images(self) -> None:
        """Lists of images that nobody opens."""
        (self.folder / "sites").mkdir(exist_ok=True)
        for site in self.sites:
            folder = self.folder / "data" / site
            folder.mkdir(parents=True)
            training = [{"image": f"{number}.png", "label": number % 2} for number in range(CASES)]
            for entry in training:
                (folder / str(entry["image"])).touch()
            about = {"name": "soak", "task": "classification", "labels": {"0": "a", "1": "b"}, "training": training}
            (folder / "datalist.json").write_text(json.dumps(about))
            given = {"name": site, "data": f"../data/{site}", "policy": {"approve": "allowed"}}
            (self.folder / "sites" / f"{site}.yaml").write_text(yaml.safe_dump(given))

    def admit(self) -> None:
        from medfl.coordinator.settings import CoordinatorHome, CoordinatorSettings

        settings = CoordinatorSettings(
            name="lead",
            listen="127.0.0.1",
            port=self.port,
            enrol_port=self.enrol_port,
            addresses=("127.0.0.1",),
            public_port=self.public_port,
        )
        home = CoordinatorHome.create(self.home, self.study_file, settings)
        register = home.register(home.authority(), lambda kind, detail: None)
        for site in self.sites:
            self.enrol(site, home, register)
        register.close()


# the processes


def run_sites(folder: Path, sites: Sequence[str], fault: str) -> None:
    kind = ForgetfulService if fault == "forgets" else ToyService
    services = [kind(folder / "homes" / site) for site in sites]
    threads = [threading.Thread(target=service.run) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_coordinator(folder: Path, fault: str) -> None:
    from medfl.coordinator import service as services
    from medfl.coordinator.observer import Observer

    if fault == "twice":
        _count_twice()
    service = services.CoordinatorService(folder / "coordinator", Observer())
    rounds, sites = service.study.stop.rounds, len(list((folder / "homes").iterdir()))
    shape = layout(sites, rounds)
    services.initial_model = lambda made: lambda: (np.zeros(shape.size, np.float32), shape)  # type: ignore[assignment]
    try:
        service.open()
        service.run()
    finally:
        service.close()


def _count_twice() -> None:
    """The fake: a coordinator that counts the first answer of a round again."""
    from medfl.federation.open_round import OpenRound
    from medfl.transport.remote import Remote

    train, expect = Remote.train, OpenRound._expect

    def doubled(self: Remote, *asked: Any) -> Any:
        first = True
        for delivery in train(self, *asked):
            if first:
                yield delivery
            first = False
            yield delivery

    def careless(self: OpenRound, site: str, round_: int) -> None:
        if site not in self.outcome.sites:
            expect(self, site, round_)

    Remote.train, OpenRound._expect = doubled, careless  # type: ignore[method-assign]


def child(folder: Path, command: Mapping[str, Any]) -> None:
    name = "sites.log" if "sites" in command else "coordinator.log"
    log = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ToyHost.seconds = command["seconds"]
    if "sites" in command:
        run_sites(folder, command["sites"], command["fault"])
    else:
        run_coordinator(folder, command["fault"])
        (folder / "over").touch()


def main() -> None:
    """Forks children: what they need is imported once, and no thread runs here."""
    import medfl.coordinator.service
    import medfl.transport.mail
    import medfl.transport.parcels

    medfl.transport.parcels.CHUNK = PIECE
    AGGREGATORS.default("weighted_mean")
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                child(folder, json.loads(line))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.write(1, f"{pid}\n".encode())


if __name__ == "__main__":
    main()
