"""Exemplars: the few samples of each class that a site keeps for when the class is gone.

Herding (Rebuffi et al., "iCaRL", CVPR 2017) takes one sample after another, so that the mean of those taken is as near
as can be to the mean of the class. Features are what goes into the network's last layer, at Euclidean norm 1.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfl.errors import StudyError
from medfl.learning.rules.base import LocalContext

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medfl.learning.course import Feed

Indices = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float64]


def herding(features: Matrix, count: int) -> Indices:
    """The rows of `features` [n, f] to keep, at most `count`, the best first: any first part of them is the choice for
    a smaller count."""
    mean, total = features.mean(axis=0), np.zeros(features.shape[1])
    left, order = np.ones(len(features), dtype=bool), []
    for number in range(1, min(count, len(features)) + 1):
        apart = (((total + features) / number - mean) ** 2).sum(axis=1)
        best = int(np.where(left, apart, np.inf).argmin())
        left[best] = False
        total += features[best]
        order.append(best)
    return np.array(order, np.int64)


def renewed(kept: Indices, labels: Indices, fresh: Indices, each: int, features: Callable[[], Matrix]) -> Indices:
    """The exemplars [2, n] of a site, indices and labels: up to `each` of every class.

    kept: its exemplars so far [2, m], of which the best of classes without fresh samples stay. labels: of all its
    samples. fresh: the samples that are at hand. features: theirs [len(fresh), f].
    """
    rows = features() if each and len(fresh) else np.zeros((len(fresh), 1))
    found, of = list[Indices](), labels[fresh]
    for number in np.unique(np.concatenate([kept[1], of])):
        here = np.flatnonzero(of == number)
        own = fresh[here[herding(rows[here], each)]] if len(here) else kept[0][kept[1] == number][:each]
        found.append(np.stack([own, np.full_like(own, number)]))
    return np.concatenate(found, axis=1) if found else kept


def given(context: LocalContext) -> "Feed":
    """The site's samples; StudyError where rules do not see any."""
    if context.feed is None:
        raise StudyError.at("local.rules", "a rule asks for samples where it may see none", "drop the rule")
    return context.feed


def outputs(context: LocalContext, indices: Indices) -> "Tensor":
    """The network's logits [n, classes] for these of the site's samples, at its present parameters."""
    import torch

    from medfl.tasks.networks.inference import evaluating

    feed, module = given(context), context.network.module
    found = [torch.zeros(0, len(context.task.config.classes), device=context.device)]
    with evaluating(module):
        for start in range(0, len(indices), feed.size):
            batch = context.task.to_device(feed.batch(indices[start : start + feed.size]), context.device)
            found.append(context.task.logits(module, batch))
    # made outside, for what inference mode makes takes no part in a backward pass
    return torch.cat(found)


def features(context: LocalContext, indices: Indices) -> Matrix:
    """What goes into the network's last layer [n, f], at norm 1."""
    seen: list[Tensor] = []
    layer = last_layer(context.network.module, len(context.task.config.classes))
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().cpu()))
    try:
        outputs(context, indices)
    finally:
        hook.remove()
    rows: Matrix = np.concatenate([part.numpy() for part in seen]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def last_layer(module: "nn.Module", classes: int) -> "nn.Linear":
    """The network's last layer, which gives one logit a class; StudyError when there is none."""
    from torch import nn

    found: Sequence[Any] = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not found or found[-1].out_features != classes:
        raise StudyError.at(
            "local.rules", "exemplars need a network that ends in one linear layer with a logit a class", "drop glfc"
        )
    layer: nn.Linear = found[-1]
    return layer
