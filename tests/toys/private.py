"""The coordinator's real rounds under differential privacy, over sites that send what a test tells them to.

Real are the study's wiring, the rounds, the federation, the sum, the channel at both ends, the noise desk, the site's
disclosure, the grid and the ledgers. Toys are the sites' training, the transport and the journal.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.observer import Observer
from medfl.coordinator.rounds import Course, Rounds
from medfl.errors import RunError
from medfl.federation.outcome import RoundOutcome
from medfl.federation.round import Federation
from medfl.learning.disclosure import Disclosure
from medfl.learning.messages import Beginning, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.privacy import grid as grids
from medfl.privacy.accounting.base import Budget
from medfl.privacy.channels.base import Message, SiteEnd, part_digest
from medfl.privacy.codec import GridCodec
from medfl.privacy.grid import BIT, BOUND, CAP, CLIP, Grid
from medfl.privacy.identity import Ed25519Identity
from medfl.privacy.ledger.base import Charge, Permit
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.mechanisms.base import Mechanism
from medfl.privacy.noise import NoiseSource, system
from medfl.study.build import build_channel, build_federation, build_mechanism, build_noise_plan
from medfl.study.model import Study
from medfl.study.rules import conflicts
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Transport
from medfl.transport.door import SiteDoor
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector, Layout, vector_digest
from medfl.update.wire import as_bytes

Vector = npt.NDArray[np.float64]
View = Callable[[FloatVector], Any]
"""What an observer makes of a change of the model."""

RUN = "audit"
RNG = np.random.default_rng(0)
"""The grid codec draws nothing from it."""


def study(privacy: Mapping[str, Any], channel: str = "clear", epochs: int = 1) -> Study:
    """A study that a user could run, with this `privacy` section."""
    made = Study.model_validate(
        {
            "name": "audit",
            "task": {"kind": "classification", "classes": ["a", "b"], "class_balance": "none"},
            "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [8, 8], "channels": 1}},
            "local": {"learning_rate": 1.0, "epochs": epochs, "optimizer": {"kind": "sgd"}},
            "update": {"channel": channel},
            "federation": {"regulator": ["finite"]},
            "privacy": {"delta": 1e-5, "accept_low_utility": True, **privacy},
        }
    )
    assert not list(conflicts(made))
    return made


class CountingLedger(MemoryLedger):
    """Counts its charges."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.charged: list[Charge] = []

    def charge(self, charge: Charge, budget: Budget | None) -> Permit:
        permit = super().charge(charge, budget)
        self.charged.append(charge)
        return permit


class ToyDoor(SiteDoor):
    """A site's real door, around a disclosure with a ledger in memory."""

    def __init__(self, name: str, end: SiteEnd, disclosure: Disclosure) -> None:
        self.name = name
        self.disclosure = disclosure
        self._end = end
        self._part = ""
        self._later = {}


Train = Callable[[TrainOrder, Disclosure], TrainReply]


class ToySite:
    """A site whose change of the model, or sum of clipped gradients, is `vector`; None: it does not answer. With
    `train` it is the site's real training that decides."""

    train: Train | None = None

    def __init__(self, name: str, cases: int, end: SiteEnd, disclosure: Disclosure, size: int) -> None:
        self.name = name
        self.cases = cases
        self.model = vector_digest(np.zeros(size, np.float32))
        self.door = ToyDoor(name, end, disclosure)
        self.disclosure = disclosure
        self.vector: FloatVector | None = None
        self.sent = np.zeros(0, np.int32)
        self._last: tuple[FloatVector, dict[str, float], Payload] | None = None

    def answer(self, order: TrainOrder) -> TrainReply | SiteFailure:
        self.door._part = part_digest(order.part, order.values, self.model)
        if self.train is not None:
            reply = self.train(order, self.disclosure)
        elif self.vector is None:
            return SiteFailure(self.name, order.round, "is away")
        else:
            payload = self._same(order) or self.payload(self.vector, order)
            self._last = self.vector, dict(order.values), payload
            reply = TrainReply(self.name, order.round, payload, self.cases, 1, 1, np.nan, np.nan)
        assert reply.payload is not None
        self.sent = np.frombuffer(reply.payload.buffers[0], np.int32)
        return self.door.seal(reply)

    def _same(self, order: TrainOrder) -> Payload | None:
        """The last payload, where nothing that makes it has changed and no noise is in it."""
        if self._last is None or self.disclosure.plan.kind != "site":
            return None
        vector, values, payload = self._last
        return payload if vector is self.vector and values == order.values else None

    def payload(self, vector: FloatVector, order: TrainOrder) -> Payload:
        """As `SiteExecutor` makes it."""
        grid = Grid(order.values[CLIP], int(order.values[BOUND]))
        if self.disclosure.plan.kind == "patient":
            noisy = self.disclosure.share(vector, grid, self.disclosure.permit(order.round))
            return Payload("grid", noisy.size, (as_bytes(noisy),))
        # by its module's name, so that a test can put another in its place
        weight = grids.weight_of(self.cases, order.values[CAP])
        return GridCodec(grid, weight, int(order.values[BIT])).encode(Update(vector, vector.size), RNG)


class ToyTransport(Transport):
    def __init__(self, sites: Mapping[str, ToySite]) -> None:
        self.sites = sites

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        answers = {}
        for site, message in messages.items():
            try:
                answers[site] = self.sites[site].door.answer(stage, message)
            except RunError:
                continue
        return answers

    def train(
        self, orders: Sequence[TrainOrder], model: Payload, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        for order in orders:
            yield Delivery(self.sites[order.site].answer(order), 0, 0)

    def open(self) -> list[SiteInfo]:
        raise NotImplementedError

    def initial_model(self) -> tuple[FloatVector, Layout]:
        raise NotImplementedError

    def admit(self) -> None:
        raise NotImplementedError

    def begin(self, beginning: Beginning) -> Any:
        raise NotImplementedError

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        raise NotImplementedError

    def restore(self, states: Mapping[str, Arrays]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class WatchedFederation(Federation):
    """Notes every change of the model that anybody gets to see, with the number of charges that there were by then."""

    charges: Sequence[Charge]
    seen: list[tuple[int, FloatVector]]

    def step(self, outcome: RoundOutcome, combined: FloatVector | None, unclipped: float | None = None) -> RoundOutcome:
        # a model that wandered off would round away what is looked for
        self.model[:] = 0
        found = super().step(outcome, combined, unclipped)
        self.seen.append((len(self.charges), self.model.copy()))
        return found


class ToyJournal:
    """Keeps nothing but the last opened sum."""

    total: npt.NDArray[np.int32] | None = None

    def release(self) -> None:
        return None

    def plans(self, _round: int) -> int:
        return 1

    def note(self, *_: Any) -> None: ...

    def keep_release(self, _about: Any, total: npt.NDArray[np.int32], *_: Any) -> None:
        self.total = total


class Coordinated:
    """A run in memory. cases: of each site. size: parameters. desk, rounds: classes that a test puts in place of the
    real ones; source: of everybody's noise."""

    def __init__(
        self,
        made: Study,
        cases: Mapping[str, int],
        size: int,
        desk: type[NoiseDesk] = NoiseDesk,
        rounds: type[Rounds] = Rounds,
        source: NoiseSource = system,
    ) -> None:
        self.cases = cases
        plan = build_noise_plan(made, cases, size)
        mechanism = build_mechanism(made)
        assert plan is not None and mechanism is not None
        self.plan = plan
        self.federation = WatchedFederation(build_federation(made, plan), 0, np.zeros(size, np.float32))
        self.ledger = CountingLedger("coordinator")
        self.federation.charges, self.federation.seen = self.ledger.charged, []
        self.desk = desk(made, RUN, mechanism, plan, self.ledger, self.ledger.register(list(cases)), source)
        identities = {name: Ed25519Identity.generate(name) for name in cases}
        self.roster = {name: identity.public for name, identity in identities.items()}
        self.sites = {name: self._site(made, mechanism, identity, source) for name, identity in identities.items()}
        self.journal = ToyJournal()
        self.rounds = rounds(
            run=RUN,
            federation=self.federation,
            transport=ToyTransport(self.sites),
            journal=self.journal,  # type: ignore[arg-type]
            observer=Observer(),
            roster=self.roster,
            desk=self.desk,
            validate=None,
            code=lambda model, round_: Payload("fp32", model.size, ()),
            # sites are sent no model, and make zeros of it
            decode=lambda payload, size: Update(np.zeros(size, np.float32), size),
            losses=lambda model, sites, traffic: {},
        )

    def _site(self, made: Study, mechanism: Mechanism, identity: Ed25519Identity, source: NoiseSource) -> ToySite:
        ledger = CountingLedger(identity.name)
        dataset = ledger.register([identity.name])
        disclosure = Disclosure(identity.name, made.name, RUN, mechanism, self.plan, ledger, dataset, source)
        end = build_channel(made).site(identity, self.roster, disclosure.guard)
        size = self.federation.model.size
        return ToySite(identity.name, self.cases[identity.name], end, disclosure, size)

    def set(self, vectors: Mapping[str, FloatVector]) -> None:
        """What the sites send from now on; the others do not answer."""
        for name, site in self.sites.items():
            site.vector = vectors.get(name)

    def play(self, calls: int, view: View) -> Vector:
        """So many rounds. What an observer knows for each charge: the mean of `view` over all that it released."""
        self.federation.seen.clear()
        known: dict[int, list[Any]] = {}
        for _ in range(calls):
            outcome = self.rounds.play(self.cases, Course())
            assert not outcome.void, outcome.void
            for charge, change in self.federation.seen:
                known.setdefault(charge, []).append(view(change))
            self.federation.seen.clear()
        return np.array([np.mean(views, axis=0) for views in known.values()])

    @property
    def opened(self) -> Vector:
        """The last opened sum, noise included, in grid units."""
        assert self.journal.total is not None
        return self.journal.total.astype(np.float64)

    @property
    def grid(self) -> Grid:
        values = self.federation.plan(self.cases).values
        return Grid(values[CLIP], int(values[BOUND]))

    @property
    def bit(self) -> int:
        return int(self.federation.plan(self.cases).values[BIT])

    @property
    def claim(self) -> float:
        """The Gaussian-DP parameter that the coordinator's ledger claims for the last release."""
        event = self.ledger.charged[-1].event
        assert event.sampling_rate == 1
        return float(np.sqrt(event.steps)) / event.noise_multiplier


def names(count: int) -> tuple[str, ...]:
    return tuple(f"s{number:03d}" for number in range(count))
