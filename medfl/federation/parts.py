"""What a study puts together at the coordinator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medfl.federation.aggregation.base import Aggregator
from medfl.federation.proxy import ProxyServer
from medfl.federation.regulator.base import RegulatorRule, Score
from medfl.federation.schedule.base import Schedule
from medfl.federation.server_steps.base import ServerStep
from medfl.federation.summing import Summation
from medfl.hyperparameters.base import Hyperparameter
from medfl.update.codecs.base import Codec
from medfl.update.down import Changes
from medfl.update.gates.base import StandIn
from medfl.update.submodels.base import SubModel
from medfl.update.vector import FloatVector

Validate = Callable[[FloatVector], Score]
"""Scores a candidate model [size] on public images."""


@dataclass(frozen=True)
class FederationParts:
    """Everything a study says about what happens at the coordinator. values: hyper-parameters by dotted name.
    summation: set when updates are only ever added, as integers. quorum: updates that a round needs. stand_in: what an
    upload gate puts in the place of sites that sent nothing. submodel: bound, where sites get a part of the vector;
    None: all of it. down: where changes are sent down in place of the model. proxy: where the coordinator chooses the
    sites' old models."""

    schedule: Schedule
    codec: Codec
    regulator: Sequence[RegulatorRule]
    aggregator: Aggregator
    server: ServerStep
    values: Mapping[str, Hyperparameter]
    summation: Summation | None = None
    quorum: int = 1
    stand_in: StandIn | None = None
    submodel: SubModel | None = None
    down: Changes | None = None
    proxy: ProxyServer | None = None

    @property
    def per_client(self) -> bool:
        """Whether the sites of a round may be sent different values of the model."""
        return self.submodel is not None and "per-client" in self.submodel.config.traits()

    @property
    def compares_sites(self) -> bool:
        return any("compares-sites" in rule.config.traits() for rule in self.regulator)
