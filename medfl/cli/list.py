"""`medfl list`: the plug-ins that a study can choose among."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, print_json, result

if TYPE_CHECKING:
    from medfl.study.catalogue import Entry, Place
    from medfl.study.examples import Example, Refusal
    from medfl.study.settings import Setting


def plugins(
    point: Annotated[
        str | None, typer.Argument(help="One plug-in point: codec, 'local rule', ...", show_default=False)
    ] = None,
    kind: Annotated[str | None, typer.Argument(help="One plug-in of it, shown whole.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List what a study can choose among: every codec, local rule, schedule, ... with settings, traits and papers.

    Example: medfl list codec fp16
    """
    from medfl.study.catalogue import PLACES, entries, entry_named, place_named

    if point is None:
        # readers and importers are found from files, no study chooses them
        found = {place: entries(place) for place in PLACES if place.keys}
    elif kind is None:
        place = place_named(point)
        found = {place: entries(place)}
    else:
        place = place_named(point)
        _one(entry_named(place, kind), json)
        return
    if json:
        print_json({"points": [_point(place, own) for place, own in found.items()]})
        return
    for place, own in found.items():
        _table(place, own)


def _point(place: "Place", own: "list[Entry]") -> dict[str, Any]:
    return {
        "point": place.name,
        "keys": list(place.keys),
        "several": place.several,
        "decides": place.decides,
        "entry_points": place.point.group,
        "plugins": [entry.to_json() for entry in own],
    }


def _table(place: "Place", own: "list[Entry]") -> None:
    from rich.markup import escape
    from rich.table import Table

    keys = f" ({', '.join(place.keys)})" if place.keys else ""
    table = Table(title=f"[bold]{place.name}[/]{keys}: {place.decides}", title_justify="left", title_style="")
    table.add_column("kind", no_wrap=True)
    table.add_column("what it does", ratio=5)
    table.add_column("traits by default", ratio=3)
    table.add_column("settings", ratio=4)
    for entry in own:
        name = escape(entry.kind) + (f"\n[dim]{escape(entry.origin)}[/]" if entry.origin != "medfl" else "")
        table.add_row(name, _about(entry), escape(", ".join(entry.traits)), escape(", ".join(_brief(entry.settings))))
    result().print(table)
    if any(entry.given for entry in own):
        result().print("traits may follow settings; settings without a default were given values", style="dim")


def _about(entry: "Entry") -> str:
    from rich.markup import escape

    if entry.fault:
        return f"[red]{escape(entry.fault)}[/]"
    cited = f"\n[dim]{escape('; '.join(entry.papers))}[/]" if entry.papers else ""
    return escape(entry.summary) + cited


def _brief(settings: "list[Setting]") -> list[str]:
    return [f"{one.name} {_bare(one.default)}" for one in settings]


def _bare(text: str) -> str:
    return text.replace("`", "")


def _one(entry: "Entry", json: bool) -> None:
    from medfl.errors import StudyError

    if entry.fault:
        raise StudyError.at(f"{entry.place.name} {entry.kind!r} of {entry.origin}", entry.fault)
    shown, rules, note = _in_studies(entry)
    if json:
        refused = [
            {"rule": one.rule.name, "beside": list(one.beside), "why": one.rule.why, "instead": one.rule.instead}
            for one in rules
        ]
        found = {"point": entry.place.name, **entry.to_json(), "example": shown and shown.part}
        print_json({**found, "refused_with": refused, "note": note or None})
        return
    _head(entry)
    _settings(entry.settings)
    _tail(entry, shown)
    for one in rules:
        text = f"refused with {' and '.join(one.beside)}: {one.rule.why}; {one.rule.instead}"
        result().print(text, highlight=False, markup=False)
    if note:
        result().print(note, highlight=False, markup=False)


def _in_studies(entry: "Entry") -> "tuple[Example | None, list[Refusal], str]":
    """An example, the rules that name the plug-in, and why there are none: studies need every plug-in to load."""
    from medfl.errors import MedflError

    try:
        from medfl.study.examples import example, refusals
    except MedflError as error:
        return None, [], f"no example and no combinations, since studies cannot be read: {error}"
    shown = example(entry)
    return shown, refusals(entry, shown), ""


def _head(entry: "Entry") -> None:
    result().print(f"{entry.place.name} {entry.kind}", style="bold", highlight=False, markup=False)
    result().print(f"{entry.target}, from {entry.origin}\n", style="dim", highlight=False, markup=False)
    result().print(entry.text, highlight=False, markup=False)


def _settings(settings: "list[Setting]") -> None:
    from rich.markup import escape
    from rich.table import Table

    if not settings:
        result().print("\nno settings")
        return
    table = Table("setting", "value", "default", "meaning")
    for one in settings:
        value = ", ".join(part for part in (one.value, one.bounds) if part)
        table.add_row(*(escape(_bare(text)) for text in (one.name, value, one.default, one.meaning)))
    result().print()
    result().print(table)


def _tail(entry: "Entry", shown: "Example | None") -> None:
    if entry.traits:
        of = f"with {entry.given}" if entry.given else "by default; they may follow the settings"
        result().print(f"traits: {', '.join(entry.traits)} ({of})", highlight=False, markup=False)
    if entry.papers:
        result().print(f"papers: {'; '.join(entry.papers)}", highlight=False, markup=False)
    if shown is not None:
        from medfl.study.examples import as_yaml

        result().print(f"\nin a study:\n{as_yaml(shown.part)}", highlight=False, markup=False)
