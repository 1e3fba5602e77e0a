"""What runs at the sites' end of a transport inside one process: some sites, one network, their private states."""

import logging
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from medfl.data.base import Case, SampleSet, SiteData
from medfl.errors import Faults, InputError, MedflError, RunError
from medfl.learning.checkpoint import order_key
from medfl.learning.executor import SiteExecutor, StepDone
from medfl.learning.flat import initial_vector
from medfl.learning.messages import (
    CURRENT,
    OLD_MODELS,
    PREVIOUS,
    SINCE,
    Beginning,
    LedgerHeads,
    SiteFailure,
    SiteInfo,
    TrainOrder,
    TrainReply,
)
from medfl.learning.probe import probed
from medfl.learning.randomness import generator
from medfl.privacy.channels.base import Identity, Message
from medfl.study.build import build_codec_changes, build_codec_down, build_local, choose_device
from medfl.study.shared_images import consents
from medfl.study.sources import RunInputs, load_site_data
from medfl.tasks.base import Statistics
from medfl.transport.base import Arrays
from medfl.transport.door import SiteDoor
from medfl.transport.faults import corrupted_data, tampering
from medfl.transport.memory import Memories, Transient
from medfl.update.base import Payload
from medfl.update.beside import JOINED, parted
from medfl.update.down import receive
from medfl.update.parts import embedded
from medfl.update.submodels.base import Choice
from medfl.update.vector import FloatVector, Layout

_LATEST = 2**53
"""A round that no run comes to: what a site remembers now."""


class SiteHost:
    """Sites that share one process and one network."""

    def __init__(
        self,
        inputs: RunInputs,
        cases: Mapping[str, Sequence[Case]],
        memories: Memories | None = None,
        identities: Mapping[str, Identity] | None = None,
    ) -> None:
        self._inputs = inputs
        self._cases = cases
        self._faults = {site.name: site.fault for site in inputs.sites if site.fault is not None}
        self._data: dict[str, SiteData] = {}
        self._memories = memories or {name: Transient() for name in cases}
        self._run = ""
        self._codec = build_codec_down(inputs.study)
        self._changes = build_codec_changes(inputs.study)
        self._received: tuple[Payload, FloatVector] | None = None
        known = identities or {}
        self._doors = {name: SiteDoor(name, inputs, known.get(name), self._memories[name]) for name in cases}
        parts = build_local(inputs.study)
        self._executor = SiteExecutor(parts, choose_device(inputs.study))
        for codec in (self._codec, self._changes):
            if codec is not None:
                codec.bind(self._executor.network.layout)

    def open(self) -> list[SiteInfo]:
        """Load every site's data; InputError with the faults of all sites."""
        faults, infos, files = Faults(), [], {site.name: site for site in self._inputs.sites}
        for name, cases in self._cases.items():
            try:
                data = load_site_data(self._inputs, name, cases)
            except InputError as error:
                faults.extend(error.faults)
                continue
            infos.append(
                SiteInfo(
                    name,
                    data.cases,
                    {skipped.key: skipped.reason for skipped in data.skipped},
                    self._doors[name].public,
                    consents(files.get(name), data.lent),
                )
            )
            fault = self._faults.get(name)
            self._data[name] = corrupted_data(data, fault, self._inputs.study) if fault else data
        faults.raise_if_any(InputError)
        return infos

    def initial_model(self) -> tuple[FloatVector, Layout]:
        return initial_vector(self._executor.parts.task, self._inputs.study.seed)

    def admit(self) -> None:
        """InputError with the reasons of all sites whose policy does not allow the study."""
        faults = Faults()
        for name, door in self._doors.items():
            faults.extend(door.refusals(self._data[name]))
        faults.raise_if_any(InputError)

    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        """Let every site take up the run; the heads of their ledgers. RunError names every ledger that is older than it
        was."""
        heads, faults = dict[str, LedgerHeads](), Faults()
        self._run = beginning.run
        for memory in self._memories.values():
            memory.begin(beginning.run)
        for name, door in self._doors.items():
            try:
                found = door.begin(beginning, self._data[name])
            except RunError as error:
                faults.extend(error.faults)
            else:
                heads |= {} if found is None else {name: found}
        faults.raise_if_any(RunError)
        return heads

    def answer(self, site: str, stage: str, message: Message) -> Message | None:
        """A site's answer in the channel's protocol; None when it refuses or cannot, which is logged."""
        try:
            return self._doors[site].answer(stage, message)
        except MedflError as error:
            logging.getLogger(__name__).warning("site %s, stage %s: %s", site, stage, error)
            return None

    def receive(self, model: Payload) -> FloatVector:
        """The decoded model; decoded once for all sites of this process."""
        if self._received is None or self._received[0] is not model:
            size = self._executor.network.layout.size
            self._received = model, self._codec.decode(model, size).dense()
        return self._received[1]

    def _received_for(self, order: TrainOrder, model: Payload, state: Arrays) -> FloatVector:
        """The vector [size] that a site trains from, of what it was sent and what it has."""
        size = self._executor.network.layout.size
        if model.codec == JOINED:
            model = self._with_old_models(model, state)
        if self._changes is not None:
            return receive(model, self._changes, size, state)
        part = self._executor.parts.submodel.down(Choice(order.site, order.round, order.part), state)
        if part is None:
            return self.receive(model)
        return embedded(self._codec.decode(model, part.size), part, size).dense()

    def _with_old_models(self, payload: Payload, state: Arrays) -> Payload:
        """The model of those that came; the others are kept in the site's arrays, for the rule that wants them.
        RunError when the study asks for none."""
        model, others, about = parted(payload)
        if OLD_MODELS not in self._executor.parts.asked or not others or not others.keys() <= {PREVIOUS, CURRENT}:
            raise RunError.at("model", "comes with models beside it that the study does not ask for")
        size = self._executor.network.layout.size
        for name, other in others.items():
            state[f"{OLD_MODELS}.{name}"] = np.array(self._codec.decode(other, size).dense())
        state[f"{OLD_MODELS}.{SINCE}"] = np.array([about.get(SINCE, 0)])
        return model

    def train(
        self, order: TrainOrder, model: Payload, step_done: StepDone | None = None
    ) -> tuple[TrainReply | SiteFailure, Arrays]:
        """Train one site. What goes wrong at the site is a SiteFailure: it costs the round one site, not the run."""
        memory, door = self._memories[order.site], self._doors[order.site]
        state = memory.state(order.round)
        try:
            private = dict(state)
            vector = self._received_for(order, model, private)
            door.witness(order, vector)
            reply, after = self._trained(order, vector, private, step_done)
            return door.seal(reply), after
        except MedflError as error:
            where, what = f"site {order.site}", str(error)
            what = what if where in what else f"{where}, round {order.round}: {what}"
            return SiteFailure(order.site, order.round, what), state
        except (OSError, MemoryError, RuntimeError) as error:
            # a full disk or an accelerator out of memory; torch raises RuntimeError for the latter
            logging.getLogger(__name__).exception("site %s, round %d", order.site, order.round)
            return SiteFailure(order.site, order.round, f"{type(error).__name__}: {error}"), state

    def _trained(
        self, order: TrainOrder, vector: FloatVector, state: Arrays, step_done: StepDone | None
    ) -> tuple[TrainReply, Arrays]:
        """The reply, not sealed yet, and the site's arrays after the round. What was answered before is answered again:
        neither trained nor charged twice."""
        memory, fault = self._memories[order.site], self._faults.get(order.site)
        data, door = self._data[order.site], self._doors[order.site]
        key = ""
        if not isinstance(memory, Transient):
            key = order_key(self._run, order, vector, data.splits["train"].cases if "train" in data.splits else 0)
            known = memory.reply(key)
            if known is not None:
                return known, memory.state(order.round + 1)
        tamper = tampering(fault, order.round) if fault else None
        reply = self._executor.train(data, order, vector, state, step_done, door.disclosure, tamper, memory.checkpoints)
        memory.keep(key, reply, state)
        return reply, state

    def evaluate(self, site: str, split: str, model: Payload) -> Statistics:
        """The task's statistics of the model on a split of a site; of training images the loss alone."""
        self._doors[site].may_evaluate(split)
        samples = self._data[site].splits.get(split)
        if samples is None:
            raise RunError.at(f"site {site}", f"has no {split} split")
        vector, submodel = self.receive(model), self._executor.parts.submodel
        if "private-mask" in submodel.config.traits():
            vector = submodel.personal(vector, self._memories[site].state(_LATEST))
        return self._probe(site, samples, vector) if split == "train" else self._executor.evaluate(samples, vector)

    def _probe(self, site: str, samples: SampleSet, vector: FloatVector) -> Statistics:
        """What a schedule may know of training images: a model's loss on a group of them, drawn for each model."""
        study, empty = self._inputs.study, self._executor.parts.task.empty()
        least = getattr(study.federation.schedule, "probe_images", None)
        dealt = generator(study.seed, "probe-groups", site)
        drawn = generator(study.seed, "probe", site, zlib.crc32(vector.data))
        chosen = probed(samples, least, dealt, drawn)
        return empty | {"loss": self._executor.evaluate(samples, vector, chosen)["loss"]} if chosen else empty

    def restore(self, states: Mapping[str, Arrays]) -> None:
        for name, arrays in states.items():
            memory = self._memories.get(name)
            if isinstance(memory, Transient):
                memory.arrays = dict(arrays)
