"""SubModel contract: which coordinates of the vector travel and train in a round.

Traits: "fixed", "per-round" or "per-client" (do all sites of a round have the same coordinates?); "needs-losses" (the
coordinator learns from the sites' training losses); "private-mask" (the coordinates tell of a site's data);
"needs-measure" (the site measures the received model before it trains); "trains-all" (only what is sent is a part).

One round, with `None` for "all coordinates" everywhere:

    coordinator                                    site
    choice = chooser.choose(site, round, rng)
    down = chooser.down(choice)
    model[down], choice.content          ->        down = submodel.down(choice, state)
                                                   start = submodel.begin(choice, received, state, measure)
                                                   train from start.values, moving start.trains alone
    up = chooser.up(choice, notice)      <-        (values - received)[start.sends], start.notice
    chooser.learn(round, losses)                   at the end of the round

Only `choice.content` (small JSON) and `start.notice` (bytes, mostly none) travel beside the values, never positions.
`taken` and `embedded` go between the vector and the values that travel. An update is always measured from what the
site received, also where training starts elsewhere. Memories hold their residual in the coordinates of the whole
vector; what lies outside `start.sends` waits there until it is sent again.

A `SubModel` holds nothing that moves: the coordinator's state is in its `Chooser`, a site's in its private state.
"""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update
from medfl.update.memories.base import SiteState
from medfl.update.submodels.units import Units
from medfl.update.vector import FloatVector, Layout

Coordinates = npt.NDArray[np.int64]
"""Positions in the vector, strictly increasing."""

Measure = Callable[[FloatVector], float]
"""The task's primary metric (larger is better) of a model [size] on the site's validation cases; NaN without any."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What both ends know of a run before its first round, the same at each.

    seed: the study's. units: which filters the network can do without (`medfl.learning.filters`), made when a
    sub-model asks. initial: the model [size] that the run began with.
    """

    layout: Layout
    seed: int
    units: Callable[[], Units]
    initial: Callable[[], FloatVector]


@dataclass(frozen=True, slots=True)
class Choice:
    """One site's part of one round. content: JSON-able, and to a site it comes from a peer."""

    site: str
    round: int
    content: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """How a site begins a round. values: the vector [size] that training starts from. trains: the coordinates that
    may move. sends: those whose change is sent. notice: what the coordinator must be told with the reply."""

    values: FloatVector
    trains: Coordinates | None = None
    sends: Coordinates | None = None
    notice: bytes = b""


class SubModel(Plugin[PluginConfig], ABC):
    """Whatever a plug-in does not override is the whole vector."""

    _setup: Setup | None = None

    def bind(self, setup: Setup) -> None:
        """Told once, before anything else."""
        self._setup = setup

    @property
    def setup(self) -> Setup:
        if self._setup is None:
            raise RunError.at(f"sub-model {self.config.kind}", "was not told of the network", "bind it first")
        return self._setup

    def coordinates(self, choice: Choice) -> Coordinates | None:
        """The coordinates that a choice stands for, at either end; RunError when its content is not a choice of this
        sub-model."""
        return None

    def chooser(self) -> "Chooser":
        """The coordinator's end, at its start."""
        return Chooser(self)

    def down(self, choice: Choice, state: SiteState) -> Coordinates | None:
        """At the site: where the received values lie. Default: they are the coordinates of the choice."""
        return self.coordinates(choice)

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        """At the site: how training starts from `received` [size], which is zero where nothing came and is not to be
        changed. `state` is updated in place. Default: the coordinates of the choice train and are sent."""
        coordinates = self.coordinates(choice)
        return Start(received, coordinates, coordinates)

    def personal(self, model: FloatVector, state: SiteState) -> FloatVector:
        """What a site has for itself of a model [size]; the model, unless the site has a mask of its own."""
        return model


class Chooser:
    """The coordinator's end of a sub-model, and its state. Default: nothing to choose, to learn or to keep."""

    def __init__(self, submodel: SubModel) -> None:
        self.submodel = submodel

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        """A site's part of a round; the same when it is asked again. rng: of this site and round."""
        return Choice(site, round_)

    def down(self, choice: Choice) -> Coordinates | None:
        """What of the model is sent. Default: the coordinates of the choice."""
        return self.submodel.coordinates(choice)

    def up(self, choice: Choice, notice: bytes) -> Coordinates | None:
        """Where the values of a reply lie. RunError when the notice is not one that this site may send: nothing was
        changed then, and the reply is to be refused. Asked again with the same notice, the answer is the same."""
        refuse_notice(choice, notice)
        return self.submodel.coordinates(choice)

    def learn(self, round_: int, losses: Mapping[str, float]) -> None:
        """At the end of a round: the training losses of the sites whose updates were admitted."""

    def moved(self, change: FloatVector) -> None:
        """Before the server step: the combined change [size] of the round, not to be kept or changed."""

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Everything needed to go on: a JSON-able part, and arrays by name."""
        return {}, {}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from `state()`, exactly. The arrays are copied."""


def refuse_notice(choice: Choice, notice: bytes) -> None:
    """RunError unless the notice is empty."""
    if notice:
        raise RunError.at(
            f"site {choice.site}, round {choice.round}",
            f"its reply says {len(notice)} bytes about its coordinates, none are expected",
        )


def taken(vector: FloatVector, coordinates: Coordinates | None) -> FloatVector:
    """The values [k] that travel of a vector [size]; the vector itself when all of it does."""
    return vector if coordinates is None else vector[coordinates]


def embedded(update: Update, coordinates: Coordinates | None, size: int) -> Update:
    """The update of a vector of `size` values whose values [k] at `coordinates` [k] are `update`, itself dense or
    sparse; RunError when it is of another length."""
    expected = size if coordinates is None else coordinates.size
    if update.size != expected:
        raise RunError.at("update", f"is of {update.size} values, the site's part of the vector has {expected}")
    if coordinates is None:
        return update
    return Update(update.values, size, coordinates if update.indices is None else coordinates[update.indices])


SUBMODELS = PluginPoint(
    "sub-model",
    "medfl.submodels",
    {
        "full": "medfl.update.submodels.full:Full",
        "afd": "medfl.update.submodels.afd:Afd",
        "seeded_mask": "medfl.update.submodels.seeded_mask:SeededMask",
        "last_aggregate": "medfl.update.submodels.last_aggregate:LastAggregate",
        "lottery": "medfl.update.submodels.lottery:Lottery",
    },
)
