"""Parts of the documentation that are made from the code, so that they cannot differ from it.

A page asks for one with a line `<!-- made from the code: NAME -->`. The pages of the plug-ins are made whole.
"""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import algorithm_pages
import typer
from markdown_text import about, cell, section
from pydantic import BaseModel
from typer.models import OptionInfo, ParameterInfo

from medfl.cli.main import app
from medfl.study.catalogue import PLACES
from medfl.study.combinations import RULES
from medfl.study.model import Site, Study

MARKER = re.compile(r"^<!-- made from the code: ([a-z -]+) -->$", re.MULTILINE)


def on_config(config: Any) -> None:
    """MkDocs' hook: the plug-ins' pages come after `algorithms/index.md` in the navigation."""
    for part in config.nav:
        if "Algorithms" in part:
            part["Algorithms"] += algorithm_pages.navigation()


def on_files(files: Any, config: Any) -> None:
    """MkDocs' hook: add the plug-ins' pages."""
    from mkdocs.structure.files import File

    for path, content in algorithm_pages.pages().items():
        files.append(File.generated(config, path, content=content))


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
    return f"| {shown} | {cell(kind)} | {cell(info.help or '')}{note} |"


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
    for place in PLACES:
        kinds = ", ".join(f"`{entry.kind}`" for entry in algorithm_pages.shipped(place))
        keys = ", ".join(f"`{key}`" for key in place.keys) or "found from the file"
        yield f"| {place.name} | {keys} | {place.decides} | {kinds} | `{place.point.group}` |"


def traits() -> Iterator[str]:
    """The table of traits of everything that ships and declares some."""
    yield from ("| plug-in | traits |", "|---|---|")
    for place in PLACES:
        for entry in algorithm_pages.shipped(place):
            if entry.traits:
                link = f"[{place.name} `{entry.kind}`]({algorithm_pages.path_of(entry)})"
                yield f"| {link} | {', '.join(f'`{trait}`' for trait in entry.traits)} |"


def combinations() -> Iterator[str]:
    """The table of combinations that are refused."""
    yield from ("| rule | refused together | because | instead |", "|---|---|---|---|")
    for rule in RULES:
        together = " and ".join(f"`{trait}`" for trait in sorted(rule.together))
        yield f"| {rule.name} | {together} | {cell(rule.why)} | {cell(rule.instead)} |"


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """Every key of a study or of a site's file."""
    yield from (f"## The {model.__name__.lower()}", "", about(model), "", *section(model, "", set()))


PARTS = {
    "commands": commands,
    "plug-in points": points,
    "traits": traits,
    "combinations": combinations,
    "study": partial(keys_of, Study),
    "site": partial(keys_of, Site),
    "plug-ins": partial(algorithm_pages.overview, ""),
    "algorithms": partial(algorithm_pages.overview, "../"),
}
