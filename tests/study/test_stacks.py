"""The stacks in configs/stacks: studies to start from, each of which loads, is allowed and runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfl.cli.main import app
from medfl.study.load import load_study
from medfl.study.model import Study

ROOT = Path(__file__).parents[2]
STACKS = sorted((ROOT / "configs" / "stacks").glob("*.yaml"))
SMALL = ("data.source.cases=24", "data.augment.factor=1", "stop.rounds=2")


def stack(name: str) -> Study:
    return load_study(ROOT / "configs" / "stacks" / f"{name}.yaml")


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_a_stack_is_allowed_and_says_when_to_use_it(path: Path) -> None:
    made = load_study(path)
    assert made.name == path.stem.replace("_", "-")
    about = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    assert len(about) >= 2 and path.read_text(encoding="utf-8").startswith("# ")


def test_the_stacks_are_what_their_names_say() -> None:
    assert {path.stem for path in STACKS} == {
        "accuracy",
        "accuracy_tracked",
        "bandwidth",
        "bandwidth_up",
        "private_sparse",
        "fairness",
        "slow_sites",
        "slow_sites_sealed",
    }
    for name in ("accuracy", "accuracy_tracked", "private_sparse", "slow_sites_sealed"):
        assert "reveals-sum" in stack(name).update.channel.traits(), name
    for name in ("bandwidth", "bandwidth_up", "private_sparse"):
        assert stack(name).update.memory.kind == "error_feedback", name
    assert stack("bandwidth").update.down == "change"
    assert stack("fairness").federation.schedule.kind == "drfa"
    assert [rule.kind for rule in stack("accuracy_tracked").local.rules] == ["svrg", "fedcomgate"]
    correction: Any = stack("slow_sites").federation.schedule
    assert correction.correction == "influence" and correction.staleness.kind == "polynomial"


class Runs:
    """Two small rounds of each stack, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def folder_of(self, name: str) -> Path:
        out = self.folder / name
        if not out.exists():
            study = ROOT / "configs" / "stacks" / f"{name}.yaml"
            settings = [part for change in SMALL for part in ("--set", change)]
            arguments = ["simulate", str(study), "--sites", str(ROOT / "sites"), "--out", str(out), "--json", *settings]
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
        return out

    def summary(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder_of(name) / "summary.json").read_text())
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("stacks"))


@pytest.mark.slow
@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_a_stack_runs(runs: Runs, path: Path) -> None:
    found = runs.summary(path.stem)
    assert found["rounds_completed"] == 2 and found["stopped_by"] == "rounds"
    rounds = [json.loads(line) for line in (runs.folder_of(path.stem) / "rounds.jsonl").read_text().splitlines()]
    assert all(record["moved"] and not record["failed"] and not record["void"] for record in rounds)


@pytest.mark.slow
def test_bandwidth_is_saved(runs: Runs) -> None:
    """Bytes up of two rounds in which every hospital was asked."""
    names = ("bandwidth", "bandwidth_up", "private_sparse", "accuracy")
    up = {name: runs.summary(name)["traffic"]["up_bytes"] for name in names}
    assert 20 * up["bandwidth"] < up["accuracy"]
    assert 20 * up["bandwidth_up"] < up["accuracy"]
    assert 3 * up["private_sparse"] < up["accuracy"]
    assert up["bandwidth"] < up["bandwidth_up"] < up["private_sparse"]
