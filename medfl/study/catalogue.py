"""Every plug-in that is installed, at every point: what it says about itself, what can be set, where it is from.

Light on purpose: reading the catalogue imports the plug-ins and nothing heavier, and a plug-in that cannot be loaded is
an entry with its reason. The study's model, which needs every plug-in to load, is imported only for an example and for
the combinations that are refused.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from medfl.data.importers.base import IMPORTERS
from medfl.data.partition.base import PARTITIONS
from medfl.data.plans.base import PLANS
from medfl.data.readers.base import READERS
from medfl.errors import MedflError, StudyError
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.rules.base import RULES
from medfl.plugins import PluginConfig, PluginPoint
from medfl.privacy.channels.base import CHANNELS
from medfl.privacy.mechanisms.base import MECHANISMS
from medfl.study.citations import papers, without_citations
from medfl.study.settings import Setting, described, settings
from medfl.tasks.base import TASKS
from medfl.update.codecs.base import CODECS
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.submodels.base import SUBMODELS

BUILT_IN = "medfl"
_A_NAME = 4
"""Up to so many words are a name, which alone says nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """A plug-in point. keys: where a study chooses, none for what medfl finds from the file; decides: what is chosen;
    several: whether a study lists more than one."""

    point: PluginPoint
    keys: tuple[str, ...]
    decides: str
    several: bool = False

    @property
    def name(self) -> str:
        return self.point.name


PLACES = (
    Place(TASKS, ("task",), "network, loss, metrics, predictions and pictures"),
    Place(PLANS, ("local.plan",), "which cases a site holds, and which samples it trains on in a round"),
    Place(RULES, ("local.rules",), "a site's local objective, gradient correction and private state", True),
    Place(SUBMODELS, ("update.submodel",), "which coordinates travel and train"),
    Place(GATES, ("update.gate",), "send this round's update or skip it"),
    Place(MEMORIES, ("update.memory",), "what of an update was not sent and is remembered"),
    Place(CODECS, ("update.codec_up", "update.codec_down"), "a vector as bytes, and back"),
    Place(CHANNELS, ("update.channel",), "what the coordinator can see of an update"),
    Place(MECHANISMS, ("privacy",), "who adds which noise to what, under differential privacy"),
    Place(SCHEDULES, ("federation.schedule",), "who takes part in a round"),
    Place(REGULATORS, ("federation.regulator",), "admit, down-weight or refuse an update, with a reason", True),
    Place(AGGREGATORS, ("federation.aggregator",), "how updates are combined, on arrival"),
    Place(SERVER_STEPS, ("federation.server",), "how the combined update moves the global model"),
    Place(
        HYPERPARAMETERS,
        ("local.epochs", "local.learning_rate", "fedprox.mu"),
        "a number that may move from round to round",
    ),
    Place(PARTITIONS, ("data.partition",), "which site a patient belongs to, in experiments on one pool of images"),
    Place(READERS, (), "one image format: file in, array with its geometry out"),
    Place(IMPORTERS, (), "one layout of a data set: folder or file in, datalist out"),
)


@dataclass(frozen=True)
class Entry:
    """One plug-in as it is installed.

    target: "module:Class". origin: "medfl", or the name and version of the distribution that provides it. fault: why it
    cannot be used, "" when it can; everything else is then empty. given: settings that its traits were asked with,
    beside the defaults: those that have none.
    """

    place: Place
    kind: str
    target: str
    origin: str
    fault: str = ""
    text: str = ""
    config: type[PluginConfig] | None = None
    given: Mapping[str, Any] | None = None
    traits: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> str:
        """The first sentence about it, without the paper, and the second where the first is only a name."""
        sentences = re.split(r"(?<=\.)\s", " ".join(without_citations(self.text).split()))
        first = sentences[0] if len(sentences[0].split()) > _A_NAME else " ".join(sentences[:2])
        return first.rstrip(".")

    @cached_property
    def papers(self) -> tuple[str, ...]:
        return papers(self.text)

    @property
    def settings(self) -> list[Setting]:
        return settings(self.config) if self.config else []

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able; `schema` is the JSON schema of the configuration."""
        if self.fault:
            return {"kind": self.kind, "target": self.target, "from": self.origin, "fault": self.fault}
        return {
            "kind": self.kind,
            "target": self.target,
            "from": self.origin,
            "fault": None,
            "summary": self.summary,
            "text": self.text,
            "papers": list(self.papers),
            "traits": list(self.traits),
            "traits_with": dict(self.given or {}),
            "schema": self.config.model_json_schema() if self.config else None,
        }


def place_named(name: str) -> Place:
    """The point of a name ("codec", "local rule", "local-rule"); StudyError names all points."""
    wanted = name.lower().replace("-", " ").replace("_", " ")
    for place in PLACES:
        if wanted in (place.name.replace("-", " "), place.name.replace("-", " ") + "s"):
            return place
    known = ", ".join(place.name for place in PLACES)
    raise StudyError.at("POINT", f"there is no plug-in point {name!r}", f"use one of: {known}")


def entries(place: Place) -> list[Entry]:
    """Everything that is installed for a point, built-in first, then by name."""
    return [*(_entry(place, kind, target, BUILT_IN) for kind, target in _shipped(place).items()), *_from_others(place)]


def entry_named(place: Place, kind: str) -> Entry:
    """One plug-in; StudyError names the known kinds."""
    found = entries(place)
    for entry in found:
        if entry.kind == kind:
            return entry
    known = ", ".join(entry.kind for entry in found)
    raise StudyError.at(place.name, f"there is no {place.name} {kind!r}", f"use one of: {known}")


@cache
def _others(group: str) -> tuple[EntryPoint, ...]:
    # reads the metadata of everything that is installed, so once a group
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def _shipped(place: Place) -> dict[str, str]:
    """Targets of what ships with medfl: all but those that an entry point brought."""
    others = {(point.name, point.value) for point in _others(place.point.group)}
    return {kind: target for kind, target in place.point.targets.items() if (kind, target) not in others}


def _from_others(place: Place) -> Iterator[Entry]:
    """What other distributions provide. A name that is taken is not used, which its reader should know."""
    taken = dict.fromkeys(_shipped(place), BUILT_IN)
    for point in _others(place.point.group):
        origin = _distribution(point)
        if point.name in taken:
            fault = f"is not used: {taken[point.name]} has a {place.name} of this name"
            yield Entry(place, point.name, point.value, origin, fault)
        else:
            taken[point.name] = origin
            yield _entry(place, point.name, point.value, origin)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"


def _entry(place: Place, kind: str, target: str, origin: str) -> Entry:
    try:
        plugin = place.point.load(kind)
        config = place.point.config(kind) if place.keys else None
    except MedflError as error:
        return Entry(place, kind, target, origin, "; ".join(fault.what for fault in error.faults))
    text = _text(plugin, config)
    if config is None:
        return Entry(place, kind, target, origin, text=text)
    given = required(place, kind, config)
    return Entry(place, kind, target, origin, "", text, config, given, _traits(config, kind, given))


def _traits(config: type[PluginConfig], kind: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        made = config.model_validate({"kind": kind, **given})
    except ValidationError:
        made = config.model_construct(None, kind=kind, **given)
    return tuple(sorted(made.traits()))


def _text(plugin: type, config: type[PluginConfig] | None) -> str:
    """What module, configuration and class say, without what is said of single settings; formulas stay indented."""
    said = [sys.modules[plugin.__module__].__doc__, config.__dict__.get("__doc__") if config else None]
    said.append(plugin.__dict__.get("__doc__"))
    parts = [described(text, config or PluginConfig)[0] for text in said if text]
    return "\n\n".join(part for part in dict.fromkeys(parts) if part and part != "No settings.")


_GIVEN: dict[str, dict[str, Any]] = {
    TASKS.name: {"classes": ["normal", "pneumonia"]},
    MECHANISMS.name: {"epsilon": 4.0, "delta": 1e-5},
    f"{HYPERPARAMETERS.name} constant": {"value": 2},
    f"{HYPERPARAMETERS.name} cosine": {"start": 0.004, "end": 0.0004, "rounds": 10},
}
"""Settings of all plug-ins of a point, or of one, that go together or whose values have to make sense."""


def required(place: Place, kind: str, config: type[PluginConfig]) -> dict[str, Any]:
    """A value for each setting without a default: the field's own first example, else the smallest that fits."""
    given = {**_GIVEN.get(place.name, {}), **_GIVEN.get(f"{place.name} {kind}", {})}
    known = {name: value for name, value in given.items() if name in config.model_fields}
    wanted = [name for name, field in config.model_fields.items() if field.is_required() and name not in known]
    schema = config.model_json_schema()["properties"] if wanted else {}
    return known | {name: _smallest(schema[name]) for name in wanted}


def _smallest(schema: Mapping[str, Any]) -> Any:
    """A value of a JSON schema; None where there is no telling."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if schema.get("type") == "integer":
        return low if low is not None else 1 if above is None else above + 1
    if schema.get("type") == "number":
        return low if low is not None else min(high or 1.0, (above or 0.0) + 1.0)
    return {"string": "name", "boolean": True, "array": []}.get(str(schema.get("type")))
