"""What a run did, once more: the model from the initial one, the recorded arrivals, and the sites' answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medfl.errors import RunError
from medfl.federation.asynchronous.federation import Arrived, AsynchronousFederation
from medfl.federation.parts import Validate
from medfl.learning.messages import SiteFailure, TrainOrder, TrainReply
from medfl.update.vector import FloatVector

Answer = Callable[[TrainOrder, FloatVector, int], TrainReply]
"""What a site answers to an order, the model that it starts from, and that model's version."""


def replay(
    federation: AsynchronousFederation,
    records: Sequence[Mapping[str, Any]],
    cases: Mapping[str, int],
    answer: Answer,
    validate: Validate | None = None,
) -> None:
    """Take a fresh federation through the arrivals of a run's records, in their order; its model then equals the run's,
    bit for bit.

    RunError when an update (its SHA-256 is compared), its staleness or its share differs from the record: then the
    record, the answers or the software are not those of the run.
    """
    steps = [[Arrived(**arrived) for arrived in record["arrivals"]] for record in records]
    starts: dict[int, list[Arrived]] = {}
    for arrived in (each for step in steps for each in step):
        starts.setdefault(arrived.version, []).append(arrived)
    for arrivals in steps:
        step = federation.begin(cases)
        waiting = list(starts.get(federation.round, ()))
        for told in arrivals:
            _send(federation, waiting, cases)
            flight = federation.flights.get(told.site)
            if flight is None or (flight.number, flight.version) != (told.number, told.version):
                raise RunError.at(
                    f"site {told.site}, order {told.number}", "was not in flight when it is said to arrive"
                )
            if told.outcome == "failed":
                federation.fail(step, SiteFailure(told.site, told.number, "as recorded"))
            else:
                reply = answer(flight.order(), federation.base(flight), flight.version)
                federation.receive(step, reply, validate)
            _same(step.arrived[-1], told)
        _send(federation, waiting, cases)
        federation.finish(step)


def _send(federation: AsynchronousFederation, waiting: list[Arrived], cases: Mapping[str, int]) -> None:
    """Give the current version to the sites that are on record as having got it, and have no order in flight."""
    for told in list(waiting):
        if told.site not in federation.flights:
            federation.dispatch(told.site, cases)
            waiting.remove(told)


def _same(found: Arrived, told: Arrived) -> None:
    if found != told:
        raise RunError.at(f"site {told.site}, order {told.number}", f"is recorded as {told}, and replays as {found}")
