"""The catalogue holds every point and every plug-in, says what they say, and outlives a broken one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import medfl
from medfl.errors import StudyError
from medfl.plugins import PluginPoint
from medfl.study.catalogue import BUILT_IN, PLACES, Entry, Place, entries, entry_named, place_named
from medfl.study.citations import papers, without_citations
from medfl.study.examples import BASE, as_yaml, example, merged, refusals
from medfl.study.load import load_study
from medfl.study.model import Study
from medfl.study.rules import conflicts
from medfl.study.settings import settings

ROOT = Path(medfl.__file__).parent
CHOSEN = [entry for place in PLACES if place.keys for entry in entries(place) if entry.origin == BUILT_IN]


def named(entry: Entry) -> str:
    return f"{entry.place.name} {entry.kind}"


def test_no_point_is_missing() -> None:
    made = re.compile(r"^[A-Z_]+ = \w*Point\(", re.MULTILINE)
    defined = sum(len(made.findall(path.read_text(encoding="utf-8"))) for path in ROOT.rglob("*.py"))
    assert defined == len(PLACES) == len({place.name for place in PLACES})


def test_every_point_lists_all_of_its_kinds() -> None:
    for place in PLACES:
        assert [entry.kind for entry in entries(place)] == list(place.point.targets)


@pytest.mark.parametrize("entry", CHOSEN, ids=named)
def test_what_ships_loads_and_says_what_it_does(entry: Entry) -> None:
    assert entry.fault == ""
    assert len(entry.summary.split()) >= 3
    assert entry.to_json()["schema"]["properties"]["kind"]["const"] == entry.kind


@pytest.mark.parametrize("entry", CHOSEN, ids=named)
def test_the_example_is_a_study_that_chooses_the_plugin(entry: Entry, tmp_path: Path) -> None:
    shown = example(entry)
    assert shown is not None
    path = tmp_path / "study.yaml"
    path.write_text(as_yaml(merged(BASE, shown.part)), encoding="utf-8")
    study = load_study(path)
    assert repr(entry.config)[8:-2].rsplit(".", 1)[-1] in repr(study)


def test_an_example_brings_what_the_plugin_needs() -> None:
    shown = example(entry_named(place_named("local rule"), "distillation"))
    assert shown is not None
    assert "teacher" in shown.companion["task"]
    alone = Study.model_validate(merged(BASE, {"local": {"rules": ["distillation"]}}))
    assert any("teacher" in fault.where for fault in conflicts(alone))


def test_refusals_are_those_of_the_rules() -> None:
    masks = entry_named(place_named("channel"), "masks")
    found = {one.rule.name: one.beside for one in refusals(masks, example(masks))}
    assert found["C15"] == ("regulator:needs-each-update",)
    clear = entry_named(place_named("channel"), "clear")
    assert "C15" not in {one.rule.name for one in refusals(clear, example(clear))}


def test_refusals_include_what_a_study_says_of_a_plugin() -> None:
    memory = entry_named(place_named("memory"), "error_feedback")
    found = [one.rule.name for one in refusals(memory, example(memory))]
    assert "C4" in found
    assert found == [one.rule.name for one in refusals(memory, example(memory))]


def test_settings_have_type_bounds_default_and_meaning() -> None:
    rule = entry_named(place_named("local rule"), "fedprox")
    assert [(one.name, one.value, one.default) for one in rule.settings] == [("mu", "hyper-parameter", "`0.01`")]
    decay = entry_named(place_named("memory"), "error_feedback").settings[0]
    assert (decay.name, decay.value, decay.bounds, decay.default) == ("decay", "number", "≥ 0, ≤ 1", "`1.0`")
    assert decay.meaning.startswith("below 1 forgets")
    assert {one.name for one in settings(Study)} == set(Study.model_fields)


def test_names_are_forgiving_and_unknown_ones_are_answered() -> None:
    assert place_named("Local_Rules") is place_named("local rule")
    with pytest.raises(StudyError, match="use one of: task, data plan"):
        place_named("codex")
    with pytest.raises(StudyError, match="use one of: fp32"):
        entry_named(place_named("codec"), "fp23")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('FedProx (Li et al., "Fed (and more)", MLSys 2020).', ('Li et al., "Fed (and more)", MLSys 2020',)),
        ("EF (Seide et al. 2014; Karimireddy et al. 2019): a", ("Seide et al. 2014", "Karimireddy et al. 2019")),
        ('K. Bonawitz et al., "Secure", CCS 2017: more', ('K. Bonawitz et al., "Secure", CCS 2017',)),
        ("DRFA (Deng, Kamani & Mahdavi, NeurIPS 2020), and Prox", ("Deng, Kamani & Mahdavi, NeurIPS 2020",)),
        ("as Wang & Joshi 2019 say", ("Wang & Joshi 2019",)),
        ("masks (McMahan et al.,\narXiv 1602.05629)", ("McMahan et al., arXiv 1602.05629",)),
        ("(VOC 2012 itself counts pixels from 1) in 2012 of 2048 values (about 2000)", ()),
    ],
)
def test_papers_are_found(text: str, found: tuple[str, ...]) -> None:
    assert papers(text) == found


def test_a_text_without_its_papers() -> None:
    assert without_citations("EF (Seide et al. 2014): a (or b)") == "EF: a (or b)"


def installed(folder: Path, name: str, kind: str, code: str, module: str) -> None:
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[medfl.codecs]\n{kind} = {module}:Other\n", encoding="utf-8")


GOOD = """'''Sends nothing at all (Nobody et al. 2031).'''
from typing import Literal
from medfl.plugins import PluginConfig
from medfl.update.codecs.base import Codec

class OtherConfig(PluginConfig):
    kind: Literal["other"] = "other"

class Other(Codec):
    Config = OtherConfig
"""


def listed(folder: Path) -> str:
    code = (
        "import sys; from medfl.study.catalogue import entries, place_named\n"
        "for e in entries(place_named('codec')): print(e.kind, '|', e.origin, '|', e.fault or e.summary)\n"
        "print(sorted({'torch', 'monai', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{folder}:{ROOT.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plugins_of_others_are_listed_also_those_that_cannot_be_used(tmp_path: Path) -> None:
    installed(tmp_path, "good", "other", GOOD, "good_codec")
    installed(tmp_path, "broken", "broken", "raise RuntimeError('no licence')", "broken_codec")
    installed(tmp_path, "shadow", "fp16", GOOD, "shadow_codec")
    installed(tmp_path, "wrong", "misnamed", GOOD, "misnamed_codec")
    *lines, heavy = listed(tmp_path).splitlines()
    assert "other | good 1.2 | Sends nothing at all" in lines
    assert any(re.match(r"broken \| broken 1\.2 \| cannot be loaded .*no licence", line) for line in lines)
    assert "fp16 | shadow 1.2 | is not used: medfl has a codec of this name" in lines
    assert any(line.startswith("misnamed | wrong 1.2 | has no Config") for line in lines)
    assert any(line.startswith("fp16 | medfl | Half precision") for line in lines)
    assert heavy == "[]"


def test_a_point_knows_whether_it_is_a_list() -> None:
    several = {place.name for place in PLACES if place.several}
    assert several == {"local rule", "regulator rule"}
    assert all(isinstance(place, Place) and isinstance(place.point, PluginPoint) for place in PLACES)
