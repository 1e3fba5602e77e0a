"""LocalRule contract: a site's local objective, its gradient correction and its private state.

A study lists rules; their hooks run in that order. At most one of them may replace the loss (trait "own-loss").
`direction` corrections act on the flat gradient in place, after the loss's backward pass and before gradient clipping.
Traits: "own-loss"; "extra-gradients" (asks for gradients beside the batch's own); "client-momentum" (keeps momentum
between rounds); "sync-only" (needs the mean of the same cohort in every round) and "reads-mean" (reads that mean off
two models in a row); "common-steps" (every site must take the same number of steps); "sends-prototypes"
(gradients of single images leave with the reply, which a site's policy must allow).

Moving numbers (FedProx mu) are configuration fields of type `HyperparameterConfig`; their values of the round arrive in
`context.values` as "<kind>.<field>".
"""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfl.errors import StudyError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.memories.base import SiteState

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medfl.learning.course import Feed
    from medfl.learning.flat import FlatNetwork
    from medfl.tasks.base import Task
    from medfl.update.base import Update


def no_gradient(*_: Any) -> "Tensor":
    raise StudyError.at("local.rules", "a rule asks for a gradient where there is none to be had", "drop the rule")


@dataclass
class LocalContext:
    """What a rule may see and touch during one local training.

    network: the shared network; `network.parameters` and `network.gradient` are flat tensors [size].
    anchor: the global vector [size] as received, not to be changed. local: the network that stays at the site, or None.
    state: the site's private arrays, kept between rounds; a rule replaces them and never writes into them. values: the
    round's hyper-parameters by name. scratch: all that rules keep while they train, each under names of its own. After
    an interruption it comes back as far as it is tensors (on `device`), arrays, and optimisers that `begin` makes; with
    anything else in it the site trains the round anew.

    seed: the study's. counted: as in `TrainOrder`. omega: what the codec loses of an update (`Codec.omega`).
    full_gradient: the mean gradient [size] over all of the site's samples of the round, at the present parameters; for
    `begin`. gradient_at: the gradient [size] of the present batch at other parameters [size]; for `direction`.

    feed: the site's samples of the round; None under privacy of patients, where single samples are no rule's business.
    chosen: which of them the present batch is made of [batch]; for `loss`.
    """

    site: str
    round: int
    task: "Task"
    network: "FlatNetwork"
    anchor: "Tensor"
    local: "FlatNetwork | None"
    state: SiteState
    values: Mapping[str, float]
    steps: int
    device: "torch.device"
    scratch: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    counted: int = 0
    omega: float = 0.0
    full_gradient: "Callable[[], Tensor]" = no_gradient
    gradient_at: "Callable[[Tensor], Tensor]" = no_gradient
    feed: "Feed | None" = None
    chosen: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class LocalRule(Plugin[PluginConfig], ABC):
    """Every hook does nothing unless a rule overrides it."""

    def begin(self, context: LocalContext) -> None:
        """Before the first step of a round."""

    def loss(self, context: LocalContext, module: "nn.Module", batch: Any) -> "Tensor | None":
        """The local objective of a batch, or None to leave it to the task. Trait "own-loss" if ever not None."""
        return None

    def direction(self, context: LocalContext) -> None:
        """Correct `context.network.gradient` in place."""

    def finish(self, context: LocalContext) -> None:
        """After the last step: put what must live on into `context.state`."""

    def sent(self, context: LocalContext, update: "Callable[[], Update]") -> None:
        """After the update was coded, unless a gate kept it back. update(): what the coordinator decodes of it."""


RULES = PluginPoint(
    "local rule",
    "medfl.rules",
    {
        "sgd": "medfl.learning.rules.sgd:Sgd",
        "fedprox": "medfl.learning.rules.fedprox:FedProx",
        "distillation": "medfl.learning.rules.distillation:Distillation",
        "local_momentum": "medfl.learning.rules.local_momentum:LocalMomentum",
        "fedcomgate": "medfl.learning.rules.fedcomgate:FedComGate",
        "svrg": "medfl.learning.rules.svrg:Svrg",
        "glfc": "medfl.learning.rules.glfc:Glfc",
    },
)
