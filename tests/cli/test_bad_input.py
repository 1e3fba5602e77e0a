"""Wrong input: all faults at once, each with its place and remedy, exit code 2, and no half-written run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from medfl.cli.main import app, main
from medfl.cli.simulate import _next_folder

runner = CliRunner()


def simulate(tiny: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `medfl simulate` on the tiny study, expect exit code 2 and no run folder; what was printed on stderr."""
    out = tiny.folder / "run"
    with pytest.raises(SystemExit) as caught:
        # --data brings its own sites
        sites = [] if "--data" in arguments else ["--sites", str(tiny.sites)]
        main(["simulate", str(tiny.study), *sites, "--out", str(out), "--workers", "1", *arguments])
    assert caught.value.code == 2
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


def changed(tiny: Any, **changes: Any) -> None:
    raw = yaml.safe_load(tiny.study.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = raw
        for parent in parents:
            target = target[parent]
        target[last] = value
    tiny.write(raw)


def test_unknown_key_wrong_type_and_bad_kind_are_reported_together(tiny: Any, capsys: Any) -> None:
    changed(tiny, local__bach_size=8, local__batch_size="many", local__rules=["fedprx"])
    printed = simulate(tiny, capsys)
    assert "3 faults" in printed
    assert "local.bach_size" in printed and "did you mean batch_size?" in printed
    assert "local.batch_size" in printed and "'many'" in printed
    assert "'fedprx'" in printed and "fedprox" in printed


def test_incompatible_choices_name_the_rule_and_the_way_out(tiny: Any, capsys: Any) -> None:
    changed(tiny, local__rules=["distillation"], federation={"regulator": ["validation"]})
    printed = simulate(tiny, capsys)
    assert "2 faults" in printed
    assert "rule teacher" in printed and "task.teacher" in printed
    assert "rule public-data" in printed and "evaluation.public" in printed


def test_missing_study_and_missing_data_folder(tiny: Any, capsys: Any, tmp_path: Path) -> None:
    assert "does not exist" in simulate(tiny, capsys, "--data", str(tmp_path / "nowhere"))
    tiny.study.unlink()
    assert "does not exist" in simulate(tiny, capsys)


def test_wrong_site_files_are_all_named(tiny: Any, capsys: Any) -> None:
    (tiny.sites / "east.yaml").write_text("name: east\nsynthetic: {nois: 0.1}\n")
    (tiny.sites / "west.yaml").write_text("name: [1\n")
    printed = simulate(tiny, capsys)
    assert "east.yaml" in printed and "did you mean noise?" in printed
    assert "west.yaml" in printed and "YAML" in printed


def folder_of_images(root: Path, sites: dict[str, int]) -> Path:
    """A datalist with PNG images for each site, half of each class."""
    items = []
    for site, count in sites.items():
        for number in range(count):
            path = root / site / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((24, 24), 40 + number).save(path)
            items.append({"image": f"{site}/{number}.png", "label": number % 2, "site": site, "split": "train"})
    datalist = {"name": "noise", "task": "classification", "classes": ["normal", "pneumonia"], "training": items}
    (root / "datalist.json").write_text(json.dumps(datalist))
    return root


def test_a_site_whose_images_cannot_be_used_is_named_with_its_files(tiny: Any, capsys: Any, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", {"good": 4, "bad": 2})
    changed(tiny, evaluation={}, data__minimum_cases=2)
    (data / "bad" / "0.png").write_bytes(b"not an image")
    (data / "bad" / "1.png").unlink()
    printed = simulate(tiny, capsys, "--data", str(data))
    assert "bad" in printed and "0 training cases" in printed
    assert "bad/0.png" in printed and "bad/1.png" in printed


def test_one_bad_image_is_skipped_counted_and_listed(tiny: Any, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", {"north": 6, "south": 6})
    (data / "south" / "3.png").write_bytes(b"not an image")
    changed(tiny, evaluation={}, stop={"rounds": 1})
    arguments = ["simulate", str(tiny.study), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    done = runner.invoke(app, [*arguments, "--workers", "1", "--no-report"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert list(summary["data"]["south"]["skipped"]) == ["south/3.png"]
    assert summary["data"]["north"]["skipped"] == {}
    assert summary["data"]["south"]["cases"]["train"] == 5


def test_another_number_of_classes_is_adopted_from_the_images_and_said(tiny: Any, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", {"north": 6, "south": 6})
    datalist = json.loads((data / "datalist.json").read_text())
    datalist["classes"].append("other")
    (data / "datalist.json").write_text(json.dumps(datalist))
    changed(tiny, evaluation={}, stop={"rounds": 1})
    arguments = ["simulate", str(tiny.study), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    done = runner.invoke(app, [*arguments, "--workers", "1", "--no-report"])
    assert done.exit_code == 0, done.output
    assert "normal, pneumonia, other" in done.stderr
    assert "other" in (tmp_path / "run" / "model" / "study.yaml").read_text()


def test_an_unseen_site_that_the_images_do_not_have_is_left_out_and_said(tiny: Any, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", {"here": 6, "there": 6})
    changed(tiny, stop={"rounds": 1})
    arguments = ["simulate", str(tiny.study), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    done = runner.invoke(app, [*arguments, "--workers", "1", "--no-report"])
    assert done.exit_code == 0, done.output
    assert "no unseen site north" in done.stderr
    assert json.loads(done.stdout)["metrics"]["unseen"] == {}


def test_help_is_fast_to_import_and_needs_nothing_heavy() -> None:
    code = (
        "import sys, medfl.cli.main; print([m for m in ('torch', 'monai', 'numpy', 'sqlalchemy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_command_shows_an_example() -> None:
    commands = [["simulate"], ["evaluate"], ["predict"], ["report"], ["study", "check"], ["site", "check"]]
    commands += [["data", name] for name in ("import", "check", "synth", "split", "stats")]
    for command in commands:
        shown = runner.invoke(app, [*command, "--help"])
        assert shown.exit_code == 0
        assert "Example: medfl " + " ".join(command) in " ".join(shown.stdout.split()), command


def test_a_resumed_run_takes_no_other_inputs(tiny: Any, capsys: Any, tmp_path: Path) -> None:
    printed = simulate(tiny, capsys, "--resume", str(tmp_path), "--rounds", "9", "--pooled", "--set", "seed=1")
    assert "STUDY, --sites, --rounds, --out, --set, --pooled" in printed
    assert "cannot be given with --resume" in printed


def test_each_run_without_a_folder_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [_next_folder("a").name for _ in range(3)] == ["a-001", "a-002", "a-003"]


def test_a_run_that_cannot_start_leaves_no_folder(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["simulate", str(tiny.study), "--sites", str(tiny.sites), "--only", "nobody", "--workers", "1"])
    assert caught.value.code == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_the_file_system_refuses_is_said_without_a_traceback(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["simulate", str(tiny.study), "--sites", str(tiny.sites), "--workers", "1"])
    assert caught.value.code == 1
    assert "runs" in capsys.readouterr().err
