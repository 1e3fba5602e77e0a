"""A federation of toy sites whose line to the coordinator is tapped: medfl's own rounds, channels, ledgers and noise.

The only stand-ins are the sites' data and the wire. What an attack gets is what came over the wire, what the
coordinator opened, and the model.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from toys.parts import CPU, federation_parts, local_parts, plugin

from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.rounds import Course, Rounds
from medfl.data.base import SiteData
from medfl.federation.round import Federation
from medfl.federation.summing import Summation
from medfl.learning.disclosure import Disclosure
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import SiteInfo, TrainOrder
from medfl.privacy.channels.base import CHANNELS, Channel, Guard, Message, SiteEnd, part_digest
from medfl.privacy.grid import BOUND, CLIP, Grid
from medfl.privacy.identity import Ed25519Identity
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.mechanisms.base import MECHANISMS, Facts, Mechanism, NoisePlan
from medfl.study.model import Study
from medfl.tasks.base import Task
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Transport
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS
from medfl.update.vector import FloatVector, Layout, vector_digest

DELTA = 1e-5
RUN = "run"
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Noise:
    """A privacy mechanism and its budget of epsilon (at DELTA) over so many rounds. settings: more of its
    configuration. site: what stands at a site's door."""

    kind: str
    epsilon: float
    rounds: int = 1
    epochs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    site: type[Disclosure] = Disclosure

    def mechanism(self) -> Mechanism:
        private = {"epsilon": self.epsilon, "delta": DELTA, "accept_low_utility": True, **self.settings}
        made: Mechanism = plugin(MECHANISMS, self.kind, **private)
        return made

    def plan(self, cases: Mapping[str, int], parameters: int) -> NoisePlan:
        return self.mechanism().plan(Facts(cases, parameters, self.rounds, self.epochs))


class Wire(Transport):
    """The sites, and all that they sent. sealed: each site's last payload, as it came in. plain: the same before the
    channel sealed it, which only the site itself knows."""

    def __init__(
        self,
        executor: SiteExecutor,
        sites: Mapping[str, SiteData],
        ends: Mapping[str, SiteEnd],
        disclosures: Mapping[str, Disclosure],
    ) -> None:
        self.sealed: dict[str, Payload] = {}
        self.plain: dict[str, Payload] = {}
        self._executor, self._sites, self._ends, self._disclosures = executor, sites, ends, disclosures

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        return {site: self._ends[site].answer(stage, message) for site, message in messages.items()}

    def train(
        self, orders: Sequence[TrainOrder], model: Payload, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        vector = np.frombuffer(model.buffers[0], np.float32)
        for order in orders:
            site = order.site
            disclosure = self._disclosures.get(site)
            reply = self._executor.train(self._sites[site], order, vector, {}, disclosure=disclosure)
            assert reply.payload is not None
            self.plain[site] = reply.payload
            told = part_digest(order.part, order.values, vector_digest(vector))
            self.sealed[site] = self._ends[site].seal(order.round, reply.payload, told)
            head = "" if disclosure is None else disclosure.ledger.head
            yield Delivery(replace(reply, payload=self.sealed[site], ledger=head), 0, 0)

    def open(self) -> list[SiteInfo]:
        raise NotImplementedError

    def initial_model(self) -> tuple[FloatVector, Layout]:
        return self._executor.network.store(), self._executor.network.layout

    def admit(self) -> None:
        raise NotImplementedError

    def begin(self, beginning: Any) -> Any:
        raise NotImplementedError

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        raise NotImplementedError

    def restore(self, states: Mapping[str, Arrays]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Tapped:
    """The federation. clip: a bound on updates where there is no noise."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        sites: Sequence[SiteData],
        channel: str | Channel = "clear",
        *,
        clip: float | None = None,
        noise: Noise | None = None,
        rate: float = 0.1,
        epochs: int = 1,
    ) -> None:
        data = {one.site: one for one in sites}
        self.cases = {site: one.splits["train"].cases for site, one in data.items()}
        self.executor = SiteExecutor(local_parts(task), CPU)
        self.model: FloatVector = self.executor.network.store()
        self.plan = None if noise is None else noise.plan(self.cases, self.model.size)
        made: Channel = plugin(CHANNELS, channel) if isinstance(channel, str) else channel
        disclosures = {} if noise is None else {site: self._disclosure(data[site], noise) for site in data}
        identities = {site: Ed25519Identity.generate(site) for site in data}
        roster = {site: identity.public for site, identity in identities.items()}
        ends = {site: made.site(identities[site], roster, _guard(disclosures.get(site))) for site in data}
        self.wire = Wire(self.executor, data, ends, disclosures)
        summation = self._summation(made, clip, noise)
        parts = federation_parts(rate, epochs, regulator=[], summation=summation)
        self.journal = Journal.create(folder, {})
        self.rounds = Rounds(
            run=RUN,
            federation=Federation(parts, 0, self.model),
            transport=self.wire,
            journal=self.journal,
            observer=Observer(),
            roster=roster,
            desk=None if noise is None else self._desk(noise),
            validate=None,
            code=_coded,
            decode=plugin(CODECS, "fp32").decode,
            losses=lambda model, sites, traffic: {},
        )

    def _disclosure(self, data: SiteData, noise: Noise) -> Disclosure:
        assert self.plan is not None
        ledger, samples = MemoryLedger(data.site), data.splits["train"]
        patients = sorted({samples.info(index).patient for index in range(len(samples))})
        dataset = ledger.register(patients if self.plan.unit == "patient" else [data.site])
        mechanism = noise.mechanism()
        return noise.site(data.site, "study", RUN, mechanism, self.plan, ledger, dataset)

    def _summation(self, channel: Channel, clip: float | None, noise: Noise | None) -> Summation | None:
        if noise is not None and self.plan is not None and self.plan.kind != "local":
            return Summation(channel, self.plan.clip, noise.mechanism(), self.plan)
        return None if clip is None else Summation(channel, clip)

    def _desk(self, noise: Noise) -> NoiseDesk:
        assert self.plan is not None
        ledger = MemoryLedger("coordinator")
        # of a study, the desk reads nothing but its name
        study = cast(Study, SimpleNamespace(name="study"))
        dataset = ledger.register(sorted(self.cases))
        return NoiseDesk(study, RUN, noise.mechanism(), self.plan, ledger, dataset)

    def play(self) -> None:
        """The next round."""
        outcome = self.rounds.play(self.cases, Course())
        wrong = {site: mine for site, mine in outcome.sites.items() if mine.failure}
        assert outcome.moved and not wrong, (outcome.void, wrong)
        self.model = self.rounds.federation.model

    @property
    def values(self) -> Mapping[str, float]:
        """What the last round's orders said, which everybody knows."""
        released = self.journal.release()
        assert released is not None
        found: Mapping[str, float] = released[0]["outcome"]["plan"]["values"]
        return found

    def opened(self) -> npt.NDArray[np.int64]:
        """The last sum that the coordinator opened [size], in grid units."""
        released = self.journal.release()
        assert released is not None
        return released[1].astype(np.int64)

    def without(self, others: Sequence[str]) -> npt.NDArray[np.int64]:
        """The opened sum [size] less all that these sites put in: what they and the reader of the sum know together."""
        total = self.opened()
        for site in others:
            total -= words(self.wire.plain[site])
        return total

    def grid(self) -> Grid:
        return Grid(self.values[CLIP], int(self.values[BOUND]))

    def close(self) -> None:
        self.journal.close()


def words(payload: Payload) -> npt.NDArray[np.int32]:
    """The bytes of a payload as integers of 4 bytes."""
    content = b"".join(bytes(buffer) for buffer in payload.buffers)
    return np.frombuffer(content[: len(content) // 4 * 4], np.int32)


def floats(payload: Payload) -> Values:
    """The bytes of a payload of the codec fp32 as numbers."""
    return np.frombuffer(payload.buffers[0], np.float32)


def _coded(model: FloatVector, _round: int) -> Payload:
    return plugin(CODECS, "fp32").encode(Update(model, model.size), np.random.default_rng(0))  # type: ignore[no-any-return]


def _guard(disclosure: Disclosure | None) -> Guard:
    return (lambda _context, _survivors: None) if disclosure is None else disclosure.guard
