"""The federation of a study, and the rounds that go with it."""

from functools import partial

from medfl.coordinator.async_rounds import AsyncRounds
from medfl.coordinator.rounds import Rounds
from medfl.coordinator.summed_rounds import SummedRounds
from medfl.federation.asynchronous.base import Asynchronous
from medfl.federation.asynchronous.federation import AsynchronousFederation
from medfl.federation.asynchronous.summed import SummedFederation
from medfl.federation.parts import FederationParts
from medfl.federation.round import Federation
from medfl.study.build import steps_of
from medfl.study.model import Study
from medfl.update.vector import FloatVector


def federation_for(study: Study, parts: FederationParts, model: FloatVector) -> tuple[Federation, type[Rounds]]:
    if not isinstance(parts.schedule, Asynchronous):
        return Federation(parts, study.seed, model), Rounds
    planned = partial(steps_of, study)
    if parts.summation is None:
        return AsynchronousFederation(parts, study.seed, model, planned), AsyncRounds
    return SummedFederation(parts, study.seed, model, planned), SummedRounds
