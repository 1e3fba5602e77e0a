"""Docstrings and settings as Markdown."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from medfl.plugins import PluginPoint
from medfl.study.settings import described, settings

_SPECIAL = re.compile(r"(`[^`]*`)|([*_<\[\]|#\\])")


def anchor(name: str) -> str:
    """A point's name in links and file names."""
    return name.replace(" ", "-")


def cell(text: str) -> str:
    """A text in a table's cell; what Markdown would read as more than text is escaped."""
    return _escaped(" ".join(text.split()), table=True)


def prose(text: str) -> str:
    """A docstring as Markdown: indented lines are formulas, everything else is text."""
    if text.strip() == "No settings.":
        return ""
    lines, formula = list[str](), list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith(" "):
            formula.append(line)
            continue
        if formula:
            lines += ["", "```text", *_dedented(formula), "```", ""]
            formula = []
        lines.append(_escaped(line))
    return "\n".join(lines).strip()


def _dedented(lines: list[str]) -> list[str]:
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return [line[margin:] for line in lines]


def _escaped(text: str, table: bool = False) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1]:
            return found[1].replace("|", "\\|") if table else found[1]
        return "\\" + found[2]

    return _SPECIAL.sub(one, text)


def section(
    model: type[BaseModel],
    prefix: str,
    seen: set[Any],
    skip: tuple[str, ...] = ("kind",),
    name: str = "key",
    links: str = "",
) -> Iterator[str]:
    """A model's settings as a table, then those of its sections. prefix: its key in a study; seen: what was shown
    already; name: begins every anchor; links: the page that has the plug-in points."""
    own = settings(model, skip)
    if not own:
        yield from ("No settings.", "")
        return
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    inner: list[tuple[str, type[BaseModel]]] = []
    for one in own:
        path = f"{prefix}.{one.name}" if prefix else one.name
        value = _linked(one.point, links) if one.point else one.value
        value = re.sub("^section", f"[section](#{name}-{path.replace('.', '-')})", value)
        bounds = f", {one.bounds}" if one.bounds else ""
        default = "" if one.default == "made anew" else one.default
        yield f"| `{one.name}` | {value}{bounds} | {default} | {cell(one.meaning)} |"
        inner += [(path, found) for found in one.sections]
    yield ""
    for path, found in inner:
        yield from _inner(path, found, seen, name, links)


def _inner(path: str, model: type[BaseModel], seen: set[Any], name: str, links: str) -> Iterator[str]:
    if (name, path, model) in seen:
        return
    place = f"{{: #{name}-{path.replace('.', '-')} }}"
    here = (name, path) not in seen
    seen |= {(name, path), (name, path, model)}
    kinds = get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()
    # one kind: a choice among sections; several: the section's own setting
    suffix = f" with `kind: {kinds[0]}`" if len(kinds) == 1 else ""
    yield from (f"#### `{path}`{suffix}{' ' + place if here else ''}", "")
    yield from (about(model), "")
    yield from section(model, path, seen, ("kind",) if suffix else (), name, links)


def about(model: type[BaseModel]) -> str:
    """What a model's docstring says, but for its settings."""
    return prose(described(model.__dict__.get("__doc__") or "", model)[0])


def _linked(point: PluginPoint, links: str) -> str:
    listed = "list of " if point.name in ("local rule", "regulator rule") else ""
    return f"{listed}[{point.name}]({links}#{anchor(point.name)})"
