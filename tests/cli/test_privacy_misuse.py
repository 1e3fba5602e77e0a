"""Wrong use of privacy, as a user would do it: a clear error that names site, round or key, and nothing released."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toys.runs import PATIENT, SITE, break_images, charged, ledger, make_private, make_site, play, released

from medfl.cli.main import main
from medfl.coordinator.journal import Journal
from medfl.errors import InputError, StudyError
from medfl.learning.executor import SiteExecutor
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.ledger.base import Charge
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.study.load import load_study

HE = {"kind": "he", "keys": "symmetric"}


def refused(tiny: Any, capsys: pytest.CaptureFixture[str], *arguments: str, out: str = "run") -> str:
    """Run `medfl simulate`, which must refuse; what it said on stderr. Nothing was released or charged."""
    run, ledgers = tiny.folder / out, tiny.folder / "ledgers"
    with pytest.raises(SystemExit) as caught:
        places = ["--sites", str(tiny.sites), "--out", str(run), "--ledgers", str(ledgers)]
        main(["simulate", str(tiny.study), *places, "--workers", "1", "--no-report", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not (run / "summary.json").exists() and not run.exists()
    for path in ledgers.glob("*.ledger"):
        assert not charged(ledgers, path.stem) and not ledger(ledgers, path.stem).releases()
    return " ".join(printed.err.split())


def private(tiny: Any, kind: str = "site", channel: Any = "clear", /, **privacy: Any) -> None:
    """Make the tiny study private with these keys instead of those of a study that is right; None removes one."""
    base = {"site": SITE, "patient": PATIENT}[kind]
    make_private(tiny, {key: value for key, value in {**base, **privacy}.items() if value is not None}, channel)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta": None}, ("privacy", "delta")),
        ({"delta": 1}, ("privacy.site.delta", "less than 1")),
        ({"delta": 1.5}, ("privacy.site.delta", "less than 1")),
        ({"delta": 0}, ("privacy.site.delta", "greater than 0")),
        ({"epsilon": 0}, ("privacy.site.epsilon", "greater than 0")),
        ({"epsilon": -3}, ("privacy.site.epsilon", "greater than 0")),
        ({"epsilon": None}, ("privacy", "epsilon", "noise_multiplier")),
        ({"clip": 0}, ("privacy.site.clip", "greater than 0")),
        ({"noise_multiplier": 0}, ("privacy.site.noise_multiplier", "greater than 0")),
        ({"seed": 3}, ("seed", "no seed")),
        ({"noise_seed": 3}, ("noise_seed", "no seed")),
        ({"sensitivity": 1e-4}, ("sensitivity", "not a known key")),
        ({"accountant": "gdp"}, ("accountant", "not a known key")),
        ({"kind": "record"}, ("'record'", "patient")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_numbers_and_keys(tiny: Any, capsys: Any, changes: dict[str, Any], said: tuple[str, ...]) -> None:
    private(tiny, **changes)
    printed = refused(tiny, capsys)
    assert all(word.replace(".site.", ".") in printed.replace(".site.", ".") for word in said), printed


def test_all_wrong_numbers_are_said_at_once(tiny: Any, capsys: Any) -> None:
    private(tiny, epsilon=-1, delta=2, clip=0)
    printed = refused(tiny, capsys)
    assert "3 faults" in printed and all(key in printed for key in ("epsilon", "delta", "clip"))


def test_the_library_says_the_same(tiny: Any) -> None:
    private(tiny, delta=1, noise_seed=4)
    with pytest.raises(StudyError, match="noise_seed"):
        load_study(tiny.study)
    with pytest.raises(InputError, match="noise multiplier"):
        charge = Charge("s", "r", 1, "model", "site", "d", "site", GaussianEvent(0.0), 1.0, 1.0)
        MemoryLedger("north").charge(charge, None)


def test_right_numbers_would_start(tiny: Any, tmp_path: Path) -> None:
    """The refusals above can fail: the same study with nothing wrong runs, and releases."""
    private(tiny)
    play(tiny, tmp_path / "run")
    assert released(tmp_path / "ledgers") == [1, 2]


@pytest.mark.parametrize("channel", ["masks", HE], ids=["masks", "he"])
@pytest.mark.parametrize("kind", ["site", "patient"])
def test_two_sites_hide_nothing_from_each_other(tiny: Any, capsys: Any, channel: Any, kind: str) -> None:
    private(tiny, kind, channel)
    for name in ("south", "west"):
        (tiny.sites / f"{name}.yaml").unlink()
    printed = refused(tiny, capsys)
    assert "update.channel" in printed and "among 2 sites" in printed and "3 sites or more" in printed


def test_adaptive_rules_are_refused_together(tiny: Any, capsys: Any) -> None:
    make_private(
        tiny,
        SITE,
        local={"epochs": {"kind": "adacomm", "start": 2, "block": 1}, "learning_rate": 0.05},
        federation={"regulator": ["median_distance"]},
        stop={"rounds": 3, "patience": 1},
    )
    printed = refused(tiny, capsys)
    for rule in ("dp-loss", "dp-compares", "dp-stop"):
        assert f"rule {rule}" in printed, rule


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"stop": {"rounds": 2, "target": {"metric": "auroc", "value": 0.9}}}, "dp-stop"),
        ({"federation": {"schedule": {"kind": "uniform", "fraction": 0.5}}}, "dp-cohort"),
        ({"update": {"channel": "clear", "memory": "error_feedback"}}, "C4"),
        ({"federation": {"regulator": ["norm_history"]}}, "dp-gradients"),
    ],
)
def test_what_patient_level_privacy_forbids(tiny: Any, capsys: Any, section: dict[str, Any], rule: str) -> None:
    make_private(tiny, PATIENT, "clear", 2, **section)
    assert f"rule {rule}" in refused(tiny, capsys)


def test_noise_that_drowns_the_signal_is_refused_unless_accepted(tiny: Any, capsys: Any, tmp_path: Path) -> None:
    private(tiny, accept_low_utility=None, epsilon=1)
    printed = refused(tiny, capsys)
    assert "signal-to-noise" in printed and "accept_low_utility: true" in printed and "unit patient" in printed
    private(tiny, epsilon=1)
    assert play(tiny, tmp_path / "run")["rounds_completed"] == 2


def test_every_site_says_what_its_policy_forbids(tiny: Any, capsys: Any) -> None:
    private(tiny)
    make_site(tiny, "south", policy={"units": ["patient"], "max_epsilon": 2})
    make_site(tiny, "west", policy={"channels": ["masks", "he"]})
    printed = refused(tiny, capsys)
    assert "3 faults" in printed
    assert "site south, policy" in printed and "asks for patient" in printed and "allows epsilon 2" in printed
    assert "site west, policy" in printed and "asks for masks or he" in printed


def test_a_site_that_demands_privacy_refuses_a_study_without(tiny: Any, capsys: Any) -> None:
    make_site(tiny, "east", policy={"units": ["site", "patient"]})
    assert "site east, policy: the study has no differential privacy" in refused(tiny, capsys)


def test_a_study_without_epsilon_cannot_meet_a_ceiling(tiny: Any, capsys: Any) -> None:
    private(tiny, epsilon=None, noise_multiplier=50)
    make_site(tiny, "east", policy={"max_epsilon": 4})
    assert "site east, policy: allows epsilon 4" in refused(tiny, capsys)


def test_a_refused_run_can_be_started_again_in_the_same_folder(tiny: Any, capsys: Any) -> None:
    private(tiny)
    make_site(tiny, "west", policy={"channels": ["masks"]})
    ledgers = ("--ledgers", str(tiny.folder / "run" / "ledgers"))
    refused(tiny, capsys, *ledgers)


def test_a_site_that_keeps_its_metrics_is_known_before_the_first_round(tiny: Any, capsys: Any) -> None:
    private(tiny)
    make_site(tiny, "south", policy={"metrics_may_leave": False})
    assert "site south" in refused(tiny, capsys)


def test_metrics_leave_listed_or_not_at_all(tiny: Any, tmp_path: Path) -> None:
    private(tiny)
    listed = play(tiny, tmp_path / "listed")
    assert any("metrics" in item for item in listed["privacy"]["not_covered"])
    assert set(listed["metrics"]["sites"]) == {"east", "north", "south", "west"}
    private(tiny, site_metrics="withheld")
    make_site(tiny, "south", policy={"metrics_may_leave": False})
    withheld = play(tiny, tmp_path / "withheld", tmp_path / "other")
    assert not any("metrics" in item for item in withheld["privacy"]["not_covered"])
    assert withheld["metrics"]["sites"] == {} and withheld["metrics"]["over"] == []
    assert withheld["traffic"]["evaluation_up_bytes"] == 0


def test_every_number_about_a_sites_update_is_listed(tiny: Any, tmp_path: Path) -> None:
    private(tiny)
    play(tiny, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]["not_covered"]
    record = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert record["losses"]["mean"] is None and set(record["losses"]["sites"].values()) == {None}
    norms = [verdict["norm"] for verdict in record["verdicts"].values() if verdict["norm"] is not None]
    assert not norms or any("norm" in item for item in said)


@pytest.mark.parametrize("kind", ["site", "patient"])
def test_a_site_whose_ceiling_is_nearly_spent_leaves_in_the_middle(tiny: Any, tmp_path: Path, kind: str) -> None:
    """It keeps its update back by itself; the run goes on with what it would have charged without it."""
    ceiling, study = ({"max_epsilon": 10}, {}) if kind == "site" else ({"max_epsilon": 9}, {"tolerated": 2})
    private(tiny, kind, "clear" if kind == "site" else "masks", **study)
    raw = yaml.safe_load(tiny.study.read_text()) | {"stop": {"rounds": 3}}
    tiny.write(raw)
    make_site(tiny, "south", policy=ceiling)
    play(tiny, tmp_path / "first")
    summary = play(tiny, tmp_path / "second")
    records = [json.loads(line) for line in (tmp_path / "second" / "rounds.jsonl").read_text().splitlines()]
    failed = [record for record in records if record["failed"]]
    assert failed and records[-1] in failed and all(set(record["failed"]) == {"south"} for record in failed)
    for record in failed:
        reason = record["failed"]["south"]
        assert f"round {record['round']}" in reason and "all studies on these data at south" in reason
        assert "nothing was charged" in reason and "ceiling" in reason
    assert all(record["moved"] for record in records) and summary["stopped_by"] == "rounds"
    runs = {charge.run for charge in ledger(tmp_path / "ledgers", "south").charges()}
    second = json.loads((tmp_path / "second" / "summary.json").read_text())["privacy"]
    run = ledger_run(tmp_path / "second")
    kept = [record["round"] for record in records if "south" not in record["failed"]]
    assert charged(tmp_path / "ledgers", "south", run) == kept and (runs - {run})
    # the coordinator and the others paid for every round all the same
    assert charged(tmp_path / "ledgers", "coordinator", run) == [1, 2, 3] == released(tmp_path / "ledgers", run)
    assert charged(tmp_path / "ledgers", "east", run) == [1, 2, 3] and second["epsilon"] <= 8


def ledger_run(folder: Path) -> str:
    """The run's name in the ledgers."""
    journal = Journal.open(folder / "journal.db")
    try:
        return str(journal.fact("run"))
    finally:
        journal.close()


@pytest.mark.parametrize("channel", ["clear", "masks", HE], ids=["clear", "masks", "he"])
def test_an_update_that_is_not_finite_costs_one_site(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: Any
) -> None:
    private(tiny, "site", channel)
    break_images(monkeypatch, "south")
    summary = play(tiny, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        assert set(record["failed"]) == {"south"} and record["moved"]
        assert f"site south, round {record['round']}" in record["failed"]["south"]
        assert "not finite" in record["failed"]["south"]
    assert summary["rounds_completed"] == 2 and released(tmp_path / "ledgers") == [1, 2]
    # it was kept back before anything of it was charged, clipped or sealed
    assert charged(tmp_path / "ledgers", "south") == [] and charged(tmp_path / "ledgers", "east") == [1, 2]


@pytest.mark.parametrize("channel", ["clear", "masks", HE], ids=["clear", "masks", "he"])
def test_patients_that_are_not_finite_count_as_nothing_and_are_not_announced(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: Any
) -> None:
    private(tiny, "patient", channel)
    break_images(monkeypatch, "south")
    play(tiny, tmp_path / "run")
    text = (tmp_path / "run" / "rounds.jsonl").read_text()
    assert all(not json.loads(line)["failed"] and json.loads(line)["moved"] for line in text.splitlines())
    assert "not finite" not in text and charged(tmp_path / "ledgers", "south") == [1, 2]
    assert np.isfinite(model_of(tmp_path / "run")).all()


def model_of(run: Path) -> Any:
    from safetensors.numpy import load_file

    return np.concatenate([array.ravel() for array in load_file(run / "model" / "model.safetensors").values()])


def test_a_simulated_fault_says_what_it_is(tiny: Any, tmp_path: Path) -> None:
    private(tiny)
    make_site(tiny, "south", fault={"kind": "nan"})
    play(tiny, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert "site south, round 1" in record["failed"]["south"] and "not finite" in record["failed"]["south"]


@pytest.mark.parametrize(("kind", "lost"), [("site", 4), ("patient", 3)])
def test_a_round_that_loses_its_sites_is_void(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lost: int
) -> None:
    private(tiny, kind, "clear")
    real = SiteExecutor.train

    def failing(self: Any, data: Any, order: Any, *rest: Any) -> Any:
        if order.round == 1 and order.site in ("south", "west", "east", "north")[:lost]:
            raise RuntimeError("out of memory")
        return real(self, data, order, *rest)

    monkeypatch.setattr(SiteExecutor, "train", failing)
    summary = play(tiny, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert summary["rounds_completed"] == 2 and records[0]["void"] and not records[0]["moved"] and records[1]["moved"]


def test_next_to_no_noise_is_a_statement_or_a_refusal_but_no_crash(tiny: Any, tmp_path: Path) -> None:
    private(tiny, epsilon=None, noise_multiplier=0.01)
    try:
        summary = play(tiny, tmp_path / "run")
    except InputError:
        return
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"] == summary["privacy"]


@pytest.mark.parametrize("kind", ["site", "patient"])
def test_the_budget_stops_before_the_round_that_would_pass_it(tiny: Any, tmp_path: Path, kind: str) -> None:
    noise = {"noise_multiplier": 3.0, "epsilon": 2} if kind == "site" else {"noise_multiplier": 1.0, "epsilon": 4.5}
    private(tiny, kind, "clear", **noise)
    raw = yaml.safe_load(tiny.study.read_text()) | {"stop": {"rounds": 12}}
    tiny.write(raw)
    summary = play(tiny, tmp_path / "run")
    done, ledgers = summary["rounds_completed"], tmp_path / "ledgers"
    assert summary["stopped_by"] == "budget" and 0 < done < 12
    assert summary["privacy"]["epsilon"] <= noise["epsilon"]
    assert charged(ledgers) == released(ledgers) == list(range(1, done + 1))
    assert all(charged(ledgers, site) == charged(ledgers) for site in ("east", "north", "south", "west"))
    journal = Journal.open(tmp_path / "run" / "journal.db")
    kept = journal.state()
    events = [(event["kind"], event["round"]) for event in journal.events()]
    journal.close()
    assert kept is not None and kept[0]["round"] == done
    # the refused round was never planned, and the model is that of the round before
    assert ("budget", done + 1) in events and ("plan", done + 1) not in events
    assert np.array_equal(np.sort(model_of(tmp_path / "run")), np.sort(kept[1]["model"]))


def test_a_budget_for_no_round_at_all_releases_nothing(tiny: Any, tmp_path: Path) -> None:
    private(tiny, epsilon=0.05, noise_multiplier=3.0)
    summary = play(tiny, tmp_path / "run")
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("budget", 0)
    assert summary["privacy"]["epsilon"] == 0 and charged(tmp_path / "ledgers") == []
