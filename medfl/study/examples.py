"""A part of a study that chooses a plug-in, with whatever else it needs, and the combinations that refuse it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from medfl.errors import MedflError
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.study.catalogue import PLACES, Entry, Place, entries
from medfl.study.combinations import RULES, Rule
from medfl.study.model import Study
from medfl.study.rules import conflicts, traits
from medfl.tasks.base import TASKS

Part = Mapping[str, Any]
"""A part of a study, nested as in its file."""

BASE: Part = {
    "name": "example",
    "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [48, 48]}},
}
"""The shortest study."""

_USUAL_KEY = {"cosine": "local.learning_rate", "adaptive_mu": "fedprox.mu"}
"""Where a hyper-parameter makes sense, of those keys that take any."""

_COMPANIONS: tuple[Part, ...] = (
    {},
    {"update": {"memory": "error_feedback"}},
    {"update": {"clip": 1.0}},
    {"task": {"kind": "classification", "classes": ["normal", "pneumonia"], "class_balance": "none"}},
    {"local": {"steps": 10}},
    {"local": {"steps": 10, "optimizer": {"kind": "sgd"}, "gradient_clip": None}},
    {"evaluation": {"unseen": ["hospital-e"], "public": "hospital-e"}},
    {"federation": {"regulator": ["finite"]}},
    {
        "task": {
            "kind": "segmentation",
            "classes": ["background", "liver"],
            "network": {"width": 8},
            "teacher": {"width": 28},
        }
    },
)
"""What a plug-in may need beside it, the likeliest first."""


@dataclass(frozen=True)
class Example:
    """`part` is a part of a study that may be written as it is, of which the plug-in needs the `companion`; `study` the
    whole with `BASE`, without conflicts; `without` the same but for the plug-in."""

    part: Part
    companion: Part
    study: Study
    without: Study


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that names the plug-in. beside: what else must be there for it."""

    rule: Rule
    beside: tuple[str, ...]


def example(entry: Entry) -> Example | None:
    """The shortest part of a study that chooses the plug-in and breaks no rule; None when none was found."""
    if entry.config is None or entry.given is None:
        return None
    choices = list(_choices(entry.place, entry.kind, entry.given))
    for companion in _companions():
        for chosen in choices:
            study = _read(merged(BASE, companion, chosen))
            without = _read(merged(BASE, companion))
            if study is not None and without is not None and not any(conflicts(study)):
                return Example(merged(companion, chosen), companion, study, without)
    return None


def refusals(entry: Entry, shown: Example | None) -> list[Refusal]:
    """The rules of combination that name the plug-in's kind, its traits, or what a study says once it is chosen."""
    places = [key.split(".")[-1] for key in entry.place.keys]
    facts = {f"{place}={entry.kind}" for place in places}
    facts |= {f"{place}:{trait}" for place in places for trait in entry.traits}
    if shown is not None:
        facts |= traits(shown.study) - traits(shown.without)
    return [
        Refusal(rule, tuple(sorted(rule.together - facts or rule.together))) for rule in RULES if rule.together & facts
    ]


def merged(*parts: Part) -> dict[str, Any]:
    """Nested mappings as one; the last says what stands. A mapping of another kind replaces the one before."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            before = found.get(key)
            if isinstance(before, dict) and isinstance(value, dict) and _same_kind(before, value):
                found[key] = merged(before, value)
            else:
                found[key] = value
    return found


def _same_kind(before: Part, after: Part) -> bool:
    return bool(after.get("kind", before.get("kind")) == before.get("kind"))


def _choices(place: Place, kind: str, given: Part) -> Iterator[dict[str, Any]]:
    """The ways to name a plug-in in a study."""
    value: Any = {"kind": kind, **given} if given else kind
    keys = place.keys
    if place.point is HYPERPARAMETERS:
        value = given["value"] if kind == "constant" else value
        keys = tuple(dict.fromkeys([_USUAL_KEY.get(kind, keys[0]), *keys]))
    for key in keys:
        if key == "fedprox.mu":
            yield {"local": {"rules": [{"kind": "fedprox", "mu": value}]}}
        else:
            yield _nested(key, [value] if place.several else value)


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


@cache
def _companions() -> Sequence[Part]:
    """Companions by length: those above, two of them, then any other plug-in."""
    pairs = [merged(*pair) for pair in combinations(_COMPANIONS[1:], 2)]
    others = [
        chosen
        for place in PLACES
        if place.point not in (TASKS, HYPERPARAMETERS)
        for entry in entries(place)
        if entry.given is not None
        for chosen in _choices(place, entry.kind, entry.given)
    ]
    return (*_COMPANIONS, *others, *pairs)


def _read(part: Part) -> Study | None:
    try:
        return Study.model_validate(part)
    except (ValidationError, MedflError):
        return None


def as_yaml(part: Part) -> str:
    """A part of a study as its file would have it, short mappings on one line."""
    import yaml

    text: str = yaml.safe_dump(dict(part), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return text
