"""`medfl coordinator replay`: the same digest as the journal's, or why not."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.cli.main import main
from medfl.coordinator.evidence import evidence
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate

Command = Callable[..., tuple[int, str, str]]

STUDY = (
    "federation.schedule={kind: fedasync, speeds: {east: 1, south: 2.5, west: 7}}",
    "federation.server=sgd",
    "local.epochs=1",
    "evaluation.every=5",
    "stop.rounds=5",
)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "300")

    def call(folder: Path, *words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(["coordinator", "replay", str(folder), *map(str, words)])
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def home(tiny: Any, tmp_path: Path) -> Path:
    """A folder with an asynchronous run in it, as a coordinator's is."""
    simulate(tiny.inputs(*STUDY), tmp_path / "home" / "run", Observer(), workers=1)
    (tmp_path / "home" / "coordinator.yaml").write_text("{}")
    return tmp_path / "home"


def change(run: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(run / "journal.db") as database:
        assert database.execute(statement, values).rowcount > 0


def edit_inputs(run: Path, edit: Callable[[Any], None]) -> None:
    with sqlite3.connect(run / "journal.db") as database:
        (text,) = database.execute("SELECT value FROM run WHERE key = 'inputs'").fetchone()
    inputs = json.loads(text)
    edit(inputs)
    change(run, "UPDATE run SET value = ? WHERE key = 'inputs'", json.dumps(inputs))


def test_an_auditor_sees_the_digest_of_the_evidence(home: Path, command: Command) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    code, out, err = command(home)
    digest = evidence(home / "run")["run"]["model_sha256"]
    assert code == 0, err
    assert out.count(digest) == 2 and out.endswith("the same\n")
    assert "answer 5 of 5" in err
    assert {path: path.read_bytes() for path in before} == before
    code, out, _ = command(home / "run", "--json")
    found = json.loads(out)
    assert code == 0 and found["same"] and found["steps"] == found["answers"] == 5
    assert found["model_sha256"] == found["replayed_sha256"] == digest


def test_a_model_that_does_not_follow_from_the_answers_is_told(home: Path, command: Command) -> None:
    import zlib

    run = home / "run"
    with sqlite3.connect(run / "journal.db") as database:
        (data,) = database.execute("SELECT data FROM chunks WHERE name = 'model'").fetchone()
    vector = np.frombuffer(data, np.float32).copy()
    vector[0] = np.nextafter(vector[0], np.float32(2))
    forged = vector.tobytes()
    change(run, "UPDATE chunks SET data = ? WHERE name = 'model'", forged)
    change(run, "UPDATE arrays SET checksum = ? WHERE name = 'model'", zlib.crc32(forged))
    code, out, _ = command(home)
    assert code == 1
    assert out.endswith("NOT the same\n")
    code, out, _ = command(home, "--json")
    assert code == 1 and json.loads(out)["same"] is False


def test_answers_that_are_not_those_of_the_record_are_named(home: Path, command: Command) -> None:
    edit_inputs(home / "run", lambda inputs: inputs["study"]["local"].update(batch_size=3))
    code, _, err = command(home)
    assert code == 1
    assert "order 1: is recorded as" in " ".join(err.split())


def test_images_that_lie_elsewhere(home: Path, tiny: Any, command: Command) -> None:
    """A service knows no site's images: who audits it brings their files."""
    edit_inputs(home / "run", lambda inputs: inputs.update(sites=[]))
    code, _, err = command(home)
    assert code == 2, err
    code, out, err = command(home, "--sites", tiny.sites)
    assert (code, out.endswith("the same\n")) == (0, True), err
    (tiny.sites / "west.yaml").unlink()
    code, _, err = command(home, "--sites", tiny.sites)
    assert code == 2
    assert "site west: trained on" in err and "give the images of all sites" in err
    code, _, err = command(home, "--data", home / "none")
    assert code == 2 and "does not exist" in err


def test_a_synchronous_run_is_not_replayed(tiny: Any, tmp_path: Path, command: Command) -> None:
    simulate(tiny.inputs("stop.rounds=1"), tmp_path / "run", Observer(), workers=1)
    shutil.rmtree(tiny.sites)
    code, _, err = command(tmp_path / "run")
    assert code == 2
    assert "is no asynchronous run" in err and "running them again" in err


def test_a_folder_without_a_run(tmp_path: Path, command: Command) -> None:
    code, _, err = command(tmp_path)
    assert code == 2
    assert "holds no journal" in err and "give the folder of a run" in err
