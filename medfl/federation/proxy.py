"""GLFC's proxy server (Dong et al., "Federated Class-Incremental Learning", CVPR 2022), as state in, state out: the
coordinator chooses the old models that sites distil from.

    proposal   float32 [k, length]: the gradients of one image of each class that is new to a site
    label      read off the gradient; image: rebuilt from it. At most `images` attempts a class in the whole run
    score      of a model: mean over the classes of its accuracy on the rebuilt images
    current    the best model since the present task began; the later one of equals
    previous   the best model of the task before

A task begins for the federation with a round in which more than half of the sites that answered tell of a switch that
it has not followed yet: they told of another one in the present task already, or name a class that nobody named. One
site alone cannot begin one, nor keep one from beginning. What a site told in an update that did not count (refused,
late, in a round that moved no model) is not heard; it tells it again. With its next order, a site that told of a switch
gets the two models and the round since when the present task runs: it takes the best of the task that it has left.

What networks are needed for is passed in (`Workshop`). The rebuilt images are a part of the state, and so of the
journal: they are to be kept like images of patients.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.learning.messages import CURRENT, PREVIOUS, SINCE
from medfl.update.base import Payload
from medfl.update.vector import FloatVector

Images = npt.NDArray[np.float32]


class Workshop(Protocol):
    """What needs networks. length: values of a gradient."""

    length: int

    def label(self, values: FloatVector) -> int:
        """The class that a gradient [length] is of."""

    def rebuild(self, values: FloatVector, label: int, start: int) -> Images | None:
        """An image [C, *space] with that gradient [length], from the class's start-th starting point; None when none
        was found."""

    def score(self, model: FloatVector, images: Images, labels: Sequence[int]) -> float:
        """The accuracy, mean over the classes, of a model [size] on images [n, C, *space]."""


Proposal = Mapping[int, FloatVector]
"""A site's gradients by class, checked."""

_SITES = 4
"""A site gets one of so many parts of the attempts at a class, so that those who come later find some left."""


class ProxyServer:
    """classes: of the task. images: attempts at an image of each class, over the whole run, whoever sends how much."""

    def __init__(self, classes: int, images: int) -> None:
        self.classes, self.images = classes, images
        self.since = 0
        self.score = 0.0
        self.models: dict[str, FloatVector] = {}
        self._workshop: Workshop | None = None
        self._rebuilt: Images | None = None
        self._labels: list[int] = []
        self._tried: dict[int, int] = {}
        self._named: dict[str, list[int]] = {}
        self._told: dict[str, int] = {}
        self._waiting: set[str] = set()

    def bind(self, workshop: Workshop) -> None:
        self._workshop = workshop

    @property
    def workshop(self) -> Workshop:
        if self._workshop is None:
            raise RunError.at("proxy", "was asked before it was told of the networks")
        return self._workshop

    @property
    def rebuilt(self) -> tuple[Images | None, list[int]]:
        """The images [n, C, *space], None before there are any, and their labels."""
        return self._rebuilt, list(self._labels)

    def checked(self, site: str, payload: Payload | None) -> Proposal | None:
        """What a site sent, if it sent something. RunError unless it is one finite gradient a class, of classes that
        the site has not named before."""
        if payload is None:
            return None
        where, length = f"site {site}", self.workshop.length
        count, rest = divmod(payload.size, length)
        whole = len(payload.buffers) == 1 and len(payload.buffers[0]) == 4 * payload.size
        if payload.codec != "fp32" or rest or not 1 <= count <= self.classes or not whole:
            raise RunError.at(where, f"sent prototypes that are not 1 to {self.classes} gradients of {length} values")
        values = np.frombuffer(payload.buffers[0], "<f4").astype(np.float32).reshape(count, length)
        if not np.isfinite(values).all():
            raise RunError.at(where, "sent prototypes that are not finite")
        found = {self.workshop.label(row): row for row in values}
        again = sorted(found.keys() & set(self._named.get(site, ())))
        if len(found) < count or again:
            raise RunError.at(where, "sent prototypes of a class twice: one a class and run is all that there may be")
        return found

    def learn(self, round_: int, model: FloatVector, told: Mapping[str, Proposal], answered: Sequence[str]) -> None:
        """Take in a closed round. told: what its admitted sites proposed. answered: the sites that did not fail, which
        have got what they waited for."""
        if 2 * sum(self._ahead(site, proposal) for site, proposal in told.items()) > len(answered):
            self._begin_task(round_)
        self._waiting -= set(answered)
        for site, proposal in told.items():
            if PREVIOUS in self.models or site in self._told:
                self._waiting.add(site)
            self._told[site] = round_
            self._named[site] = sorted({*self._named.get(site, ()), *proposal})
        if self._rebuild(told) and CURRENT in self.models:
            self.score = self._scored(self.models[CURRENT])
        score = self._scored(model)
        if CURRENT not in self.models or score >= self.score:
            self.models[CURRENT], self.score = model.copy(), score

    def _ahead(self, site: str, proposal: Proposal) -> bool:
        """Whether a site tells of a task that the federation has not begun."""
        named = {label for labels in self._named.values() for label in labels}
        return 0 < self.since <= self._told.get(site, 0) or not proposal.keys() <= named

    def _begin_task(self, round_: int) -> None:
        self.since = round_
        if CURRENT in self.models:
            self.models[PREVIOUS] = self.models.pop(CURRENT)

    def _rebuild(self, told: Mapping[str, Proposal]) -> bool:
        """Spend the attempts that are left, in turn over the sites; whether there are more images now."""
        before = len(self._labels)
        for label in sorted({label for proposal in told.values() for label in proposal}):
            offered = [proposal[label] for proposal in told.values() if label in proposal]
            first = self._tried.get(label, 0)
            turns = (offered * -(-self.images // _SITES))[: self.images - first]
            for start, values in enumerate(turns, first):
                self._keep(label, self.workshop.rebuild(values, label, start))
            self._tried[label] = first + len(turns)
        return len(self._labels) > before

    def _keep(self, label: int, image: Images | None) -> None:
        if image is not None:
            kept = [] if self._rebuilt is None else [self._rebuilt]
            self._rebuilt = np.concatenate([*kept, image[None]])
            self._labels.append(label)

    def _scored(self, model: FloatVector) -> float:
        return 0.0 if self._rebuilt is None else self.workshop.score(model, self._rebuilt, self._labels)

    def old_models(self, site: str) -> Mapping[str, FloatVector]:
        """The models [size] that a site is to be sent with its next order, by name; mostly none."""
        return self.models if site in self._waiting else {}

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
        plain = {
            SINCE: self.since,
            "score": self.score,
            "labels": list(self._labels),
            "tried": {str(label): count for label, count in self._tried.items()},
            "named": {site: list(labels) for site, labels in self._named.items()},
            "told": dict(self._told),
            "waiting": sorted(self._waiting),
        }
        return plain, self.models | ({} if self._rebuilt is None else {"images": self._rebuilt})

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Go on from `state()`, exactly."""
        self.since, self.score, self._labels = plain[SINCE], plain["score"], list(plain["labels"])
        self._tried = {int(label): count for label, count in plain["tried"].items()}
        self._named = {site: list(labels) for site, labels in plain["named"].items()}
        self._told, self._waiting = dict(plain["told"]), set(plain["waiting"])
        self.models = {name: np.array(arrays[name]) for name in (PREVIOUS, CURRENT) if name in arrays}
        self._rebuilt = np.array(arrays["images"]) if "images" in arrays else None
