"""`medfl site studies`, `approve`, `withdraw` and the others, as a data steward calls them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfl.cli.main import app
from medfl.errors import InputError, RunError
from medfl.site.home import SiteHome, write_json
from medfl.site.studies import Studies
from medfl.study.digest import study_hash
from medfl.study.load import load_study


@pytest.fixture
def home(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    """The home of a site that was offered one study."""
    found = SiteHome.create(tmp_path / "home", tiny.sites / "east.yaml")
    Studies(found).offer(load_study(tiny.study), "run-1", "lead")
    monkeypatch.setenv("MEDFL_SITE_HOME", str(found.folder))
    return found


@pytest.fixture
def key(tiny: Any) -> str:
    return study_hash(load_study(tiny.study))


def call(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["site", *arguments])
    assert found.exit_code == code, (found.output, found.exception)
    return found.stdout


def fails(*arguments: str) -> Exception:
    found = CliRunner().invoke(app, ["site", *arguments])
    assert found.exception is not None
    return found.exception


def asked(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json"))


def test_from_an_offer_to_a_decision(home: SiteHome, key: str):
    assert f"{key[:12]}  tiny  held: waits for the data steward" in call("studies")
    assert f"approved {key}: tiny, 3 rounds at most, by dr. a" in call("approve", key[:8], "--by", "dr. a")
    (row,) = asked("studies")["studies"]
    assert (row["state"], row["by"], row["rounds"], row["trained"]) == ("approved", "dr. a", 3, 0)
    assert "by dr. b: no vote" in call("reject", key, "--note", "no vote", "--by", "dr. b")
    assert Studies(home).standing(key).state == "rejected"
    assert [entry["kind"] for entry in asked("audit")["entries"]] == ["open", "offered", "approved", "rejected"]


@pytest.mark.usefixtures("home")
def test_show_says_it_plainly_and_whole(key: str):
    told = call("show", key[:10])
    for words in ("What leaves your site", "NO differential privacy", "It is held.", "The whole study:", key, "small"):
        assert words in told
    assert "rounds: 3" in told
    found = asked("show", key)
    assert found["study_json"]["stop"]["rounds"] == 3 and found["values"] > 0 and found["state"] == "held"


def test_an_approval_against_the_policy_is_said_to_be_void(home: SiteHome, key: str):
    home.site_file.write_text("name: east\npolicy: {units: [patient]}\n")
    assert "refuses it all the same" in call("approve", key)
    assert len(asked("approve", key)["refusals"]) == 1


def test_status_before_and_after_the_agent_ran(home: SiteHome):
    assert "agent: never ran" in call("status") and "not enrolled yet" in call("status")
    told = {"at": "2026-01-01T00:00:00Z", "state": "training", "coordinator": "host:1", "run": "r", "round": 4}
    write_json(home.status, told)
    assert "agent: training, last heard of 2026-01-01T00:00:00Z, coordinator host:1, run r, round 4" in call("status")
    found = asked("status")
    assert found["agent"] == {**told, "detail": None} and found["studies"][0]["state"] == "held"
    assert 0 < found["storage"]["bytes"] < found["storage"]["limit"] == 20 * 2**30
    assert "storage: 0.00 of 20 GiB" in call("status")
    home.status.write_text("[]")
    assert isinstance(fails("status"), RunError)


@pytest.mark.usefixtures("home")
def test_pause_and_resume():
    call("pause", "--note", "scanner", "--by", "me")
    assert asked("status")["paused"]["note"] == "scanner" and "paused since" in call("status")
    assert asked("resume")["was_paused"] and "was not paused" in call("resume")


def test_withdrawal_names_rounds_to_the_steward_and_nobody_else(home: SiteHome, key: str, tmp_path: Path):
    home.participation.begin("run-1", key, ["4711", "4712"])
    home.participation.trained("run-1", 1)
    home.participation.trained("run-1", 2)
    (tmp_path / "names.txt").write_text("4713\n\n")
    told = call("withdraw", "4711", "--file", str(tmp_path / "names.txt"), "--by", "dr. a")
    assert "withdrawn from now on: 2" in told
    assert f"4711 was in run run-1 of study {key[:12]}, rounds 1, 2" in told
    assert "4713 is in no data set and no run that this site knows; kept all the same" in told
    assert home.participation.withdrawn == {home.key_of("4711"), home.key_of("4713")}
    entry = asked("audit")["entries"][-1]
    run = {"run": "run-1", "study": key, "rounds": [1, 2], "patients": 1}
    assert entry["kind"] == "withdrawn" and entry["detail"] == {"by": "dr. a", "patients": 2, "runs": [run]}
    assert b"4711" not in (home.folder / "audit.log").read_bytes()
    assert isinstance(fails("withdraw"), InputError)


def test_withdrawal_looks_into_the_images_and_counts_even_when_they_are_gone(home: SiteHome, tmp_path: Path):
    home.site_file.write_text(f"name: east\ndata: {tmp_path / 'nowhere'}\n")
    found = asked("withdraw", "4711")
    assert found["problem"] and found["unknown"] == [] and len(home.participation.withdrawn) == 1


def test_audit_is_verified_without_a_home_that_opens(home: SiteHome, key: str):
    head = asked("audit", "--verify")["head"]
    call("approve", key)
    (home.folder / "salt").unlink()
    assert "is whole: 3 records" in call("audit", "--verify", "--head", head)
    assert len(asked("audit", "--tail", "1")["entries"]) == 1
    path = home.folder / "audit.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    assert "lines were cut off" in str(fails("audit", "--verify", "--head", head))
    path.write_bytes(path.read_bytes().replace(b"east", b"west"))
    assert "line 1: its content does not match its hash" in str(fails("audit"))


def test_the_coordinators_log_is_read_alike(tmp_path: Path):
    from medfl.audit.log import AuditLog

    AuditLog.open(tmp_path / "audit.log", "coordinator").keep("site east", "1" * 64)
    found = CliRunner().invoke(app, ["coordinator", "audit", str(tmp_path), "--verify"])
    assert found.exit_code == 0 and f"head of site east that was kept last: {'1' * 64}" in found.stdout


@pytest.mark.parametrize(
    "command", ["studies", "show", "approve", "reject", "status", "pause", "resume", "withdraw", "audit"]
)
def test_help_has_an_example(command: str):
    assert f"Example: medfl site {command}" in " ".join(call(command, "--help").split())
