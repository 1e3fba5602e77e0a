"""`medfl list`: everything, one point, one plug-in; for people and for scripts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medfl
from medfl.cli.main import main
from medfl.study.catalogue import PLACES

ROOT = Path(medfl.__file__).resolve().parents[1]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        main(["list", *words])
    except SystemExit as end:
        assert end.code in (0, None)
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_everything_that_a_study_can_choose(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    for place in PLACES:
        assert (f"{place.name} (" in text) == bool(place.keys)
        assert not place.keys or all(kind in text for kind in place.point.targets)
    assert "traits may follow settings" in text
    assert "Seide et al. 2014" in text


def test_json_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "--json"))
    points = {point["point"]: point for point in found["points"]}
    codecs = {plugin["kind"]: plugin for plugin in points["codec"]["plugins"]}
    assert codecs["fp32"]["traits"] == ["additive", "support-dense", "unbiased"]
    assert codecs["fp32"]["from"] == "medfl"
    assert codecs["fp16"]["text"].startswith("Half precision")
    rules = {plugin["kind"]: plugin for plugin in points["local rule"]["plugins"]}
    assert rules["fedprox"]["papers"] == ['Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020']
    assert "mu" in rules["fedprox"]["schema"]["properties"]
    assert points["local rule"]["several"] is True


def test_one_point(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "memory")
    assert "error_feedback" in text
    assert "fp16" not in text
    assert "nifti" in shown(capsys, "reader")


def test_one_plugin_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "local-rule", "distillation")
    assert re.search(r"alpha\s+│ number, ≥ 0, ≤ 1 │ 0\.5", text)
    assert "    teacher:  min L(T(x), y)" in text
    assert "traits: needs-teacher, own-loss (by default" in text
    assert "rules: [distillation]" in text
    assert "refused with task:no-teacher: distillation needs a network" in text


def test_one_plugin_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "channel", "masks", "--json"))
    assert found["example"]["update"] == {"clip": 1.0, "channel": "masks"}
    assert {"C1", "C15"} <= {one["rule"] for one in found["refused_with"]}


@pytest.mark.parametrize("words", [["codex"], ["codec", "fp23"]])
def test_an_unknown_name_is_answered_with_the_known_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["list", *words])
    assert end.value.code == 2
    assert "use one of" in capsys.readouterr().err


def test_a_broken_plugin_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n", encoding="utf-8")
    about = tmp_path / "broken-3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 3\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[medfl.gates]\nbroken = broken:Gate\n", encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from medfl.cli.main import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "list", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    listed = run("upload gate")
    assert listed.returncode == 0, listed.stderr
    assert "no_such_module" in listed.stdout
    assert "broken 3" in listed.stdout
    whole = run("codec", "fp16")
    assert whole.returncode == 0, whole.stderr
    assert "studies cannot be read" in whole.stdout
    assert run("upload gate", "broken").returncode == 2
