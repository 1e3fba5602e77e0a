"""`medfl compare`: all faults before anything runs, nothing run twice, bytes as counted, failures listed."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from medfl.cli.main import main
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.report.compare import runs
from medfl.report.compare.variants import read_variants
from medfl.study.load import load_study
from medfl.transport.engines import Engine


class Command:
    """`medfl compare` on the tiny federation."""

    def __init__(self, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.tiny, self._capsys = tiny, capsys
        self.out = tiny.folder / "compared"
        self.file = tiny.folder / "variants.yaml"

    def __call__(self, variants: Any, *words: str) -> tuple[int, str, str]:
        text = variants if isinstance(variants, str) else yaml.safe_dump(variants, sort_keys=False)
        self.file.write_text(text, encoding="utf-8")
        command = ["compare", str(self.tiny.study), "--variants", str(self.file), "--out", str(self.out)]
        common = ["--rounds", "1", "--workers", "1", "--seeds", "0,1"]
        code = 0
        try:
            main([*command, *common, *words])
        except SystemExit as end:
            code = int(end.code or 0)
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def summary(self, variant: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / variant / f"seed{seed}" / "summary.json").read_text())
        return found


@pytest.fixture
def command(tiny: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")
    return Command(tiny, capsys)


def test_two_variants_with_two_seeds(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"plain": [], "half": {"set": ["update.codec_up=fp16"]}}
    code, out, _ = command(variants, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["metric"] == "auroc"
    half, plain = found["variants"]["half"], found["variants"]["plain"]
    for seed in (0, 1):
        traffic = command.summary("half", seed)["traffic"]
        run = half["runs"][seed]
        assert {name: run[name] for name in traffic} == traffic
    assert half["over_seeds"]["up_bytes"]["mean"] < 0.6 * plain["over_seeds"]["up_bytes"]["mean"]
    assert half["over_seeds"]["down_bytes"] == plain["over_seeds"]["down_bytes"]
    metric = plain["over_seeds"]["metric"]
    assert metric["low"] < metric["mean"] < metric["high"]
    assert plain["difference_to_first"] is None
    recorded = [command.summary("half", seed)["metrics"]["global"] for seed in (0, 1)]
    assert [run["metrics"] for run in half["runs"]] == recorded
    assert half["metrics"].keys() == recorded[0].keys() > {"auroc", "loss", "f1"}
    assert half["metrics"]["loss"]["over_seeds"]["values"] == [own["loss"]["value"] for own in recorded]
    assert half["difference_to_first"]["values"]
    assert half["metrics"]["auroc"]["difference_to_first"] == half["difference_to_first"]
    assert json.loads((command.out / "compare.json").read_text())["variants"] == found["variants"]
    _page(command.out / "compare.html", ("plain", "half"))

    # what is finished is read, not run
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(runs, "simulate", never)
    code, out, _ = command(variants)
    assert code == 0
    assert "± " in out
    assert "compare.html" in out
    assert "Loss" not in out

    # other metrics cost no run either
    code, out, _ = command(variants, "--metric", "loss", "--metric", "recall", "--metric", "loss")
    assert code == 0
    assert all(name in out for name in ("Loss", "Loss minus plain", "Recall minus plain"))
    assert "AUROC" not in out and "worst site" not in out
    assert "Recall minus plain" in (command.out / "compare.html").read_text(encoding="utf-8")


def _page(path: Path, names: Sequence[str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert all(f'<th scope="row">{name}' in text for name in names)
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org\S*", "", text)


def test_one_seed_has_no_interval_and_says_so(command: Command) -> None:
    code, out, _ = command({"plain": None}, "--seeds", "4")
    assert code == 0
    assert "One seed: there are no intervals" in out
    assert "±" not in out
    found = json.loads((command.out / "compare.json").read_text())
    metric = found["variants"]["plain"]["over_seeds"]["metric"]
    assert (metric["low"], metric["high"]) == (None, None)


def test_a_failed_variant_is_listed_and_the_others_go_on(command: Command) -> None:
    wrong = ["stop.target={metric: beauty, value: 0.9}"]
    code, out, err = command({"wrong": wrong, "plain": []}, "--seeds", "0")
    assert code == 1
    assert "wrong failed with 1 of 1 seeds" in out
    assert "wrong, seed 0" in err
    assert "'beauty' is not known" in err
    page = (command.out / "compare.html").read_text(encoding="utf-8")
    assert "Runs that failed" in page
    assert command.summary("plain", 0)["rounds_completed"] == 1


def test_a_crash_is_listed_with_its_story(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(inputs: Any, folder: Path, *_: Any, **__: Any) -> Any:
        if folder.parent.name == "half":
            raise ZeroDivisionError("by a plug-in")
        return simulate(inputs, folder, Observer(), engine=Engine(1))

    monkeypatch.setattr(runs, "simulate", crash)
    code, _, err = command({"half": ["update.codec_up=fp16"], "plain": []}, "--seeds", "0")
    assert code == 1
    assert "ZeroDivisionError: by a plug-in" in err
    assert "in crash" in (command.out / "half" / "seed0.error.txt").read_text()
    assert command.summary("plain", 0)["stopped_by"] == "rounds"


def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(command: Command) -> None:
    class Stop(Observer):
        def round_finished(self, record: Any) -> None:
            raise KeyboardInterrupt

    words = ("--seeds", "3", "--rounds", "2")
    inputs = command.tiny.inputs("stop.rounds=2", "seed=3")
    halted, whole = command.out / "plain" / "seed3", command.tiny.folder / "whole"
    assert simulate(inputs, halted, Stop(), workers=1)["stopped_by"] == "operator"
    code, _, err = command({"plain": []}, *words)
    assert code == 0
    assert "goes on" in err
    simulate(inputs, whole, Observer(), workers=1)
    assert command.summary("plain", 3)["rounds_completed"] == 2
    model = Path("model") / "model.safetensors"
    assert (halted / model).read_bytes() == (whole / model).read_bytes()


def test_ctrl_c_ends_the_comparison(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def stopped(_: Any, folder: Path, *__: Any, **___: Any) -> Any:
        started.append(folder)
        return {"stopped_by": "operator"}

    monkeypatch.setattr(runs, "simulate", stopped)
    code, _, err = command({"plain": [], "half": ["update.codec_up=fp16"]})
    assert (code, len(started)) == (1, 1)
    assert "0 of 4 runs are done" in err
    assert "give the same command to go on" in err


def test_a_folder_with_another_run_is_not_passed_off_as_this_one(command: Command) -> None:
    assert command({"plain": []}, "--seeds", "0")[0] == 0
    code, _, err = command({"plain": ["local.batch_size=3"]}, "--seeds", "0")
    assert code == 2
    assert "study.local.batch_size was 4 and is 3" in err


def test_all_faults_before_anything_runs(command: Command) -> None:
    variants = {
        "good": [],
        "typo": ["local.batchsize=3"],
        "refused": ["update.channel=masks"],
        "seeded": ["seed=4"],
        "elsewhere": {"study": "nowhere.yaml"},
        "not-a-set": ["update"],
    }
    code, _, err = command(variants)
    assert code == 2
    assert not command.out.exists()
    for expected in (
        "typo: study.yaml: local.batchsize: is not a known key",
        "refused: study tiny: channel + update (rule sum-bound)",
        "seeded: seed: every variant runs with the same seeds",
        "nowhere.yaml: does not exist",
        "not-a-set: --set update: is not key.path=value",
    ):
        assert expected in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- plain", "is not a mapping of variants"),
        ("{}", "is not a mapping of variants"),
        ("a: []\na: []", "is there twice"),
        ("../x: []\nA: []\na: []", "cannot be the name of a folder"),
        ("A: []\na: []", "differs from another variant only by case"),
        ("a: 3\nb: {sett: []}\nc: {set: [1]}", "b: sett"),
        ("a: {set: x=1}", "a: set"),
    ],
)
def test_a_wrong_file_is_answered_whole(text: str, expected: str, command: Command) -> None:
    code, _, err = command(text)
    assert code == 2
    assert expected in err


def test_other_tasks_cannot_be_compared(command: Command) -> None:
    other = yaml.safe_load(command.tiny.study.read_text())
    other["task"] = {"kind": "segmentation", "classes": ["background", "liver"]}
    other["data"]["source"] |= {"generator": "ct", "task": "segmentation", "organs": "liver"}
    (command.tiny.folder / "other.yaml").write_text(yaml.safe_dump(other))
    code, _, err = command({"plain": [], "other": {"study": "other.yaml"}})
    assert code == 2
    assert "other: task.kind: is segmentation, and that of plain is classification" in err


def test_a_metric_that_the_task_does_not_have(command: Command) -> None:
    code, _, err = command({"plain": []}, "--metric", "dice", "--metric", "auroc", "--metric", "hd95")
    assert code == 2
    assert "--metric dice: is no metric of classification" in err and "--metric hd95" in err
    assert "--metric auroc" not in err and "balanced_accuracy" in err
    assert not command.out.exists()


@pytest.mark.parametrize("seeds", ["", "a", "1,1", "-1", "0,,1", str(2**32)])
def test_wrong_seeds(seeds: str, command: Command) -> None:
    code, _, err = command({"plain": []}, "--seeds", seeds)
    assert code == 2
    assert "is not a list of different whole numbers" in err


def test_other_test_images_are_told_of(command: Command) -> None:
    code, out, _ = command({"plain": [], "split": ["data.split=[2, 4, 4]"]}, "--seeds", "0")
    assert code == 0
    assert "split is not tested on the same images of the same sites as plain." in out


def test_the_page_shows_a_file_of_variants_that_is_one(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "compare.md").read_text(encoding="utf-8")
    shown = re.search(r'```yml title="variants.yaml"\n(.*?)```', text, re.DOTALL)
    assert shown is not None
    (tmp_path / "variants.yaml").write_text(shown[1], encoding="utf-8")
    found = read_variants(tmp_path / "variants.yaml")
    assert len(found) > 2
    for variant in found.values():
        load_study(root / "configs" / "pneumonia.yaml", variant.set)
