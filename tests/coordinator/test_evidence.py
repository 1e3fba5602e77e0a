"""Evidence holds for an honest run, and each check fails on the run that it is there to find."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys.runs import SITE, SITES, make_private, play

from medfl.audit.log import AuditLog
from medfl.coordinator.evidence import evidence
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.errors import InputError

CONTIGUOUS = "rounds are contiguous"
TRAIL = "each verdict is in the audit trail"
COUNTED = "each admitted update is counted once"
CHAIN = "ledger of coordinator is a whole chain"
CHARGES = "the ledger's charges are the journal's private rounds"
LOG = "the audit log is a whole chain"
MODEL = "the saved model is the journal's"


def verdicts(run: Path) -> dict[str, bool | None]:
    found = evidence(run)
    assert str(run.parent) not in json.dumps(found, allow_nan=False), "no path of the machine"
    return {check["check"]: check["ok"] for check in found["checks"]}


def sql(run: Path, *statements: str) -> None:
    with closing(sqlite3.connect(run / "journal.db")) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        connection.commit()


def count_messages(run: Path) -> None:
    """As a service would have: one message an admitted update."""
    sql(
        run,
        "INSERT INTO messages (round, site, id, kind, digest, at) "
        "SELECT number, site.key, 'update-' || number, 'update', 'd', committed_at "
        "FROM rounds, json_each(record, '$.verdicts') AS site",
    )


def rewrite_model(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors[first] = tensors[first] + np.float32(1e-3)
    save_file(tensors, path)


def edit_line(path: Path) -> None:
    text = path.read_text()
    assert text.count('"system"')
    path.write_text(text.replace('"system"', '"sistem"', 1))


def charge_without_round(run: Path) -> None:
    """A journal that forgets its last two rounds does not agree with the ledger."""
    for number in (2, 3):
        sql(run, f"DELETE FROM rounds WHERE number = {number}")


FAKES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "a round is missing": (lambda run: sql(run, "DELETE FROM rounds WHERE number = 2"), {CONTIGUOUS}),
    "a verdict is missing": (
        lambda run: sql(run, "DELETE FROM events WHERE kind = 'verdict' AND round = 3 AND site = 'east'"),
        {TRAIL},
    ),
    "a verdict was added": (
        lambda run: sql(run, "INSERT INTO events SELECT 99, 3, 'south', kind, detail, at FROM events WHERE id = 2"),
        {TRAIL},
    ),
    "an update was not counted": (
        lambda run: sql(run, "DELETE FROM messages WHERE round = 1 AND site = 'east'"),
        {COUNTED},
    ),
    "an update was counted twice": (
        lambda run: sql(
            run,
            "INSERT INTO messages SELECT site, 'other', round, kind, digest, at FROM messages "
            "WHERE round = 1 AND site = 'east'",
        ),
        {COUNTED},
    ),
    "the charges are another run's": (
        lambda run: sql(run, "UPDATE run SET value = '\"other\"' WHERE key = 'run'"),
        {CHARGES},
    ),
    "rounds were forgotten": (charge_without_round, {CHARGES}),
    "a ledger was edited": (lambda run: edit_line(run.parent / "ledgers" / "coordinator.ledger"), {CHAIN}),
    "the audit log was cut": (
        lambda run: (run.parent / "audit.log").write_bytes((run.parent / "audit.log").read_bytes()[80:]),
        {LOG},
    ),
    "the model was changed": (rewrite_model, {MODEL}),
    "the state was damaged": (lambda run: sql(run, "UPDATE arrays SET checksum = 1 WHERE name = 'model'"), {MODEL}),
    "the model is gone": (lambda run: (run / "model" / "model.safetensors").unlink(), {MODEL}),
}


def test_evidence_of_a_private_run(tiny: Any, tmp_path: Path) -> None:
    """One run, and a copy of it for everything that can be wrong with one."""
    make_private(tiny, SITE, "clear", 3)
    home = tmp_path / "home"
    play(tiny, home / "run")
    count_messages(home / "run")
    log = AuditLog.open(home / "audit.log", "coordinator")
    log.append("set-up", {"study": "tiny"})
    # where the ledgers were is no longer there: what lies beside the run is taken
    for place in ("honest", *FAKES):
        shutil.copytree(home, tmp_path / place.replace(" ", "_"))
    shutil.rmtree(home)

    run = tmp_path / "honest" / "run"
    found = verdicts(run)
    assert {CONTIGUOUS, TRAIL, COUNTED, CHAIN, CHARGES, LOG, MODEL} <= found.keys()
    assert all(found.values()), found
    shown = evidence(run)
    assert set(shown["run"]["sites"]) == set(SITES)
    assert shown["run"]["study"] == "tiny" and len(shown["run"]["study_hash"]) == 64
    assert [record["round"] for record in shown["rounds"]] == [1, 2, 3]
    assert [release["round"] for release in shown["releases"]] == [1, 2, 3]
    assert all(release["digest"] and release["randomness"] == "system" for release in shown["releases"])
    assert len(shown["verdicts"]) == sum(len(record["participants"]) for record in shown["rounds"])
    assert {"ledger coordinator", "ledger east", "audit log"} <= shown["heads"].keys()

    for place, (spoil, expected) in FAKES.items():
        run = tmp_path / place.replace(" ", "_") / "run"
        spoil(run)
        wrong = {check for check, ok in verdicts(run).items() if ok is False}
        assert expected <= wrong, (place, wrong)
        assert place.startswith(("a round", "rounds")) or wrong == expected, (place, wrong)


def test_evidence_of_a_run_that_goes_on(tiny: Any, tmp_path: Path) -> None:
    """What cannot be compared is neither right nor wrong, and looking disturbs nothing."""
    run, seen = tmp_path / "run", []

    class Looks(Observer):
        def round_finished(self, record: Any) -> None:
            seen.append(evidence(run))

    simulate(tiny.inputs(), run, Looks(), workers=1)
    for number, found in enumerate(seen, 1):
        checks = {check["check"]: check for check in found["checks"]}
        assert len(found["rounds"]) == number and not found["run"]["ended"]
        assert checks[CONTIGUOUS]["ok"] and checks[TRAIL]["ok"]
        assert checks[MODEL]["ok"] is None and "not ended" in checks[MODEL]["detail"]
        assert checks[CHARGES]["ok"] is None and checks[COUNTED]["ok"] is None
    assert len(seen) == 3 and verdicts(run)[MODEL]


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no journal"):
        evidence(tmp_path)
