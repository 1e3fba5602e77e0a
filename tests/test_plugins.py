"""Plug-in points: built-in and third-party plug-ins, short forms, and clean errors."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from medfl import plugins
from medfl.data.importers.base import IMPORTERS
from medfl.data.partition.base import PARTITIONS
from medfl.data.plans.base import PLANS
from medfl.data.readers.base import READERS
from medfl.errors import StudyError
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.rules.base import RULES
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.privacy.channels.base import CHANNELS
from medfl.tasks.base import TASKS
from medfl.update.codecs.base import CODECS
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.submodels.base import SUBMODELS

CONFIGURED = [AGGREGATORS, CHANNELS, CODECS, GATES, HYPERPARAMETERS, MEMORIES, PARTITIONS, PLANS, REGULATORS, RULES]
CONFIGURED += [SCHEDULES, SERVER_STEPS, SUBMODELS, TASKS]
EVERY = [*CONFIGURED, IMPORTERS, READERS]


class Red(Plugin[PluginConfig]):
    class Config(PluginConfig):
        kind: Literal["red"] = "red"
        depth: int = 1


class Blue(Plugin[PluginConfig]):
    class Config(PluginConfig):
        kind: Literal["blue"] = "blue"


class NoConfig:
    pass


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[EntryPoint]]:
    """Entry points by group, as if packages had been installed."""
    found: dict[str, list[EntryPoint]] = {}
    monkeypatch.setattr(plugins, "entry_points", lambda group: found.get(group, []))
    module = ModuleType("paint")
    for name, value in {"Red": Red, "Blue": Blue, "NoConfig": NoConfig}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "paint", module)
    return found


def colours(found: dict[str, list[EntryPoint]], **third: str) -> PluginPoint:
    found["test.colours"] = [EntryPoint(kind, value, "test.colours") for kind, value in third.items()]
    return PluginPoint("colour", "test.colours", {"red": "paint:Red"})


def model(point: PluginPoint) -> type[BaseModel]:
    class Painting(BaseModel):
        colour: Annotated[PluginConfig, point]

    return Painting


@pytest.mark.parametrize("point", EVERY, ids=lambda point: point.name)
def test_every_built_in_loads_and_is_documented(point: PluginPoint) -> None:
    for kind in point.targets:
        plugin = point.load(kind)
        assert sys.modules[plugin.__module__].__doc__ or plugin.__doc__


@pytest.mark.parametrize("point", CONFIGURED, ids=lambda point: point.name)
def test_every_built_in_keeps_the_contract(point: PluginPoint) -> None:
    for kind in point.targets:
        config = point.load(kind).Config
        assert issubclass(point.load(kind), Plugin) and issubclass(config, PluginConfig)
        assert config.model_fields["kind"].default == kind
        assert config.model_config["frozen"] and config.model_config["extra"] == "forbid"


def test_groups_are_the_ones_that_third_parties_are_told() -> None:
    groups = {point.group for point in EVERY}
    assert len(groups) == len(EVERY) and {"medfl.codecs", "medfl.rules"} <= groups
    assert all(group.startswith("medfl.") for group in groups)


def test_a_third_party_adds_a_kind(installed: dict[str, list[EntryPoint]]) -> None:
    point = colours(installed, blue="paint:Blue")
    assert set(point.targets) == {"red", "blue"}
    assert isinstance(point.build(point.default("blue")), Blue)
    assert model(point).model_validate({"colour": "blue"}).model_dump() == {"colour": {"kind": "blue"}}


def test_a_third_party_cannot_replace_a_built_in(installed: dict[str, list[EntryPoint]]) -> None:
    point = colours(installed, red="paint:Blue")
    assert point.load("red") is Red


def test_a_real_point_takes_a_third_party(installed: dict[str, list[EntryPoint]]) -> None:
    installed["medfl.codecs"] = [EntryPoint("blue", "paint:Blue", "medfl.codecs")]
    point = PluginPoint(CODECS.name, CODECS.group, CODECS._builtin)
    assert model(point).model_validate({"colour": "blue"}).model_dump()["colour"] == {"kind": "blue"}
    assert model(point).model_validate({"colour": "fp16"}).model_dump()["colour"] == {"kind": "fp16"}


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("no_such_package:Blue", "no_such_package"),
        ("paint:Green", "Green"),
        ("paint:NoConfig", "Config"),
        ("paint:Red", "blue"),
        ("not a reference", "blue"),
    ],
)
def test_a_broken_third_party_is_named(installed: dict[str, list[EntryPoint]], value: str, part: str) -> None:
    with pytest.raises(StudyError) as caught:
        model(colours(installed, blue=value))
    assert "'blue'" in str(caught.value) and part in str(caught.value) and "remove" in str(caught.value)


def test_the_forms_of_a_choice(installed: dict[str, list[EntryPoint]]) -> None:
    painting = model(colours(installed))
    for form in ("red", {"kind": "red"}, {"kind": "red", "depth": 1}, Red.Config()):
        assert painting.model_validate({"colour": form}).model_dump()["colour"] == {"kind": "red", "depth": 1}


@pytest.mark.parametrize("wrong", ["green", {"depth": 2}, {"kind": "red", "deep": 2}, 3, None, ["red"]])
def test_what_is_no_choice_is_refused(installed: dict[str, list[EntryPoint]], wrong: Any) -> None:
    with pytest.raises(ValidationError):
        model(colours(installed)).model_validate({"colour": wrong})


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(StudyError, match="fp16, fp32") as caught:
        CODECS.load("fp8")
    assert "'fp8'" in str(caught.value)


def test_configurations_are_frozen_and_refuse_what_is_not_finite() -> None:
    config = Red.Config()
    with pytest.raises(ValidationError):
        config.depth = 3
    with pytest.raises(ValidationError):
        configured = REGULATORS.load("norm_limit").Config
        configured.model_validate({"limit": float("inf")})
