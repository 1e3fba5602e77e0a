"""Plug-in points: a study names a `kind`, the point knows the class and its configuration.

A plug-in is a class with a frozen pydantic `Config`. Built-in plug-ins are listed by the point;
third parties add theirs by entry points in the point's group (for example `medfl.codecs`).
Plug-in modules import neither torch nor any other heavy library at module level, so that a study
can be checked without them.
"""

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from medfl.errors import StudyError


class PluginConfig(BaseModel):
    """Settings of one plug-in: frozen, and no unknown keys.

    traits(): what the plug-in declares about itself, as words such as "support-own" or
    "needs-each-update". `medfl.study.rules` refuses combinations by these words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    def traits(self) -> frozenset[str]:
        return frozenset()


C = TypeVar("C", bound=PluginConfig)


class Plugin(Generic[C]):
    """A part of the federation that a study chooses by its `kind`."""

    Config: ClassVar[type[PluginConfig]]

    def __init__(self, config: C) -> None:
        self.config = config


class PluginPoint:
    """One place where a study chooses among plug-ins.

    Use as a pydantic annotation: `rule: Annotated[PluginConfig, RULES]` accepts "fedprox",
    {"kind": "fedprox", "mu": 0.1} or a ready configuration, and reports faults by key.

    name: singular word for messages ("codec"). group: entry-point group.
    builtin: kind -> "module:Class" of what ships with medfl.
    """

    def __init__(self, name: str, group: str, builtin: Mapping[str, str]) -> None:
        self.name = name
        self.group = group
        self._builtin = builtin

    @cached_property
    def targets(self) -> dict[str, str]:
        """kind -> "module:Class" of all plug-ins, built-in first; a third party cannot replace a built-in."""
        found = dict(self._builtin)
        for point in entry_points(group=self.group):
            found.setdefault(point.name, point.value)
        return found

    def load(self, kind: str) -> type[Plugin[Any]]:
        """The class of a kind; StudyError names the known kinds when there is none, and says why one cannot load."""
        if kind not in self.targets:
            known = ", ".join(sorted(self.targets))
            raise StudyError.at(self.name, f"there is no {self.name} {kind!r}", f"use one of: {known}")
        point = EntryPoint(kind, self.targets[kind], self.group)
        try:
            plugin: type[Plugin[Any]] = point.load()
        except Exception as error:
            # a third party's module may raise anything while it is imported
            raise StudyError.at(
                f"{self.name} {kind!r}",
                f"cannot be loaded from {point.value}: {error}",
                "install what it needs, or remove the package that provides it",
            ) from error
        return plugin

    def config(self, kind: str) -> type[PluginConfig]:
        """The configuration class of a kind; StudyError when a third party's plug-in does not keep the contract."""
        config: Any = getattr(self.load(kind), "Config", None)
        if (
            isinstance(config, type)
            and issubclass(config, PluginConfig)
            and config.model_fields["kind"].default == kind
        ):
            return config
        raise StudyError.at(
            f"{self.name} {kind!r}",
            f"has no Config (a PluginConfig) whose `kind` is {kind!r} by default",
            f"mend the package that provides {self.targets[kind]}, or remove it",
        )

    def default(self, kind: str) -> PluginConfig:
        """The configuration of a kind with nothing but defaults."""
        return self.load(kind).Config(kind=kind)

    def build(self, config: PluginConfig) -> Any:
        """The plug-in that a configuration asks for."""
        return self.load(config.kind)(config)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {kind: handler.generate_schema(self.config(kind)) for kind in self.targets}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        return core_schema.no_info_before_validator_function(_expand, union)


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value
