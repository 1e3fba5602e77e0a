"""`medfl privacy report`, the page and the model card of real private runs, finished or not, whole or tampered with."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys.runs import PATIENT, SITE, crash, ledger, make_private, play
from typer.testing import CliRunner

from medfl.cli.main import app
from medfl.coordinator.journal import Journal
from medfl.errors import InputError
from medfl.privacy.ledger.file import FileLedger
from medfl.report.card import write_model_card
from medfl.report.page import write_report
from medfl.report.privacy import LedgerFacts, privacy_of, rounds_charged
from medfl.report.run import read_run

runner = CliRunner()


def call(*arguments: Any) -> Any:
    return runner.invoke(app, ["privacy", "report", *map(str, arguments)], env={"COLUMNS": "80"})


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private runs that share a ledger where that matters."""
    from conftest import TinyFederation, tiny_classification

    root, found = tmp_path_factory.mktemp("runs"), {}
    he = {"kind": "he", "keys": "symmetric"}
    for name, privacy, channel in (("site", SITE, "clear"), ("patient", PATIENT, "masks"), ("he", PATIENT, he)):
        tiny = TinyFederation(root / f"{name}-federation", tiny_classification())
        make_private(tiny, privacy, channel)
        found[name] = root / name
        play(tiny, found[name], root / f"{name}-ledgers")
    return found


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run whose folder and ledgers may be changed: moved as a whole, the ledgers beside it."""
    shutil.copytree(runs["site"], tmp_path / "run")
    shutil.copytree(runs["site"].with_name("site-ledgers"), tmp_path / "run" / "ledgers")
    journal = Journal.open(tmp_path / "run" / "journal.db")
    journal.set_fact("inputs", journal.fact("inputs") | {"ledgers": str(tmp_path / "gone")})
    journal.close()
    return tmp_path / "run"


@pytest.mark.parametrize(("name", "unit", "accountant"), [("site", "site", "exact"), ("patient", "patient", "pld")])
def test_the_whole_statement_is_said(runs: dict[str, Path], name: str, unit: str, accountant: str) -> None:
    said = json.loads((runs[name] / "summary.json").read_text())["privacy"]
    found = call(runs[name])
    text = words(found.stdout)
    assert found.exit_code == 0
    assert f"epsilon {said['epsilon']:.4f} in all, at delta 1e-05, for each {unit}" in text
    assert f"{accountant} (tightest)" in text and f"add or remove one {unit}" in text and "epsilon 8" in text
    for bound in said["bounds"]:
        assert words(bound["why"])[:20] in text
    for item in said["not_covered"]:
        assert words(item)[:40] in text
    assert "cryptographic generator" in text and "rounds 1-2: 2 charges, 2 noted as released" in text
    assert "by this run alone" in text and said["ledger_head"][:20] in text
    assert max(map(len, found.stdout.splitlines()[2:])) <= 80


def test_json_is_one_object_with_the_same_facts(runs: dict[str, Path]) -> None:
    found = json.loads(call(runs["site"], "--json").stdout)
    assert found["statement"] == json.loads((runs["site"] / "summary.json").read_text())["privacy"]
    assert found["promised"] and found["final"] and not found["tainted"] and found["problems"] == []
    assert [number for number, _ in found["curve"]] == [1, 2]
    assert found["curve"][-1][1] == pytest.approx(found["statement"]["epsilon"])
    assert found["ledger"]["rounds"] == [1, 2] and found["ledger"]["spent"]["runs"] == 1


def test_who_can_collude_is_said_of_each_channel(runs: dict[str, Path]) -> None:
    trust = {name: dict(privacy_of(read_run(run)).trust) for name, run in runs.items()}
    assert "not against the coordinator" in trust["site"]["Epsilon holds against"]
    assert "more than 1 site" in trust["patient"]["But not against"]
    assert "any one site" in trust["he"]["But not against"] and "any one site" in trust["he"]["Who holds the key"]
    # under shared keys a site and the coordinator open everything: no coalition may be promised
    assert "coalition" not in trust["he"]["Epsilon holds against"]


def test_page_and_card_say_the_same(runs: dict[str, Path]) -> None:
    said = json.loads((runs["patient"] / "summary.json").read_text())["privacy"]
    page = write_report(runs["patient"], pictures=False).read_text()
    card = write_model_card(runs["patient"]).read_text()
    for text in (page, card):
        assert f"{said['epsilon']:.4g}" in text and "1e-05" in text and "pld" in text
        assert said["adjacency"] in text and said["mechanism"] in text
        assert "Epsilon holds against" in text and "Who holds the key" in text
        assert all(item.replace("'", "&#39;") in text or item in text for item in said["not_covered"])
    assert 'aria-label="Epsilon after each round, rounds 1 to 2"' in page
    assert said["ledger_head"] in page and "Warning." not in page and "None" not in page


def test_a_run_that_goes_on_says_what_is_spent_by_now(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 3)
    with crash(Journal, "commit", 3):
        play(tiny, tmp_path / "run")
    text = words(call(tmp_path / "run").stdout)
    # the third round is charged, and so spent, though it was never committed
    assert "epsilon 7.9993 so far" in text and "2 rounds. The run has not ended." in text
    assert "rounds 1-3: 3 charges" in text
    assert [number for number, _ in privacy_of(read_run(tmp_path / "run")).curve] == [1, 2]
    assert "so far" in write_report(tmp_path / "run", pictures=False).read_text()


def test_earlier_runs_on_the_same_data_add_up(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 1)
    for name in ("one", "two"):
        play(tiny, tmp_path / name)
    found = json.loads(call(tmp_path / "two", "--json").stdout)
    assert found["ledger"]["charges"] == 1 and found["ledger"]["spent"]["charges"] == 2
    assert found["ledger"]["spent"]["epsilon"] > found["statement"]["epsilon"] + 1
    assert "by this run and 1 other" in words(call(tmp_path / "two").stdout)
    assert "by this run and 1 other" in words(write_report(tmp_path / "two", pictures=False).read_text())
    # a card that were made from the run alone would not know
    assert "by this run and 1 other" in write_model_card(tmp_path / "two").read_text()


def test_without_privacy_nothing_is_promised(tiny: Any, tmp_path: Path) -> None:
    play(tiny, tmp_path / "run")
    found = call(tmp_path / "run")
    assert found.exit_code == 0 and "Nothing is promised" in found.stdout and "tightest" not in found.stdout
    assert "each site's update" in found.stdout and "Epsilon holds against" not in found.stdout
    plain = json.loads(call(tmp_path / "run", "--json").stdout)
    assert not plain["promised"] and plain["ledger"] is None and plain["statement"]["epsilon"] is None


def test_a_moved_run_finds_its_ledger(copy: Path) -> None:
    found = json.loads(call(copy, "--json").stdout)
    assert found["ledger"]["path"] == str(copy / "ledgers" / "coordinator.ledger") and found["problems"] == []


def test_a_run_without_its_ledger_says_so(copy: Path) -> None:
    shutil.rmtree(copy / "ledgers")
    found = call(copy)
    assert found.exit_code == 0 and "could not be compared with it" in words(found.stdout)
    assert "epsilon 7.9999" in found.stdout and "could not be compared" in write_report(copy, False).read_text()


def test_a_damaged_ledger_is_a_loud_fault(copy: Path) -> None:
    path = copy / "ledgers" / "coordinator.ledger"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":3'))
    found = call(copy)
    assert found.exit_code == 1 and "cannot be trusted" in words(found.stdout) and "line" in found.stdout
    assert "Warning." in write_report(copy, False).read_text() and "**Warning.**" in write_model_card(copy).read_text()


def test_a_ledger_that_was_put_back_is_found_out(copy: Path) -> None:
    path = copy / "ledgers" / "coordinator.ledger"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))  # a whole chain, as an older backup is
    FileLedger.read(path)
    found = call(copy)
    assert found.exit_code == 1 and "does not hold what the run charged" in words(found.stdout)


def test_noise_of_tests_taints_everything(copy: Path) -> None:
    path = copy / "ledgers" / "coordinator.ledger"
    charge = ledger(path.parent).charges()[0]
    FileLedger.open(path, "coordinator").charge(replace(charge, run="other", randomness="insecure-test"), None)
    found = call(copy)
    assert found.exit_code == 1 and "no epsilon here holds" in words(found.stdout) and "TAINTED" in found.stdout
    assert "tainted" in write_report(copy, False).read_text() and "TAINTED" in write_model_card(copy).read_text()


def test_rounds_are_told_in_spans() -> None:
    facts = LedgerFacts("", "", 0, 6, 5, [1, 2, 3, 5, 5, 7], False, None)
    assert rounds_charged(facts) == "rounds 1-3, 5, 7 (more than once: 5)"
    assert rounds_charged(replace(facts, rounds=[4])) == "round 4"
    assert rounds_charged(replace(facts, rounds=[])) == "no round"


def test_no_run_is_an_input_error(tmp_path: Path) -> None:
    found = call(tmp_path)
    assert isinstance(found.exception, InputError) and found.exception.exit_code == 2


def test_the_command_is_light_to_import() -> None:
    code = "import sys, medfl.cli.privacy; print(sorted({'torch', 'scipy', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert "Example: medfl privacy report" in runner.invoke(app, ["privacy", "report", "--help"]).stdout


@pytest.mark.parametrize("name", ["patient", "site", "local"])
def test_the_shipped_studies_are_right(name: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "private" / f"pneumonia_{name}.yaml"
    found = runner.invoke(app, ["study", "check", str(path), "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["privacy"]["kind"] == name


def test_the_statement_promises_no_coalition_under_shared_keys(runs: dict[str, Path]) -> None:
    trust = json.loads((runs["he"] / "summary.json").read_text())["privacy"]["trust"]
    assert "coalition" not in trust["holds against"]
