"""The private part of each site that one process trains for: a sampler a site, and one engine for all of them."""

import logging

from medfl.data.base import SampleSet
from medfl.learning.disclosure import Disclosure
from medfl.learning.flat import FlatNetwork
from medfl.learning.patients.base import PatientEngine
from medfl.learning.patients.choice import choose
from medfl.learning.patients.private_sgd import PrivateSgd
from medfl.learning.patients.sampling import PatientIndex, PatientSampler, Sampling
from medfl.tasks.base import Task

log = logging.getLogger(__name__)


class PrivateSites:
    """Each site's private training, made when it is first asked for."""

    def __init__(self, network: FlatNetwork, task: Task) -> None:
        self._network = network
        self._task = task
        self._engine: PatientEngine | None = None
        self._made: dict[str, PrivateSgd] = {}

    def of(self, samples: SampleSet, disclosure: Disclosure) -> PrivateSgd:
        """The private training of the disclosure's site, whose samples these are. The first site's patients decide
        about the engine."""
        if disclosure.site not in self._made:
            config = disclosure.sampling
            sampling = Sampling(config.sampling_rate, config.views, config.images)
            sampler = PatientSampler(samples, PatientIndex.of(samples), sampling)
            if self._engine is None:
                self._engine, reason = choose(config.engine, self._network, self._task, sampler.examples())
                log.info("per-patient gradients by %s: %s", self._engine.name, reason)
            patients = disclosure.plan.patients[disclosure.site]
            clip, step = disclosure.plan.clip, disclosure.fine.step
            self._made[disclosure.site] = PrivateSgd(self._engine, sampler, clip, patients, step)
        return self._made[disclosure.site]
