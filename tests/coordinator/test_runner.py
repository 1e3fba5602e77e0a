"""A run's files, its resume after any interruption, and that no way of running it changes the model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from sqlalchemy.exc import OperationalError
from toys.crashes import Crash, CrashAt, model_bytes, records

from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.errors import InputError, RunError
from medfl.federation.outcome import RoundPlan
from medfl.transport.in_process import InProcess


@pytest.fixture(params=["tiny", "tiny_with_teacher"])
def federation(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_run_folder_says_what_happened(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = simulate(tiny.inputs(), run, Observer(), workers=1)
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["rounds_completed"] == 3
    assert summary["stopped_by"] == "rounds"
    assert set(summary["metrics"]["sites"]) == {"east", "south", "west"}
    assert set(summary["metrics"]["unseen"]) == {"north"}
    overall = summary["metrics"]["global"]["accuracy"]
    assert overall["n"] == sum(site["accuracy"]["n"] for site in summary["metrics"]["sites"].values())
    rounds = records(run)
    assert [record["round"] for record in rounds] == [1, 2, 3]
    assert rounds[0]["participants"] == ["east", "south", "west"]
    assert summary["traffic"]["up_bytes"] == sum(record["bytes"]["up_bytes"] for record in rounds)
    tensors = load_file(run / "model" / "model.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == summary["parameters"]
    assert rounds[0]["bytes"]["up_bytes"] > 3 * 4 * summary["parameters"]


def test_process_pool_gives_the_same_model_and_records(federation: Any, tmp_path: Path) -> None:
    alone, pool = tmp_path / "alone", tmp_path / "pool"
    simulate(federation.inputs(), alone, Observer(), workers=1)
    simulate(federation.inputs(), pool, Observer(), workers=2)
    assert model_bytes(alone) == model_bytes(pool)
    assert records(alone) == records(pool)


def test_pool_and_regulator_on_public_images_do_not_disturb_each_other(tiny: Any, tmp_path: Path) -> None:
    """The regulator evaluates candidates while sites still train; no site may train from a candidate."""
    changes = ["federation.regulator=[finite, {kind: validation, metric: auroc}]", "evaluation.public=north"]
    alone, pool = tmp_path / "alone", tmp_path / "pool"
    simulate(tiny.inputs(*changes), alone, Observer(), workers=1)
    simulate(tiny.inputs(*changes), pool, Observer(), workers=2)
    assert model_bytes(alone) == model_bytes(pool)
    assert records(alone) == records(pool)
    assert any(verdict["outcome"] == "down-weight" for verdict in records(pool)[0]["verdicts"].values())


def test_ctrl_c_ends_a_run_cleanly_with_its_workers(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["simulate", str(tiny.study), "--sites", str(tiny.sites), "--out", str(run), "--json"]
    arguments += ["--rounds", "500", "--workers", "2", "--no-report"]
    # a shell may have started the tests with SIGINT ignored, which children inherit
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"from medfl.cli.main import main\nif __name__ == '__main__': main({arguments!r})"
    script = tmp_path / "ctrl_c.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    rounds = run / "rounds.jsonl"
    while process.poll() is None and not (rounds.exists() and rounds.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    summary = json.loads(out)
    assert summary["stopped_by"] == "operator"
    assert 2 <= summary["rounds_completed"] < 500


def test_an_unknown_target_is_refused_before_anything_runs(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stop.target.metric.*'dice'.*accuracy"):
        simulate(tiny.inputs("stop.target={metric: dice, value: 1}"), tmp_path / "run", Observer(), workers=1)
    assert not (tmp_path / "run").exists()


def test_another_seed_gives_another_model(tiny: Any, tmp_path: Path) -> None:
    simulate(tiny.inputs(), tmp_path / "a", Observer(), workers=1)
    simulate(tiny.inputs("seed=4"), tmp_path / "b", Observer(), workers=1)
    assert model_bytes(tmp_path / "a") != model_bytes(tmp_path / "b")


@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("opened", 1),
        ("round_started", 1),
        ("round_started", 2),
        ("local_progress", 7),
        ("answered", 2),
        ("answered", 5),
        ("evaluating", 3),
        ("evaluating", 9),
        ("round_finished", 2),
        ("round_finished", 3),
    ],
)
def test_resumed_run_equals_uninterrupted_one(tiny_with_teacher: Any, tmp_path: Path, hook: str, call: int) -> None:
    inputs = tiny_with_teacher.inputs()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, broken, CrashAt(hook, call), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert records(whole) == records(broken)


def test_a_resume_without_the_sites_private_state_differs(tiny_with_teacher: Any, tmp_path: Path) -> None:
    """The guard of the test above: forget the teachers and residuals, and the models differ."""
    inputs = tiny_with_teacher.inputs()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, broken, CrashAt("round_finished", 2), workers=1)
    journal = Journal.open(broken / "journal.db")
    with journal._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM arrays WHERE name LIKE '%/%'")
    journal.close()
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) != model_bytes(broken)


def test_killed_process_resumes_to_the_same_model(tiny: Any, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = ["local.epochs=8", "stop.rounds=12"]
    simulate(tiny.inputs(*longer), whole, Observer(), workers=1)
    command = [sys.executable, "-m", "medfl", "simulate", str(tiny.study), "--sites", str(tiny.sites)]
    command += [part for change in longer for part in ("--set", change)] + [
        "--out",
        str(killed),
        "--workers",
        "2",
        "--no-report",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        rounds = killed / "rounds.jsonl"
        while process.poll() is None and not (rounds.exists() and rounds.read_text().count("\n") >= 2):
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = len(records(killed))
    assert 2 <= done < 12
    simulate(inputs_of(killed), killed, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(killed)
    assert records(whole) == records(killed)


def test_an_operator_may_stop_and_go_on(tiny: Any, tmp_path: Path) -> None:
    class Stop(Observer):
        def round_started(self, plan: RoundPlan) -> None:
            if plan.round == 2:
                raise KeyboardInterrupt

    summary = simulate(tiny.inputs(), tmp_path / "run", Stop(), workers=1)
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("operator", 1)
    summary = simulate(inputs_of(tmp_path / "run"), tmp_path / "run", Observer(), workers=1, resume=True)
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("rounds", 3)


@pytest.mark.parametrize("round_", [1, 2])
def test_a_round_cut_short_while_it_is_evaluated_leaves_no_trace(tiny: Any, tmp_path: Path, round_: int) -> None:
    class Stop(Observer):
        rounds = 0

        def round_started(self, plan: RoundPlan) -> None:
            self.rounds = plan.round

        def evaluating(self, split: str, site: str) -> None:
            if split == "val" and self.rounds == round_:
                raise KeyboardInterrupt

    summary = simulate(tiny.inputs(), tmp_path / "run", Stop(), workers=1)
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("operator", round_ - 1)
    journal = Journal.open(tmp_path / "run" / "journal.db")
    kept = journal.state()
    journal.close()
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    network, layout = InProcess(tiny.inputs(), {}).initial_model()
    expected = layout.views(network if kept is None else kept[1]["model"])
    assert (kept is None) == (round_ == 1)
    assert all((saved[name] == tensor).all() for name, tensor in expected.items())


def test_a_full_disk_is_said(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr("medfl.coordinator.journal._write", full)
    with pytest.raises(RunError, match=r"journal.db: cannot be used: database or disk is full.*--resume"):
        simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=1)
    monkeypatch.undo()
    summary = simulate(inputs_of(tmp_path / "run"), tmp_path / "run", Observer(), workers=1, resume=True)
    assert summary["rounds_completed"] == 3


def test_a_journal_is_made_once(tmp_path: Path) -> None:
    Journal.create(tmp_path / "journal.db", {}).close()
    assert (tmp_path / "journal.db").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="exists already"):
        Journal.create(tmp_path / "journal.db", {})
    with pytest.raises(InputError, match="cannot read"):
        inputs_of(tmp_path)


def test_a_run_that_goes_on_has_no_summary(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.db", {"summary": {}})
    journal.commit({"round": 1}, {}, {}, {})
    with pytest.raises(KeyError):
        journal.fact("summary")
    journal.close()


def test_patience_without_validation_images_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no site has validation images"):
        simulate(tiny.inputs("stop.patience=2", "data.split=[8, 0, 2]"), tmp_path / "run", Observer(), workers=1)


def test_damaged_state_is_not_trusted(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Crash):
        simulate(tiny.inputs(), run, CrashAt("round_finished", 1), workers=1)
    journal = Journal.open(run / "journal.db")
    with journal._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE chunks SET data = zeroblob(length(data)) WHERE name = 'model'")
    journal.close()
    with pytest.raises(RunError, match=r"model.*damaged"):
        simulate(inputs_of(run), run, Observer(), workers=1, resume=True)


def test_a_used_folder_is_refused_and_left_alone(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_verdicts_and_plans_are_in_the_audit_trail(tiny: Any, tmp_path: Path) -> None:
    (tiny.sites / "west.yaml").write_text("{name: west, fault: {kind: nan, from_round: 2}}")
    summary = simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=1)
    assert summary["regulator"]["reasons"] == {"finite": 2}
    journal = Journal.open(tmp_path / "run" / "journal.db")
    events = list(journal.events())
    journal.close()
    assert [event["kind"] for event in events if event["round"] == 2] == ["plan", "verdict", "verdict", "verdict"]
    refused = [event for event in events if event["detail"].get("outcome") == "refuse"]
    assert {(event["site"], event["round"]) for event in refused} == {("west", 2), ("west", 3)}
    assert all("not finite" in event["detail"]["reason"] for event in refused)


@pytest.mark.parametrize(("kind", "rule"), [("nan", "finite"), ("scale", "norm_history")])
def test_a_refused_site_costs_only_its_own_update(tiny: Any, tmp_path: Path, kind: str, rule: str) -> None:
    (tiny.sites / "west.yaml").write_text(f"{{name: west, fault: {{kind: {kind}, factor: 1000}}}}")
    summary = simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=1)
    assert summary["regulator"]["sites"]["west"] == {"refuse": 3}
    assert summary["regulator"]["reasons"] == {rule: 3}
    assert summary["metrics"]["global"]["loss"]["value"] < 10


def test_without_a_regulator_one_nan_ends_the_run(tiny: Any, tmp_path: Path) -> None:
    (tiny.sites / "west.yaml").write_text("{name: west, fault: {kind: nan, from_round: 2}}")
    with pytest.raises(RunError, match=r"round 2: the combined update is not finite.*federation\.regulator"):
        simulate(tiny.inputs("federation.regulator=[]"), tmp_path / "run", Observer(), workers=1)
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 1


def test_stops_at_the_target(tiny: Any, tmp_path: Path) -> None:
    summary = simulate(
        tiny.inputs("stop.target={metric: accuracy, value: 0.0}"), tmp_path / "run", Observer(), workers=1
    )
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("target", 1)


def test_baselines_train_where_they_say(tiny: Any, tmp_path: Path) -> None:
    inputs = tiny.inputs("stop.rounds=1")
    pooled = simulate(inputs.model_copy(update={"pooled": True}), tmp_path / "pooled", Observer(), workers=1)
    alone = simulate(inputs.model_copy(update={"only": "east"}), tmp_path / "alone", Observer(), workers=1)
    assert records(tmp_path / "pooled")[0]["participants"] == ["pooled"]
    assert records(tmp_path / "alone")[0]["participants"] == ["east"]
    for summary in (pooled, alone):
        assert set(summary["metrics"]["sites"]) == {"east", "south", "west"}
        assert set(summary["metrics"]["unseen"]) == {"north"}
