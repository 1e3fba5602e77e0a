"""GLFC, federated class-incremental learning (Dong et al., "Federated Class-Incremental Learning", CVPR 2022): new
classes come, the images of old ones are gone, and the model must not forget them.

    loss     (1 - a) L_GC + a L_RD                                     a = `distillation`; L_GC alone in the first task
    L_GC     mean of w_i BCE(z_i, onehot(y_i)),  w_i = |sigma(z_i,y) - 1|, at mean 1 over the batch's samples of old
             classes and over those of new ones: what is learned slowly, and what is left of old classes, counts more
    L_RD     mean of BCE(z_i, t_i),  t_i = onehot(y_i) at the classes that are new at the site, the old model's
             sigma(z) at all others

The data come from the data plan `class_stream`. At the end of each round the site chooses exemplars of its present
classes by herding (`memory` in all, equally many a class; variants made by augmentation count as samples). When the
task switches, its classes become old, and the best global model so far becomes the old model. With `detect: plan` the
plan announces switches. With `detect: entropy` the site finds them: the received model's mean prediction entropy on
new samples rises by more than `rise` * ln(classes) since the site's last round; before the next one it must fall.

The network has the outputs of all classes from the start and nothing is masked: those still to come are trained
towards 0, as any class that a sample is not of. Entropy then rises less at a switch than with a head that grows, hence
the smaller default of `rise`. Class balance of the task (`task.class_balance`) is not applied: w_i is in its place.

With `old_model: own`, which differs from the paper, each site chooses the old model by the loss on its own exemplars,
and no bytes are added. State at a site: two vectors (the old model, and the best one since) and the exemplars' indices;
no image is copied. A round costs two passes over the exemplars, one over new samples (two with `detect: entropy`) and,
once there is an old model, one over all.

With `old_model: proxy`, as in the paper, the coordinator chooses. In its first round and at each switch a site sends
the gradient of a small common encoder (LeNet; drawn from the study's seed, never trained) for one image of each class
that is new to it: the one nearest to the class's mean, perturbed through noisy features. It sends the same gradients
again with each update until one of them counted, as one that is refused or late does not. The coordinator's proxy
server rebuilds images from these gradients (`rebuilt_images` a class in all, L-BFGS), scores each round's model on
them, and keeps the best of the federation's present task and of the one before. Both come to the site with its next
order, and it distils from the best of the task that it has left; in the round of the switch, from the model that it
received.

**This leaks on purpose.** A gradient gives its class away (the last layer's row with the least sum), and the image: the
coordinator rebuilds it, and its journal keeps what was rebuilt. The noise follows the study's seed and protects nobody.
A hospital's policy must allow it (`prototypes_may_leave`; simulations need not be told), and nothing that is to hide
single updates goes with it. Of a class a site never shows a second image in a run, also when it is asked for a round
again. Bytes: 4 a value of the encoder and new class up, at a switch; two models down, once after. The encoder has 11
thousand values and 769 a class for grey images of 32 pixels. State at a site: the gradients until they counted, and a
digest a class. State at the coordinator: two vectors and the images. Work there: `rebuilt_images` times
`rebuild_iterations` gradients a class in the whole run, whoever sends how much, and one pass over the images a round.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from medfl.data.plans.class_stream import EXEMPLARS
from medfl.learning.exemplars import Indices, features, given, outputs, renewed
from medfl.learning.messages import CURRENT, OLD_MODELS, PREVIOUS, PROTOTYPES, SINCE
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_NEW, _OLD, _STAGE, _ENTROPY = "glfc.new_classes", "glfc.old_classes", "glfc.stage", "glfc.entropy"
_BEST_MODEL, _OLD_MODEL = "glfc.best_model", "glfc.old_model"
_ROUND, _LEFT = "glfc.round", "glfc.left"
_OFFER, _OFFERED = "glfc.offer", "glfc.offered"
_TARGETS, _IS_OLD = "glfc.targets", "glfc.is_old"


class GlfcConfig(PluginConfig):
    kind: Literal["glfc"] = "glfc"
    memory: int = Field(2000, ge=0, description="exemplars of a site in all, at least one a class; 0 keeps none")
    distillation: float = Field(0.5, ge=0, le=1, description="weight of L_RD")
    detect: Literal["plan", "entropy"] = Field("plan", description="who tells a site that the task switched")
    rise: float = Field(
        0.1, gt=0, description="with detect: entropy, in units of ln(classes); the paper's 1.2 for 100 classes is 0.26"
    )

    old_model: Literal["own", "proxy"] = Field(
        "own", description="who chooses the old model: each site, or the coordinator by images that it rebuilds"
    )
    prototype_size: int = Field(
        32, ge=4, le=128, description="with old_model: proxy, pixels of each axis of images as the encoder sees them"
    )
    prototype_noise: float = Field(
        0.1, ge=0, description="with old_model: proxy, noise on features, in deviations of the class; protects nobody"
    )
    rebuilt_images: int = Field(
        20, ge=1, le=200, description="with old_model: proxy, attempts at images of a class in the whole run"
    )
    rebuild_iterations: int = Field(250, ge=1, le=10_000, description="with old_model: proxy, of L-BFGS for an image")

    def traits(self) -> frozenset[str]:
        found = {"own-loss", "needs-stream"}
        return frozenset(found | {"sends-prototypes"} if self.old_model == "proxy" else found)


class Glfc(LocalRule):
    Config = GlfcConfig
    config: GlfcConfig

    def begin(self, context: LocalContext) -> None:
        state, feed = context.state, given(context)
        first, best = _STAGE not in state, self._best(context)
        old, new = _classes(context, _OLD), _classes(context, _NEW)
        switched = self._switched(context)
        if switched:
            old, new = np.union1d(old, new), np.zeros(0, np.int64)
            state[_OLD_MODEL] = best
        present = np.unique(feed.labels[feed.indices])
        state[_OLD], state[_NEW] = old, np.setdiff1d(np.union1d(new, present), old)
        if self.config.old_model == "own":
            state[_BEST_MODEL] = best
        else:
            # of a site that lost its arrays of a round that counted, that round was heard
            known = context.counted <= state.get(_ROUND, np.zeros(1))[0]
            _take_chosen(context, switched)
            self._propose(context, state[_NEW].tolist() if known and (first or switched) else [])
        self._prepare(context)

    def _propose(self, context: LocalContext, classes: Sequence[int]) -> None:
        """Leave what the proxy server is told of these classes among what is sent, after what it was told of others in
        updates that did not count."""
        import torch

        from medfl.learning.prototypes import prototypes

        state = context.state
        rows, rounds = state.pop(_OFFER, None), state.pop(_OFFERED, np.zeros(0, np.int64))
        waits = rounds > context.counted
        offer, rounds = [] if rows is None else [rows[waits]], rounds[waits]
        found, _ = prototypes(context, classes, self.config.prototype_size, self.config.prototype_noise)
        if len(found):
            offer.append(found.numpy())
            rounds = np.append(rounds, np.full(len(found), context.round))
        if len(rounds):
            state[_OFFER], state[_OFFERED] = np.concatenate(offer), rounds
            context.scratch[PROTOTYPES] = torch.from_numpy(state[_OFFER])

    def _switched(self, context: LocalContext) -> bool:
        """Whether the site's task is another than in its last round; False in its first."""
        state, stage = context.state, np.array([given(context).stage])
        before, state[_STAGE] = state.get(_STAGE), stage
        if self.config.detect == "plan":
            return before is not None and bool(before != stage)
        entropy = mean_entropy(outputs(context, _fresh(context)))
        last, waits = state.get(_ENTROPY, np.array([entropy, 0.0]))
        rose = entropy - last > self.config.rise * np.log(len(context.task.config.classes))
        # it may go on rising in the new task's first rounds, which is the same switch
        state[_ENTROPY] = np.array([entropy, float(rose or (waits and entropy >= last))])
        return bool(rose and not waits)

    def _best(self, context: LocalContext) -> Any:
        """Of the model received and the best one before it, that with the lower loss on the site's exemplars."""
        received = context.anchor.to("cpu", copy=True).numpy()
        # with a proxy server there is never one before
        before, kept = context.state.get(_BEST_MODEL), context.state.get(EXEMPLARS)
        if before is None or kept is None or not kept.size:
            return received
        return min(received, before, key=lambda model: _loss_on(context, model, kept[0]))

    def _prepare(self, context: LocalContext) -> None:
        """The old model's targets of the round's samples."""
        import torch

        feed, classes = given(context), len(context.task.config.classes)
        is_old = torch.zeros(classes, dtype=torch.bool)
        is_old[torch.from_numpy(context.state[_OLD])] = True
        context.scratch[_IS_OLD] = is_old.to(context.device)
        if _OLD_MODEL not in context.state or not self.config.distillation:
            return
        targets = _onehot(context, feed.indices)
        others = np.setdiff1d(np.arange(classes), context.state[_NEW])
        soft = _outputs_of(context, context.state[_OLD_MODEL], feed.indices).sigmoid()
        targets[:, others] = soft[:, others]
        table = torch.zeros(len(feed.labels), classes, device=context.device)
        table[torch.from_numpy(feed.indices).to(context.device)] = targets
        context.scratch[_TARGETS] = table

    def loss(self, context: LocalContext, module: "nn.Module", batch: Any) -> "Tensor":
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as bce

        logits = context.task.logits(module, batch)
        labels = torch.from_numpy(given(context).labels[context.chosen]).to(logits.device)
        hard = compensated(logits, _onehot(context, context.chosen), context.scratch[_IS_OLD][labels])
        if _TARGETS not in context.scratch:
            return hard
        targets = context.scratch[_TARGETS][torch.from_numpy(context.chosen).to(logits.device)]
        share = self.config.distillation
        return (1 - share) * hard + share * bce(logits, targets)

    def finish(self, context: LocalContext) -> None:
        feed, state = given(context), context.state
        known = len(state[_NEW]) + len(state[_OLD])
        each = max(1, self.config.memory // known) if self.config.memory else 0
        fresh = feed.indices[np.isin(feed.labels[feed.indices], state[_NEW])]
        kept = state.get(EXEMPLARS, np.zeros((2, 0), np.int64))
        state[EXEMPLARS] = renewed(kept, feed.labels, fresh, each, lambda: features(context, fresh))


def _take_chosen(context: LocalContext, switched: bool) -> None:
    """Make the proxy server's choice, where one came, the old model: the best of the task that the federation was in
    when the site last trained in the task that it has left."""
    state = context.state
    came = {name: state.pop(f"{OLD_MODELS}.{name}", None) for name in (PREVIOUS, CURRENT, SINCE)}
    since, left = came[SINCE], state.get(_LEFT, np.zeros(1))
    if since is not None and not switched:
        chosen = came[CURRENT if left[0] >= since[0] else PREVIOUS]
        if chosen is not None:
            state[_OLD_MODEL] = chosen
    if switched:
        state[_LEFT] = state[_ROUND]
    state[_ROUND] = np.array([context.round])


def compensated(logits: "Tensor", onehot: "Tensor", is_old: "Tensor") -> "Tensor":
    """L_GC of logits [B, classes]; is_old: whether a sample is of an old class [B]."""
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    gap = ((logits.detach().sigmoid() - onehot).abs() * onehot).sum(dim=1)
    weights = gap.new_zeros(len(gap))
    for group in (is_old, ~is_old):
        mean = (gap * group).sum() / group.sum().clamp(min=1)
        weights = weights + group * gap / mean.clamp(min=1e-12)
    return (weights[:, None] * bce(logits, onehot, reduction="none")).mean()


def mean_entropy(logits: "Tensor") -> float:
    """Mean entropy, in nats, of the softmax of logits [n, classes]."""
    logs = logits.double().log_softmax(dim=1)
    return float(-(logs.exp() * logs).sum(dim=1).mean())


def _classes(context: LocalContext, name: str) -> Indices:
    found: Indices = context.state.get(name, np.zeros(0, np.int64))
    return found


def _fresh(context: LocalContext) -> Indices:
    """The round's samples that are no exemplars; all of them where there are no others."""
    indices, kept = given(context).indices, context.state.get(EXEMPLARS, np.zeros((2, 0), np.int64))
    fresh = np.setdiff1d(indices, kept[0])
    return fresh if len(fresh) else indices


def _onehot(context: LocalContext, indices: Indices) -> "Tensor":
    """The targets [n, classes] of these samples."""
    import torch
    from torch.nn.functional import one_hot

    labels = torch.from_numpy(given(context).labels[indices])
    return one_hot(labels, len(context.task.config.classes)).float().to(context.device)


def _outputs_of(context: LocalContext, model: Any, indices: Indices) -> "Tensor":
    """Another model's logits [n, classes]; the network is as before afterwards."""
    context.network.load(model)
    try:
        return outputs(context, indices)
    finally:
        context.network.load(context.anchor.cpu().numpy())


def _loss_on(context: LocalContext, model: Any, indices: Indices) -> float:
    """Binary cross entropy of a model on these samples."""
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    return float(bce(_outputs_of(context, model, indices), _onehot(context, indices)))
