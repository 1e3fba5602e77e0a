"""SubModel contract: which part of the vector travels and trains in a round (`medfl.update.parts`).

Traits: "fixed", "per-round" or "per-client" (do all sites of a round have the same coordinates?); "own-factors" (sites
have subspaces of their own, but all of each update is known); "mixes-coordinates" (training moves in directions that
are not coordinates); "needs-losses" (the coordinator learns from the sites' training losses); "private-mask" (the
coordinates tell of a site's data); "needs-measure" (the site measures the received model before it trains);
"trains-all" (only what is sent is a part); "tells-places" (the notice names coordinates that a site would send: it
leaves in the clear beside sealed values).

One round, with `None` for "the whole vector" everywhere:

    coordinator                                    site
    choice = chooser.choose(site, round, rng)
    down = chooser.down(choice)
    taken(model, down), choice.content   ->        down = submodel.down(choice, state)
                                                   start = submodel.begin(choice, received, state, measure)
                                                   train from start.values, moving start.trains alone
    up = chooser.up(choice, notice)      <-        taken(values - received, start.sends)
    embedded(update, up)                           notice = submodel.notice(choice, start, ahead)
    chooser.learn(round, losses)                   at the end of the round

Only `choice.content` (small JSON) and the notice (bytes, mostly none) travel beside the values. An update is always
measured from what the site received, also where training starts elsewhere. Memories hold their residual in the
coordinates of the whole vector; what lies outside `start.sends` waits there until it can be sent.

A `SubModel` holds nothing that moves: the coordinator's state is in its `Chooser`, a site's in its private state.
"""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.memories.base import SiteState
from medfl.update.parts import Part
from medfl.update.submodels.units import Units
from medfl.update.vector import FloatVector, Layout

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
    """How a site begins a round. values: the vector [size] that training starts from. trains: the part that may move.
    sends: the part of the change that is sent. notice: what the coordinator must be told of it with the reply."""

    values: FloatVector
    trains: Part | None = None
    sends: Part | None = None
    notice: bytes = b""


class SubModel(Plugin[PluginConfig], ABC):
    """Whatever a plug-in does not override is the whole vector."""

    whole_down: ClassVar[bool] = False
    """Whether sites get the whole model, and only what they send is a part."""

    _setup: Setup | None = None

    def bind(self, setup: Setup) -> None:
        """Told once, before anything else."""
        self._setup = setup

    @property
    def setup(self) -> Setup:
        if self._setup is None:
            raise RunError.at(f"sub-model {self.config.kind}", "was not told of the network", "bind it first")
        return self._setup

    def part(self, choice: Choice) -> Part | None:
        """The part that a choice stands for, at either end; RunError when its content is not a choice of this
        sub-model."""
        return None

    def chooser(self) -> "Chooser":
        """The coordinator's end, at its start."""
        return Chooser(self)

    def down(self, choice: Choice, state: SiteState) -> Part | None:
        """At the site: which part the received values are. Default: the choice's, unless `whole_down`."""
        return None if self.whole_down else self.part(choice)

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        """At the site: how training starts from `received` [size], which is zero where nothing came and is not to be
        changed. `state` is updated in place. Default: the part of the choice trains and is sent."""
        part = self.part(choice)
        return Start(received, part, part)

    def notice(self, choice: Choice, start: Start, ahead: Callable[[], FloatVector]) -> bytes:
        """At the site, once its update is coded: what the coordinator is told with the reply. ahead: the vector [size]
        that the site would send in another round with the same change, with what its memory kept back of this one.
        Default: what was known at the start."""
        return start.notice

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

    def down(self, choice: Choice) -> Part | None:
        """What of the model is sent. Default: the part of the choice, unless `whole_down`."""
        return None if self.submodel.whole_down else self.submodel.part(choice)

    def hear(self, choice: Choice, notice: bytes) -> None:
        """Take in what a site tells with its reply; enough where nobody sees its values. RunError when the notice is
        not one that this site may send: nothing was changed then, and the reply is to be refused. The same again
        changes nothing more: a round whose sum was opened before the process died is gone through again."""
        refuse_notice(choice, notice)

    def up(self, choice: Choice, notice: bytes) -> Part | None:
        """Which part the values of a reply are, once it was heard."""
        self.hear(choice, notice)
        return self.submodel.part(choice)

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
            f"its reply says {len(notice)} bytes about its part, none are expected",
        )


SUBMODELS = PluginPoint(
    "sub-model",
    "medfl.submodels",
    {
        "full": "medfl.update.submodels.full:Full",
        "afd": "medfl.update.submodels.afd:Afd",
        "seeded_mask": "medfl.update.submodels.seeded_mask:SeededMask",
        "low_rank": "medfl.update.submodels.low_rank:LowRank",
        "last_aggregate": "medfl.update.submodels.last_aggregate:LastAggregate",
        "union": "medfl.update.submodels.union:Union",
        "lottery": "medfl.update.submodels.lottery:Lottery",
    },
)
