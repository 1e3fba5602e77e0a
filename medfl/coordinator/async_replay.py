"""For an audit: train an asynchronous run's orders once more, take them in in the order that the journal recorded, and
compare the models. Needs the images of all sites, as `medfl simulate` has them."""

from pathlib import Path

from medfl.coordinator.federations import federation_for
from medfl.coordinator.journal import Journal, journal_in
from medfl.coordinator.runner import inputs_of
from medfl.errors import InputError, RunError
from medfl.federation.asynchronous.federation import AsynchronousFederation
from medfl.federation.asynchronous.replay import Answer, replay
from medfl.learning.messages import Beginning, SiteFailure, TrainOrder, TrainReply
from medfl.learning.randomness import generator
from medfl.study.build import bind_federation, build_codec_down, build_federation, sums_later
from medfl.study.sources import RunInputs, assign_cases
from medfl.transport.base import Transport
from medfl.update.base import Update
from medfl.update.vector import FloatVector


def replay_run(run: Path, inputs: RunInputs | None = None) -> FloatVector:
    """The global vector [size] that the recorded arrivals of a run folder give, from the images and the seed.

    inputs: where the images are; the run's own where they say so, as those of a simulation do.

    InputError when the folder holds no asynchronous run. RunError when a site's update differs from the one that was
    recorded (its SHA-256 is compared), or anything that follows from it.
    """
    from medfl.transport.in_process import InProcess

    inputs = inputs or inputs_of(run)
    journal = Journal.open(journal_in(run) or run / "journal.db", read_only=True)
    try:
        records, name = list(journal.rounds()), str(journal.fact("run"))
        cases = {info["name"]: info["cases"]["train"] for info in journal.fact("sites") if info["cases"].get("train")}
    finally:
        journal.close()
    if inputs.study.evaluation.public is not None:
        raise InputError.at(
            run, "judged updates on public images, which is not replayed", "compare its records by hand"
        )
    if sums_later(inputs.study):
        raise InputError.at(
            run, "opened sums of updates, and recorded none of them", "run the study again and compare the models"
        )
    transport = InProcess(inputs, assign_cases(inputs).cases)
    try:
        roster = {info.name: info.identity for info in transport.open()}
        model, layout = transport.initial_model()
        parts = build_federation(inputs.study)
        bind_federation(parts, inputs.study, layout)
        federation, _ = federation_for(inputs.study, parts, model)
        if not isinstance(federation, AsynchronousFederation):
            raise InputError.at(run, "is no asynchronous run", "rounds are replayed by running them again")
        transport.begin(Beginning(name, roster))
        replay(
            federation, records, {site: count for site, count in cases.items() if count}, _answers(transport, inputs)
        )
    finally:
        transport.close()
    return federation.model


def _answers(transport: Transport, inputs: RunInputs) -> Answer:
    codec, seed = build_codec_down(inputs.study), inputs.study.seed

    def answer(order: TrainOrder, base: FloatVector, version: int) -> TrainReply:
        coded = codec.encode(Update(base, base.size), generator(seed, "codec-down", version + 1))
        transport.submit(order, coded, 0.0)
        delivery = transport.arrival(0.0)
        if delivery is None or isinstance(delivery.answer, SiteFailure):
            what = "does not answer" if delivery is None else str(delivery.answer)
            raise RunError.at(f"site {order.site}, order {order.round}", what, "the run had an answer to it")
        return delivery.answer

    return answer
