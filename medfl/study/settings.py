"""The settings of a model as its reader wants them: value, bounds, default and meaning of each key.

All texts put code in backticks.
"""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medfl.plugins import PluginConfig, PluginPoint

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_PLAIN = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", type(None): "`null`"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. value: what may stand there; bounds: "≥ 0, < 1" or ""; default: "required" where there is none; point:
    where the value is a choice among plug-ins; sections: the models of a nested section."""

    name: str
    value: str
    bounds: str
    default: str
    meaning: str
    point: PluginPoint | None = None
    sections: tuple[type[BaseModel], ...] = ()


def settings(model: type[BaseModel], skip: tuple[str, ...] = ("kind",)) -> list[Setting]:
    """The keys of a model, but those in `skip`."""
    meanings = _meanings(model)
    return [
        _setting(name, field, meanings.get(name, "")) for name, field in model.model_fields.items() if name not in skip
    ]


def described(text: str, model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """A docstring without its sentences "field: meaning.", and these by field."""
    names = "|".join(sorted(model.model_fields, key=len, reverse=True)) or "-"
    start = re.compile(rf"(?:(?<=\A)|(?<=[.;] )|(?<=\n))((?:{names})(?:(?:, | / | and )(?:{names}))*): ")
    paragraphs, meanings = [], dict[str, str]()
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        # a docstring's line ends mean nothing, except around indented lines, which are formulas
        pieces = start.split(re.sub(r"(?m)^(\S.*)\n(?=\S)", r"\1 ", paragraph))
        if pieces[0].strip():
            paragraphs.append(pieces[0].rstrip())
        for fields, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
            meanings |= dict.fromkeys(re.split(r", | / | and ", fields), meaning.strip())
    return "\n\n".join(paragraphs), meanings


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What docstrings say of fields; pydantic's own classes say nothing of them."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__.split(".")[0] != "pydantic":
            found |= described(base.__dict__.get("__doc__") or "", model)[1]
    return found


def _setting(name: str, field: FieldInfo, meaning: str) -> Setting:
    point = _point(field)
    return Setting(
        name=name,
        value=type_text(field.annotation) if point is None else point.name,
        bounds=_bounds(field),
        default=_default(field),
        meaning=" ".join((field.description or meaning).split()),
        point=point,
        sections=() if point else tuple(_sections(field.annotation)),
    )


def type_text(annotation: Any) -> str:
    """What may stand in place of an annotation, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(argument) for argument in arguments))
    if origin in (tuple, list):
        counted = [argument for argument in arguments if argument is not Ellipsis]
        plain = f"list of {type_text(counted[0])}"
        return plain if Ellipsis in arguments or origin is list else f"{len(counted)} x {type_text(counted[0])}"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return str(getattr(annotation, "__name__", annotation)).lower()


def _point(field: FieldInfo) -> PluginPoint | None:
    found = [item for item in field.metadata if isinstance(item, PluginPoint)]
    found += [item for item in _annotations(field.annotation) if isinstance(item, PluginPoint)]
    return found[0] if found else None


def _annotations(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _annotations(argument)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, PluginConfig) else [annotation]
    return [model for argument in get_args(annotation) for model in _sections(argument)]


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "made anew"
    return "required" if field.default is PydanticUndefined else value_text(field.default)


def value_text(value: Any) -> str:
    """A default as a study would write it; of a configuration its kind."""
    if isinstance(value, dict) and set(value) == {"kind"}:
        return f"`{value['kind']}`"
    if isinstance(value, BaseModel):
        plain, kind = getattr(value, "value", None), getattr(value, "kind", None)
        return f"`{plain}`" if plain is not None else f"`{kind}`" if kind else "its defaults"
    if isinstance(value, tuple):
        return ", ".join(value_text(item) for item in value) or "`[]`"
    shown = {None: "`null`", True: "`true`", False: "`false`", "": '`""`'}
    return shown[value] if isinstance(value, bool | None) or value == "" else f"`{value}`"
