"""The plug-ins' pages: one each, made from the code, with examples that load."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from medfl.study.catalogue import BUILT_IN, PLACES, entries
from medfl.study.examples import BASE, merged
from medfl.study.load import load_study

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"```yaml[^\n]*\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    import hooks

    yield hooks
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def pages(hooks: Any) -> dict[str, str]:
    found: dict[str, str] = hooks.algorithm_pages.pages()
    return found


def test_there_is_a_page_for_each_plugin(pages: dict[str, str]) -> None:
    chosen = [entry for place in PLACES if place.keys for entry in entries(place) if entry.origin == BUILT_IN]
    assert len(pages) == len(chosen)
    for entry in chosen:
        page = pages[f"algorithms/{entry.place.name.replace(' ', '-')}/{entry.kind}.md"]
        assert page.startswith(f"# {entry.place.name} `{entry.kind}`")
        assert all(f"| `{one.name}` |" in page for one in entry.settings)


def test_examples_of_pages_are_studies(pages: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    for name, page in pages.items():
        found = FENCE.findall(page)
        assert len(found) == 1, name
        path.write_text(yaml.safe_dump(merged(BASE, yaml.safe_load(found[0]))), encoding="utf-8")
        load_study(path)


def test_formulas_are_code_and_text_is_text(pages: dict[str, str]) -> None:
    page = pages["algorithms/local-rule/distillation.md"]
    assert "```text\nteacher:  min L(T(x), y)\nstudent:" in page
    assert "FedMom:  v' = w + lr D" in pages["algorithms/server-step/momentum.md"]
    assert "w\\_k" in pages["algorithms/aggregator/weighted_mean.md"]


def test_pages_name_the_rules_that_refuse(pages: dict[str, str]) -> None:
    page = pages["algorithms/channel/masks.md"]
    assert "| `regulator:needs-each-update` |" in page
    assert "It needs what stands beside it: `update.clip`." in page
    assert "## Not together with" not in pages["algorithms/codec/fp32.md"]


def test_pages_link_to_what_is_there(hooks: Any, pages: dict[str, str]) -> None:
    index = "\n".join(hooks.PARTS["algorithms"]())
    for name in pages:
        assert f"](../{name})" in index
    anchors = set(re.findall(r"\{: #([\w-]+) \}", "\n".join(hooks.PARTS["plug-ins"]())))
    linked = {name for page in pages.values() for name in re.findall(r"study\.md#([\w-]+)\)", page)}
    assert linked
    assert linked <= anchors
    for page in pages.values():
        own = set(re.findall(r"\{: #([\w-]+) \}", page))
        assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= own


def test_nothing_that_is_made_is_kept() -> None:
    assert [path.name for path in (DOCS / "algorithms").rglob("*")] == ["index.md"]


def test_every_marker_is_filled_in(hooks: Any) -> None:
    for path in DOCS.rglob("*.md"):
        filled = hooks.on_page_markdown(path.read_text(encoding="utf-8"))
        assert not hooks.MARKER.search(filled)


def test_navigation_holds_every_page(hooks: Any, pages: dict[str, str]) -> None:
    config = type("Config", (), {"nav": [{"Start": "index.md"}, {"Algorithms": ["algorithms/index.md"]}]})()
    hooks.on_config(config)
    named = [
        path
        for group in config.nav[1]["Algorithms"][1:]
        for own in group.values()
        for one in own
        for path in one.values()
    ]
    assert sorted(named) == sorted(pages)
