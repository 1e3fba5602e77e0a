"""Whole runs whose journal is in PostgreSQL: the same as with a file, also when they die and go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.postgres import PASSWORD, running
from toys.runs import SITE, crash, make_private, play, resume

from medfl.coordinator.evidence import evidence
from medfl.coordinator.journal import Journal, point_to
from medfl.report.run import read_run


def records(run: Path) -> list[Any]:
    """What is the same in two runs of one study."""
    names = ("round", "participants", "verdicts", "losses", "metrics", "moved")
    lines = (run / "rounds.jsonl").read_text().splitlines()
    return [{name: json.loads(line)[name] for name in names} for line in lines]


def test_a_run_that_dies_goes_on_in_postgresql(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(tiny, tmp_path / "file")
    with running() as server:
        url = f"{server.url()}?schema=medfl_run"

        class Elsewhere(Journal):
            @classmethod
            def create(cls, where: Any, facts: Any, **how: Any) -> Journal:
                journal = Journal.create(url, facts, **how)
                point_to(tmp_path / "run", journal)
                return journal

            @classmethod
            def open(cls, where: Any, **how: Any) -> Journal:
                return Journal.open(url, **how)

        monkeypatch.setattr("medfl.coordinator.runner.Journal", Elsewhere)
        with crash(Journal, "commit", 2):
            play(tiny, tmp_path / "run")
        server.kill()
        server.start()
        summary = resume(tmp_path / "run")
        model = Path("model") / "model.safetensors"
        assert summary["rounds_completed"] == 3 and records(tmp_path / "run") == records(tmp_path / "file")
        assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "file" / model).read_bytes()
        # who reads the folder finds the journal, with a password of their own
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        assert len(read_run(tmp_path / "run").rounds) == 3
        assert {check["ok"] for check in evidence(tmp_path / "run")["checks"]} == {True, None}
        # an auditor who has no right to the arrays sees all else
        server.sql(
            f"CREATE ROLE auditor LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA medfl_run TO auditor; "
            "GRANT SELECT ON medfl_run.run, medfl_run.rounds, medfl_run.events, medfl_run.messages TO auditor"
        )
        (tmp_path / "run" / "journal.url").write_text(server.url(user="auditor", password="") + "?schema=medfl_run")
        seen = evidence(tmp_path / "run")
        assert len(seen["rounds"]) == 3 and {check["ok"] for check in seen["checks"]} == {True, None}
        assert "permission denied" in seen["checks"][-1]["detail"]


def test_a_sum_that_was_opened_is_used_once_in_postgresql(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_private(tiny, SITE, "clear", 2)
    with running() as server:
        url = f"{server.url()}?schema=medfl_run"
        monkeypatch.setattr("medfl.coordinator.runner.Journal.create", _at(Journal.create, url))
        monkeypatch.setattr("medfl.coordinator.runner.Journal.open", _at(Journal.open, url))
        with crash(Journal, "commit", 2):
            play(tiny, tmp_path / "run")
        summary = resume(tmp_path / "run")
        assert summary["rounds_completed"] == 2 and summary["privacy"]["releases"] == 2


def _at(real: Any, url: str) -> Any:
    return lambda _, *rest, **how: real(url, *rest, **how)
