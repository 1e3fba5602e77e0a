"""The commands on a saved model, as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image as Pillow
from typer.testing import CliRunner

from medfl.cli import model
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.errors import InputError
from medfl.study.load import study_from_json
from medfl.study.model import Site, SiteShift
from medfl.study.sources import RunInputs

app = typer.Typer()
for command in (model.evaluate, model.predict, model.report):
    app.command()(command)


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("detection")
    network = {"depth": None, "layers": [1, 1], "width": 4}
    study = study_from_json(
        {
            "name": "lesions",
            "task": {"kind": "detection", "classes": ["lung nodule", "liver lesion"], "backbone": network},
            "data": {
                "source": {"kind": "synthetic", "generator": "ct", "task": "detection", "size": [32, 32], "cases": 10},
                "preprocess": {"size": [32, 32]},
            },
            "local": {"max_steps": 2},
            "stop": {"rounds": 1},
        }
    )
    sites = tuple(Site(name=name, synthetic=SiteShift(prevalence=1.0)) for name in ("north", "south"))
    simulate(RunInputs(study=study, sites=sites, cache=root / "cache"), root / "run", Observer(), workers=1)
    return root / "run"


@pytest.mark.parametrize("name", ["evaluate", "predict", "report"])
def test_help_has_an_example(name):
    found = call(name, "--help")
    assert found.exit_code == 0 and f"Example: medfl {name}" in found.output


def test_evaluate_prints_one_json_object(run):
    found = call("evaluate", run, "--json")
    summary = json.loads((run / "summary.json").read_text())
    assert found.exit_code == 0
    printed = json.loads(found.stdout)
    assert printed["metrics"] == summary["metrics"]
    table = call("evaluate", run)
    assert table.exit_code == 0 and "north" in table.stdout and "lung nodule" in table.stdout
    total = sum(printed["cases"].values())
    assert f"together │ {total} │" in " ".join(table.stdout.split())


def test_evaluate_tells_what_is_wrong(tmp_path):
    found = call("evaluate", tmp_path)
    assert isinstance(found.exception, InputError) and found.exception.exit_code == 2


def test_predict_writes_boxes_and_goes_on_after_a_bad_image(run, tmp_path):
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = call(
        "predict", tmp_path / "bad.png", tmp_path / "good.png", "--model", run, "--out", tmp_path / "out", "--json"
    )
    assert found.exit_code == 2
    printed = json.loads(found.stdout)
    bad, good = printed["predictions"]
    assert printed["failed"] == 1 and "cannot be read" in bad["faults"][0]["what"] and good["faults"] == []
    assert "bad.png" in found.stderr
    written = json.loads((tmp_path / "out" / "good.json").read_text())
    assert written["boxes"] == good["boxes"] and written["shape"] == [48, 64]
    for one in written["boxes"]:
        row0, column0, row1, column1 = one["box"]
        assert 0 <= row0 <= row1 <= 48 and 0 <= column0 <= column1 <= 64
        assert one["class"] in ("lung nodule", "liver lesion") and 0 <= one["score"] <= 1
    assert Pillow.open(tmp_path / "out" / "good_overlay.png").size[0] > 100
    assert not (tmp_path / "out" / "bad.json").exists()


def test_predict_without_faults_ends_with_0(run, tmp_path):
    Pillow.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "[black].png")
    found = call("predict", tmp_path / "[black].png", "--model", run / "model", "--out", tmp_path / "out")
    assert found.exit_code == 0 and "[black].png" in found.stdout and "boxes" in found.stdout


def test_report_writes_page_and_card(run):
    (run / "model" / "model_card.md").unlink(missing_ok=True)
    found = call("report", run, "--no-pictures", "--json")
    printed = json.loads(found.stdout)
    assert Path(printed["report"]).is_file() and Path(printed["model_card"]).is_file()
    assert "were left out on request" in Path(printed["report"]).read_text()
    assert "<img" in Path(json.loads(call("report", run, "--json").stdout)["report"]).read_text()
