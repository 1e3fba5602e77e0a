"""For an audit: train an asynchronous run's orders once more, take them in in the order that the journal recorded, and
compare the models. Needs the images of all sites, as `medfl simulate` has them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from medfl.coordinator.federations import federation_for
from medfl.coordinator.journal import Journal, journal_in
from medfl.coordinator.runner import inputs_of
from medfl.errors import Faults, InputError, RunError
from medfl.federation.asynchronous.federation import AsynchronousFederation
from medfl.federation.asynchronous.replay import Answer, replay
from medfl.learning.messages import Beginning, SiteFailure, SiteInfo, TrainOrder, TrainReply
from medfl.learning.randomness import generator
from medfl.study.build import bind_federation, build_codec_down, build_federation, build_task
from medfl.study.model import Study
from medfl.study.sources import RunInputs, assign_cases
from medfl.transport.base import Transport
from medfl.update.base import Update
from medfl.update.vector import FloatVector
from medfl.update.wire import as_bytes

Watch = Callable[[str, int, int], None]
"""Who watches a replay: called with (site, its order's number, answers in all) before an order is trained again."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What the recorded answers of a run give. model: the global vector [size]. recorded: SHA-256 of the journal's, as
    in evidence. steps: server steps; answers: of sites, trained again."""

    model: FloatVector
    recorded: str
    steps: int
    answers: int

    @property
    def digest(self) -> str:
        return sha256(as_bytes(self.model)).hexdigest()

    @property
    def same(self) -> bool:
        """Whether the model is the journal's, bit for bit."""
        return self.digest == self.recorded


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a journal says of its run. cases: training cases of the sites that trained."""

    name: str
    records: Sequence[Mapping[str, Any]]
    cases: Mapping[str, int]
    recorded: str

    @property
    def answers(self) -> int:
        return sum(arrived["outcome"] != "failed" for record in self.records for arrived in record["arrivals"])


def replay_run(run: Path, inputs: RunInputs | None = None, watch: Watch | None = None) -> Replay:
    """The global vector that the recorded arrivals of a run folder give, from the images and the seed.

    inputs: where the images are; the run's own where they say so, as those of a simulation do.

    InputError when the folder holds no asynchronous run, or the images are not those of the run. RunError when a site's
    update differs from the one that was recorded (its SHA-256 is compared), or anything that follows from it.
    """
    from medfl.transport.in_process import InProcess

    inputs = inputs or inputs_of(run)
    federation = _fresh(inputs.study, run)
    kept = _kept(run)
    transport = InProcess(inputs, assign_cases(inputs).cases)
    with closing(transport):
        sites = transport.open()
        _require_images(kept, sites)
        transport.begin(Beginning(kept.name, {info.name: info.identity for info in sites}))
        replay(federation, kept.records, kept.cases, _answers(transport, inputs, kept.answers, watch))
    return Replay(federation.model, kept.recorded, len(kept.records), kept.answers)


def _fresh(study: Study, run: Path) -> AsynchronousFederation:
    """The federation before its first step; InputError where its study cannot be replayed."""
    from medfl.learning.flat import initial_vector

    if study.evaluation.public is not None:
        raise InputError.at(
            run, "judged updates on public images, which is not replayed", "compare its records by hand"
        )
    if study.sums_later:
        raise InputError.at(
            run, "opened sums of updates, and recorded none of them", "run the study again and compare the models"
        )
    model, layout = initial_vector(build_task(study), study.seed)
    parts = build_federation(study)
    bind_federation(parts, study, layout)
    federation, _ = federation_for(study, parts, model)
    if not isinstance(federation, AsynchronousFederation):
        raise InputError.at(run, "is no asynchronous run", "rounds are replayed by running them again")
    return federation


def _kept(run: Path) -> _Kept:
    with closing(Journal.open(journal_in(run) or run / "journal.db", read_only=True)) as journal:
        state = journal.state()
        if state is None:
            raise InputError.at(run, "has no committed step yet", "wait for one")
        plain, arrays = state
        # a run that goes on may have committed more since
        records = list(journal.rounds())[: plain["round"]]
        cases = {info["name"]: info["cases"]["train"] for info in journal.fact("sites") if info["cases"].get("train")}
        return _Kept(str(journal.fact("run")), records, cases, sha256(as_bytes(arrays["model"])).hexdigest())


def _require_images(kept: _Kept, sites: Sequence[SiteInfo]) -> None:
    """InputError with every site that trained on other images than there are, as far as their number tells."""
    faults, found = Faults(), {info.name: info.cases.get("train", 0) for info in sites}
    for site, count in kept.cases.items():
        if found.get(site, 0) != count:
            what = f"trained on {count} cases in the run, and {found.get(site, 0)} are here"
            faults.add(f"site {site}", what, "give the images of all sites, as they were")
    faults.raise_if_any(InputError)


def _answers(transport: Transport, inputs: RunInputs, count: int, watch: Watch | None) -> Answer:
    codec, seed = build_codec_down(inputs.study), inputs.study.seed

    def answer(order: TrainOrder, base: FloatVector, version: int) -> TrainReply:
        if watch is not None:
            watch(order.site, order.round, count)
        coded = codec.encode(Update(base, base.size), generator(seed, "codec-down", version + 1))
        transport.submit(order, coded, 0.0)
        delivery = transport.arrival(0.0)
        if delivery is None or isinstance(delivery.answer, SiteFailure):
            what = "does not answer" if delivery is None else str(delivery.answer)
            raise RunError.at(f"site {order.site}, order {order.round}", what, "the run had an answer to it")
        return delivery.answer

    return answer
