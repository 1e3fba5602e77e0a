"""Parts of the documentation that are made from the code, so that they cannot differ from it.

A page asks for one with a line `<!-- made from the code: NAME -->`.
"""

import inspect
import re
import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.models import OptionInfo, ParameterInfo

from medfl.cli.main import app
from medfl.data.importers.base import IMPORTERS
from medfl.data.partition.base import PARTITIONS
from medfl.data.plans.base import PLANS
from medfl.data.readers.base import READERS
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.rules.base import RULES
from medfl.plugins import PluginConfig, PluginPoint
from medfl.privacy.channels.base import CHANNELS
from medfl.privacy.mechanisms.base import MECHANISMS
from medfl.study.model import Site, Study
from medfl.study.rules import RULES as COMBINATIONS
from medfl.tasks.base import TASKS
from medfl.update.codecs.base import CODECS
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.submodels.base import SUBMODELS

# the point, the study's key, what it decides
POINTS: tuple[tuple[PluginPoint, str, str], ...] = (
    (READERS, "-", "one image format: file in, array with its geometry out"),
    (IMPORTERS, "-", "one layout of a data set: folder or file in, datalist out"),
    (PARTITIONS, "data.partition", "which site a patient belongs to, in experiments on one pool of images"),
    (TASKS, "task", "network, loss, metrics, predictions and pictures"),
    (PLANS, "local.plan", "which cases a site holds, and which samples it trains on in a round"),
    (RULES, "local.rules", "a site's local objective, gradient correction and private state"),
    (SUBMODELS, "update.submodel", "which coordinates travel and train"),
    (GATES, "update.gate", "send this round's update or skip it"),
    (MEMORIES, "update.memory", "what of an update was not sent and is remembered"),
    (CODECS, "update.codec_up, update.codec_down", "a vector as bytes, and back"),
    (CHANNELS, "update.channel", "what the coordinator can see of an update"),
    (MECHANISMS, "privacy", "who adds which noise to what, under differential privacy"),
    (SCHEDULES, "federation.schedule", "who takes part in a round"),
    (REGULATORS, "federation.regulator", "admit, down-weight or refuse an update, with a reason"),
    (AGGREGATORS, "federation.aggregator", "how updates are combined, on arrival"),
    (SERVER_STEPS, "federation.server", "how the combined update moves the global model"),
    (HYPERPARAMETERS, "local.epochs, local.learning_rate, fedprox.mu", "a number that may move from round to round"),
)
MARKER = re.compile(r"^<!-- made from the code: ([a-z -]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: fill in what a page asks for; KeyError when nobody makes it."""
    return MARKER.sub(lambda found: "\n".join(PARTS[found[1]]()), markdown)


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield from _group(app, "medfl")


def _group(group: typer.Typer, path: str) -> Iterator[str]:
    for command in group.registered_commands:
        callback = command.callback
        if callback is not None and not command.hidden:
            name = command.name or callback.__name__.replace("_", "-")
            yield from _command(callback, f"{path} {name}", command.help)
    for member in group.registered_groups:
        if member.typer_instance is not None and not member.hidden:
            yield from _group(member.typer_instance, f"{path} {member.name}")


def _command(callback: Any, path: str, summary: str | None) -> Iterator[str]:
    text, _, example = (summary or inspect.getdoc(callback) or "").partition("Example:")
    yield from (f"## {path}", "", " ".join(text.split()), "")
    if example:
        yield from ("```sh", " ".join(example.split()), "```", "")
    yield from ("| argument or option | value | meaning |", "|---|---|---|")
    hints = get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        yield _parameter(name, parameter.default, *get_args(hints[name])[:2])
    yield ""


def _parameter(name: str, default: Any, annotation: Any, info: ParameterInfo) -> str:
    options = isinstance(info, OptionInfo)
    flag = annotation is bool
    words = [*(info.param_decls or ()), *([info.default] if isinstance(info.default, str) else [])]
    spelled = [word for word in words if word.startswith("-")] or [f"--{name.replace('_', '-')}"]
    optional = default is not inspect.Parameter.empty
    plain = info.show_default if isinstance(info.show_default, str) else ""
    if optional and default is not None and not isinstance(default, bool):
        plain = getattr(default, "value", default)
    shown = ", ".join(f"`{word}`" for word in "/".join(spelled).split("/")) if options else f"`{name.upper()}`"
    kind = "" if flag else f"`{info.metavar}`" if info.metavar else _value(annotation)
    note = f" Default: {plain}." if plain != "" else ""
    if not options and optional:
        kind += ", optional"
    return f"| {shown} | {_cell(kind)} | {_cell(info.help or '')}{note} |"


def _value(annotation: Any) -> str:
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if inner:
        return _value(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{choice.value}`" for choice in annotation)
    return {Path: "path", int: "integer", float: "number"}.get(annotation, "text")


def points() -> Iterator[str]:
    """The table of plug-in points."""
    yield from ("| point | key of the study | decides | ships | entry-point group |", "|---|---|---|---|---|")
    for point, key, decides in POINTS:
        kinds = ", ".join(f"`{kind}`" for kind in point._builtin)
        keys = ", ".join(f"`{name}`" for name in key.split(", ")) if key != "-" else "found from the file"
        yield f"| {point.name} | {keys} | {decides} | {kinds} | `{point.group}` |"


def traits() -> Iterator[str]:
    """The table of traits of everything that ships and declares some."""
    yield from ("| plug-in | traits |", "|---|---|")
    for point, key, _ in POINTS:
        for kind in point._builtin if key != "-" else ():
            found = _traits(point, kind)
            if found:
                yield f"| {point.name} `{kind}` | {', '.join(f'`{trait}`' for trait in found)} |"


def _traits(point: PluginPoint, kind: str) -> list[str]:
    config = point.load(kind).Config
    try:
        made = config(kind=kind)
    except ValidationError:
        made = config.model_construct(kind=kind)
    return sorted(made.traits())


def combinations() -> Iterator[str]:
    """The table of combinations that are refused."""
    yield from ("| rule | refused together | because | instead |", "|---|---|---|---|")
    for rule in COMBINATIONS:
        together = " and ".join(f"`{trait}`" for trait in sorted(rule.together))
        yield f"| {rule.name} | {together} | {rule.why} | {rule.instead} |"


def study() -> Iterator[str]:
    """Every key of a study."""
    yield from _model(Study, "", set())


def site() -> Iterator[str]:
    """Every key of a site's file."""
    yield from _model(Site, "", set())


def plugins() -> Iterator[str]:
    """Every plug-in that a study can choose, with its settings."""
    seen: set[Any] = set()
    for point, key, decides in POINTS:
        if key == "-":
            continue
        yield from (f"## {point.name}", "", f"{decides[0].upper()}{decides[1:]}. Chosen by `{key}`.", "")
        for kind in point._builtin:
            config = point.load(kind).Config
            yield from (f"### {kind} {{: #{_anchor(point.name)}-{kind} }}", "", *_about(point.load(kind), config), "")
            prefix = key if point is TASKS else ""
            yield from _table(config, prefix, seen, skip=("kind",), anchor=f"{_anchor(point.name)}-{kind}")


def _about(plugin: Any, config: type[BaseModel]) -> Iterator[str]:
    text = config.__dict__.get("__doc__") or sys.modules[plugin.__module__].__doc__ or ""
    yield _prose(_described(text, config)[0])


def _described(text: str, model: type[BaseModel]) -> tuple[str, dict[str, str]]:
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


def _prose(text: str) -> str:
    """A docstring as Markdown: indented lines are formulas."""
    if text.strip() == "No settings.":
        return ""
    return re.sub(r"(?m)^ +(\S.*)$", lambda found: f"\n```text\n{found[1].strip()}\n```\n", text)


def _model(model: type[BaseModel], prefix: str, seen: set[Any]) -> Iterator[str]:
    yield from (f"## {'`' + prefix + '`' if prefix else 'The ' + model.__name__.lower()}", "")
    yield from _section(model, prefix, seen)


def _section(
    model: type[BaseModel], prefix: str, seen: set[Any], skip: tuple[str, ...] = ("kind",), anchor: str = "key"
) -> Iterator[str]:
    text = model.__dict__.get("__doc__") or ""
    yield from (_prose(_described(text, model)[0]), "")
    yield from _table(model, prefix, seen, skip, anchor)


def _table(
    model: type[BaseModel], prefix: str, seen: set[Any], skip: tuple[str, ...] = (), anchor: str = "key"
) -> Iterator[str]:
    fields = {name: field for name, field in model.model_fields.items() if name not in skip}
    if not fields:
        yield from ("No settings.", "")
        return
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        meanings |= _described(base.__dict__.get("__doc__") or "", model)[1] if base.__module__[:5] == "medfl" else {}
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in fields.items():
        path = f"{prefix}.{name}" if prefix else name
        point = _point(field)
        kind = _linked(point) if point else _type(field.annotation)
        kind = re.sub("^section", f"[section](#{anchor}-{path.replace('.', '-')})", kind)
        meaning = field.description or meanings.get(name, "")
        yield f"| `{name}` | {kind}{_limits(field)} | {_default(field)} | {_cell(meaning)} |"
        inner += [(path, found) for found in _models(field.annotation)] if point is None else []
    yield ""
    for path, found in inner:
        place = f"{{: #{anchor}-{path.replace('.', '-')} }}"
        if (anchor, path, found) in seen:
            continue
        here = (anchor, path) not in seen
        seen |= {(anchor, path), (anchor, path, found)}
        kinds = get_args(found.model_fields["kind"].annotation) if "kind" in found.model_fields else ()
        # one kind: a choice among sections; several: the section's own setting
        suffix = f" with `kind: {kinds[0]}`" if len(kinds) == 1 else ""
        yield from (f"#### `{path}`{suffix}{' ' + place if here else ''}", "")
        yield from _section(found, path, seen, ("kind",) if suffix else (), anchor)


def _point(field: FieldInfo) -> PluginPoint | None:
    found = [item for item in field.metadata if isinstance(item, PluginPoint)]
    found += [item for item in _annotations(field.annotation) if isinstance(item, PluginPoint)]
    return found[0] if found else None


def _annotations(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _annotations(argument)


def _linked(point: PluginPoint) -> str:
    listed = "list of " if point.name in ("local rule", "regulator rule") else ""
    return f"{listed}[{point.name}](#{_anchor(point.name)})"


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, PluginConfig) else [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin in (tuple, list):
        counted = [argument for argument in arguments if argument is not Ellipsis]
        plain = f"list of {_type(counted[0])}"
        return plain if Ellipsis in arguments or origin is list else f"{len(counted)} x {_type(counted[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", type(None): "`null`"}
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return str(getattr(annotation, "__name__", annotation)).lower()


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(item, name)}" for item in field.metadata for name, sign in signs.items()
             if getattr(item, name, None) is not None]  # fmt: skip
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.default_factory is not None:
        return ""
    if value is PydanticUndefined:
        return "required"
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"kind"}:
        return f"`{value['kind']}`"
    if isinstance(value, BaseModel):
        plain = getattr(value, "value", None)
        kind = getattr(value, "kind", None)
        return f"`{plain}`" if plain is not None else f"`{kind}`" if kind else "its defaults"
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value) or "`[]`"
    shown = {None: "`null`", True: "`true`", False: "`false`", "": '`""`'}
    return shown[value] if isinstance(value, bool | None) or value == "" else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS = {
    "commands": commands,
    "plug-in points": points,
    "traits": traits,
    "combinations": combinations,
    "study": study,
    "site": site,
    "plug-ins": plugins,
}
