"""A local training as named arrays and back, so that one that was killed goes on from its last whole epoch, bit by bit.

    parameters, local, losses          the shared network, the one that stays, the losses so far
    optimizer/<index>/<moment>/<name>  of the site's optimiser (no name) and of those in `scratch`
    tensor/<name>, array/<name>        what else rules keep in `scratch`
    state/<name>, gone/<name>          the site's private arrays as far as rules changed or dropped them
    generator/cpu, generator/device    torch's random generators

What can be had again is not among them: the anchor is the global vector, and the shuffle generator is replayed.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from medfl import __version__
from medfl.learning.checkpoint import Checkpoint, EpochStore
from medfl.learning.flat_optimizers import FlatOptimizer
from medfl.learning.rules.base import LocalContext
from medfl.update.wire import as_bytes

if TYPE_CHECKING:
    from medfl.learning.executor import LocalParts

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
AnyOptimizer = FlatOptimizer | Optimizer
"""medfl's, or one of torch's that a rule brings and keeps in `scratch`."""

_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_DTYPES = frozenset({*_INTEGERS, torch.float16, torch.float32, torch.float64})

log = logging.getLogger(__name__)


@dataclass
class LocalTraining:
    """Everything that moves while a site trains. To be made after the rules' `begin`.

    losses: [steps]. before: the site's private arrays as they were ahead of `begin`. setup: see `Checkpoint`.
    """

    context: LocalContext
    optimizer: FlatOptimizer
    losses: Tensor
    before: Arrays
    setup: str

    def __post_init__(self) -> None:
        scratch = self.context.scratch.items()
        own = {name: value for name, value in scratch if isinstance(value, AnyOptimizer)}
        self._optimizers: dict[str, AnyOptimizer] = {**own, "": self.optimizer}

    def capture(self, step: int) -> dict[str, Any]:
        """What there is after `step` steps, by name and without a copy. What is neither a tensor nor an array cannot be
        kept."""
        context, before = self.context, self.before
        found: dict[str, Any] = {"parameters": context.network.parameters, "losses": self.losses[:step]}
        if context.local is not None:
            found["local"] = context.local.parameters
        for name, optimizer in self._optimizers.items():
            found |= _moments(name, optimizer)
        others = {name: v for name, v in context.scratch.items() if v is not self._optimizers.get(name)}
        found |= {_named(name, value): value for name, value in others.items()}
        found |= {f"state/{name}": array for name, array in context.state.items() if array is not before.get(name)}
        found |= {f"gone/{name}": np.zeros(0) for name in before if name not in context.state}
        return found | _generators(context.device)

    def restore(self, step: int, arrays: Arrays) -> None:
        """Put everything where it was after `step` steps."""
        context = self.context
        with torch.no_grad():
            context.network.parameters.copy_(_tensor(arrays["parameters"]))
            self.losses[:step].copy_(_tensor(arrays["losses"]))
            if context.local is not None:
                context.local.parameters.copy_(_tensor(arrays["local"]))
        for name, optimizer in self._optimizers.items():
            _load_moments(name, optimizer, arrays)
        for name, array in _below("tensor", arrays).items():
            context.scratch[name] = _tensor(array).to(context.device)
        context.scratch.update({name: np.array(array) for name, array in _below("array", arrays).items()})
        context.state.update({name: np.array(array) for name, array in _below("state", arrays).items()})
        for name in _below("gone", arrays):
            context.state.pop(name, None)
        _load_generators(context.device, arrays)


class Bookmark:
    """Where one local training stands in its site's store."""

    def __init__(self, store: EpochStore, key: str, training: LocalTraining) -> None:
        self._store, self._key, self._training = store, key, training
        self._since = time.monotonic()
        self._possible = True

    def resume(self) -> int:
        """The steps that are done already: 0, or those of the store's checkpoint, which the training then stands at."""
        found = self._store.load(self._key)
        if found is None:
            return 0
        context = self._training.context
        if found.setup != self._training.setup:
            log.warning(
                "site %s, round %d: starts anew: the site's data, state or software changed since the checkpoint",
                context.site,
                context.round,
            )
            return 0
        self._training.restore(found.step, found.arrays)
        log.info("site %s, round %d: goes on after step %d", context.site, context.round, found.step)
        return found.step

    def keep(self, step: int) -> None:
        """Save the training after `step` steps, unless that was done less than the store's `min_seconds` ago."""
        if not self._possible or time.monotonic() - self._since < self._store.min_seconds:
            return
        found = self._training.capture(step)
        unknown = [name for name, value in found.items() if not _can_be_kept(value)]
        if unknown:
            self._possible = False
            log.warning("rules keep %s, so a crash would cost the local epochs of a round", ", ".join(unknown))
            return
        arrays = {name: _array(value) for name, value in found.items()}
        self._store.save(self._key, Checkpoint(step, self._training.setup, arrays))
        self._since = time.monotonic()


def setup_digest(parts: "LocalParts", device: torch.device, steps: int, arrays: Arrays) -> str:
    """SHA-256, as hex, of what decides a site's training beside its order: software, settings, and the `arrays` that it
    starts from, such as the labels of the samples and the site's private state. The study cannot change within a run;
    what lies at the site can."""
    configs = [parts.task.config, parts.plan.config, parts.optimizer, *(rule.config for rule in parts.rules)]
    named = [config.model_dump(mode="json") for config in configs]
    numbers = [parts.batch_size, parts.gradient_clip, parts.seed, steps]
    digest = hashlib.sha256(json.dumps([__version__, torch.__version__, device.type, named, numbers]).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(as_bytes(array))
    return digest.hexdigest()


def _moments(owner: str, optimizer: AnyOptimizer) -> dict[str, Any]:
    return {
        f"optimizer/{index}/{moment}/{owner}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for moment, value in moments.items()
        if value is not None
    }


def _load_moments(owner: str, optimizer: AnyOptimizer, arrays: Arrays) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for place, array in _below("optimizer", arrays).items():
        index, moment, whose = place.split("/", 2)
        if whose == owner:
            state.setdefault(int(index), {})[moment] = _tensor(array)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _generators(device: torch.device) -> dict[str, Tensor]:
    found = {"generator/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["generator/device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["generator/device"] = torch.mps.get_rng_state()
    return found


def _load_generators(device: torch.device, arrays: Arrays) -> None:
    torch.set_rng_state(_tensor(arrays["generator/cpu"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(arrays["generator/device"]), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(_tensor(arrays["generator/device"]))


def _named(name: str, value: Any) -> str:
    kind = "tensor" if isinstance(value, Tensor) else "array" if isinstance(value, np.ndarray) else "scratch"
    return f"{kind}/{name}"


def _can_be_kept(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dtype in _DTYPES and value.layout == torch.strided
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _array(value: Tensor | Array) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _tensor(array: Array) -> Tensor:
    """A copy on the CPU. In torch's own memory, aligned as that of a training that was never interrupted."""
    return torch.from_numpy(np.array(array)).clone()


def _below(folder: str, arrays: Arrays) -> dict[str, Array]:
    return {name.removeprefix(f"{folder}/"): array for name, array in arrays.items() if name.startswith(f"{folder}/")}
