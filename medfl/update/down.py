"""The way down as changes: in place of the model, what changed since the site saw it last, coded with loss.

    coordinator   known_t = known_{t-1} + Q(x_t - known_{t-1})          x: the exact model
    site          known_t = known_{t-1} + Q(..), from the same bytes

Every site trains from `known`, which is the same everywhere, bit by bit; what Q leaves out is in the next difference,
so nothing is lost (error feedback without a residual of its own). A site that missed rounds gets the changes of all of
them, or `known` as it is when that is shorter or it has none (STC's cache of missed rounds, Sattler et al. 2020).
State: one vector at the coordinator and at each site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec
from medfl.update.memories.base import SiteState
from medfl.update.vector import FloatVector
from medfl.update.wire import as_bytes

WHOLE, CHANGES = "whole", "changes"
_KNOWN, _VERSION = "down.known", "down.version"
_CODEC = "codec."


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    payload: Payload

    @property
    def length(self) -> int:
        return sum(len(buffer) for buffer in self.payload.buffers)


class Changes:
    """The coordinator's end. Versions are rounds; `held` says which one a site has, as far as is known."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.known: FloatVector | None = None
        self.version = 0
        self.held: dict[str, int] = {}
        self._recent: list[_Change] = []
        self._since = 0
        self._state: SiteState = {}

    def advance(self, model: FloatVector, round_: int, rng: np.random.Generator) -> FloatVector:
        """Move `known` towards the model for a round; what sites will train from."""
        if self.known is None:
            self.known, self._since = model.copy(), round_
        elif round_ != self.version:
            payload = self.codec.encode_with(Update(model - self.known, model.size), rng, self._state)
            self.known = self.known + self.codec.decode(payload, model.size).dense()
            self._recent.append(_Change(round_, payload))
            while sum(change.length for change in self._recent) > 4 * model.size:
                self._since = self._recent.pop(0).version
        self.version = round_
        return self.known

    def payload(self, site: str) -> Payload:
        """What a site is sent: the changes that it misses, or all of `known`."""
        if self.known is None:
            raise RunError.at("model", "was asked for before the first round")
        held = self.held.get(site)
        if held is None or held < self._since:
            return Payload(WHOLE, self.known.size, (as_bytes(self.known),), {"version": self.version})
        missed = [change for change in self._recent if change.version > held]
        told = [change.payload.described() for change in missed]
        buffers = tuple(buffer for change in missed for buffer in change.payload.buffers)
        return Payload(CHANGES, self.known.size, buffers, {"since": held, "version": self.version, "parts": told})

    def heard(self, site: str, answered: bool) -> None:
        """A site answered, so that it has this version; or it did not, so that nobody knows what it has."""
        if answered:
            self.held[site] = self.version
        else:
            self.held.pop(site, None)

    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        arrays = {f"{_CODEC}{name}": array for name, array in self._state.items()}
        return {"version": self.version}, arrays | ({} if self.known is None else {"known": self.known})

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        """Go on from `state()`. Every site is sent the whole vector once: the changes before are not kept."""
        self.version, self.held, self._recent = plain["version"], {}, []
        self._since = self.version
        self.known = np.array(arrays["known"]) if "known" in arrays else None
        self._state = {
            name.removeprefix(_CODEC): np.array(array) for name, array in arrays.items() if name.startswith(_CODEC)
        }


def receive(payload: Payload, codec: Codec, size: int, state: SiteState) -> FloatVector:
    """The site's end: the vector [size] to train from; keeps it in `state`. RunError when the changes do not follow on
    what the site has, or are none."""
    version = payload.meta.get("version")
    if type(version) is not int or payload.size != size:
        raise RunError.at("model", f"is not a version of a vector of {size} values")
    if payload.codec == WHOLE:
        if len(payload.buffers) != 1 or len(payload.buffers[0]) != 4 * size:
            raise RunError.at("model", f"does not hold {size} values")
        known = np.frombuffer(payload.buffers[0], np.float32).copy()
    else:
        known = _changed(payload, codec, size, state)
    state[_KNOWN], state[_VERSION] = known, np.array([version])
    return known


def _changed(payload: Payload, codec: Codec, size: int, state: SiteState) -> FloatVector:
    held = int(state[_VERSION][0]) if _VERSION in state else None
    told = payload.meta.get("parts")
    if payload.codec != CHANGES or not isinstance(told, list) or not all(isinstance(part, dict) for part in told):
        raise RunError.at("model", "is neither whole nor changes of it")
    if held is None or payload.meta.get("since") != held:
        raise RunError.at(
            "model",
            f"changes since round {payload.meta.get('since')} came to a site that has round {held}",
            "nothing: the whole model comes with the next round",
        )
    known: FloatVector = state[_KNOWN]
    buffers = [memoryview(buffer) for buffer in payload.buffers]
    for part in told:
        change, buffers = Payload.first_of(part, buffers, "model", "changes")
        known = known + codec.decode(change, size).dense()
    if buffers:
        raise RunError.at("model", f"carries {len(buffers)} buffers that it does not describe")
    return known
