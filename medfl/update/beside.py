"""A model that comes down with others beside it, as one payload: each as its own codec made it, nothing shared.

joined(model, {"previous": .., "current": ..}, {"since": 7})  ->  parted(..)
"""

from collections.abc import Mapping

from medfl.errors import RunError
from medfl.update.base import Payload

JOINED = "joined"
_MODEL = "model"
_LARGEST = 2**53


def joined(model: Payload, others: Mapping[str, Payload], about: Mapping[str, int]) -> Payload:
    """about: numbers that go with them, not negative."""
    named = {_MODEL: model, **others}
    told = {name: payload.described() for name, payload in named.items()}
    buffers = tuple(buffer for payload in named.values() for buffer in payload.buffers)
    return Payload(JOINED, model.size, buffers, {"parts": told, "about": dict(about)})


def parted(payload: Payload) -> tuple[Payload, dict[str, Payload], dict[str, int]]:
    """The model, the others by name, and the numbers. RunError when the payload is not what `joined` makes."""
    told, about = payload.meta.get("parts"), payload.meta.get("about")
    if not isinstance(told, Mapping) or _MODEL not in told or not isinstance(about, Mapping):
        raise RunError.at("model", "does not say what comes beside it")
    if not all(type(number) is int and 0 <= number < _LARGEST for number in about.values()):
        raise RunError.at("model", "comes with numbers that are none")
    found, buffers = dict[str, Payload](), [memoryview(buffer) for buffer in payload.buffers]
    for name, described in told.items():
        found[name], buffers = Payload.first_of(described, buffers, "model", f"{name}")
    if buffers:
        raise RunError.at("model", f"carries {len(buffers)} buffers that it does not describe")
    return found.pop(_MODEL), found, dict(about)
