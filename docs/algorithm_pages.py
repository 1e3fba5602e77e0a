"""One page a plug-in, made from its docstrings, its configuration and the rules of combination."""

from collections.abc import Iterator

from markdown_text import anchor, cell, prose, section

from medfl.study.catalogue import BUILT_IN, PLACES, Entry, Place, entries
from medfl.study.examples import Part, Refusal, as_yaml, example, refusals
from medfl.tasks.base import TASKS

FOLDER = "algorithms"


def shipped(place: Place) -> list[Entry]:
    """What ships with medfl; what else is installed where the documentation is built is left out."""
    return [entry for entry in entries(place) if entry.origin == BUILT_IN]


def path_of(entry: Entry) -> str:
    """The page of a plug-in, from the documentation's root."""
    return f"{FOLDER}/{anchor(entry.place.name)}/{entry.kind}.md"


def pages() -> dict[str, str]:
    """Every page by its path."""
    chosen = [place for place in PLACES if place.keys]
    return {path_of(entry): "\n".join(page(entry)) for place in chosen for entry in shipped(place)}


def navigation() -> list[dict[str, list[dict[str, str]]]]:
    """The pages as a part of MkDocs' `nav`."""
    chosen = [place for place in PLACES if place.keys]
    return [{place.name: [{entry.kind: path_of(entry)} for entry in shipped(place)]} for place in chosen]


def overview(folder: str) -> Iterator[str]:
    """Every plug-in by point, with links as seen from `folder` ("" or "../")."""
    for place in PLACES:
        if not place.keys:
            continue
        keys = ", ".join(f"`{key}`" for key in place.keys)
        name = anchor(place.name)
        yield from (f"## {place.name} {{: #{name} }}", "", f"{place.decides[0].upper()}{place.decides[1:]}.", "")
        yield from (f"Chosen by {keys}{', a list' if place.several else ''}.", "")
        yield from ("| kind | what it does | paper |", "|---|---|---|")
        for entry in shipped(place):
            link = f'<a id="{name}-{entry.kind}"></a>[`{entry.kind}`]({folder}{path_of(entry)})'
            yield f"| {link} | {cell(entry.summary)} | {cell('; '.join(entry.papers))} |"
        yield ""


def page(entry: Entry) -> Iterator[str]:
    """A plug-in's page."""
    shown = example(entry)
    yield from (f"# {entry.place.name} `{entry.kind}`", "", prose(entry.text), "", *_facts(entry), "")
    yield from ("## Settings", "")
    if entry.config is not None:
        prefix = entry.place.keys[0] if entry.place.point is TASKS else ""
        yield from section(entry.config, prefix, set(), links="../../study.md")
    if shown is not None:
        yield from ("## In a study", "", '```yaml title="part of a study"', as_yaml(shown.part).rstrip(), "```", "")
        if shown.companion:
            yield from (
                f"It needs what stands beside it: {', '.join(f'`{key}`' for key in _keys(shown.companion))}.",
                "",
            )
    yield from _refused(refusals(entry, shown))


def _keys(part: Part, prefix: str = "") -> Iterator[str]:
    for name, value in part.items():
        nested = isinstance(value, dict) and "kind" not in value
        yield from _keys(value, f"{prefix}{name}.") if nested else (f"{prefix}{name}",)


def _facts(entry: Entry) -> Iterator[str]:
    yield f"- Chosen by {', '.join(f'`{key}`' for key in entry.place.keys)}{', a list' if entry.place.several else ''}"
    if entry.papers:
        yield f"- Paper: {prose('; '.join(entry.papers))}"
    if entry.traits:
        given = ", ".join(f"`{name}: {value}`" for name, value in (entry.given or {}).items())
        settings = f"the default settings and {given}" if given else "the default settings"
        traits = ", ".join(f"`{trait}`" for trait in entry.traits)
        yield f"- [Traits](../../concepts.md#traits): {traits} (with {settings}; others may change them)"
    yield f"- Class: `{entry.target.replace(':', '.')}`"


def _refused(found: list[Refusal]) -> Iterator[str]:
    if not found:
        return
    yield from ("## Not together with", "")
    yield from ("A study is refused when it has, beside this, what stands in one of these lines.", "")
    yield from ("| beside it | because | instead | rule |", "|---|---|---|---|")
    for refusal in found:
        beside = " and ".join(f"`{fact}`" for fact in refusal.beside)
        rule = refusal.rule
        yield f"| {beside} | {cell(rule.why)} | {cell(rule.instead)} | {rule.name} |"
