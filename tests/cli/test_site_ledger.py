"""`medfl site ledger`, as a data steward calls it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medfl.cli.ledger import ledger
from medfl.errors import InputError, RunError
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.ledger.base import Charge
from medfl.privacy.ledger.file import FileLedger

CHARGE = Charge("chest", "chest-001", 0, "model", "patient", "d", "gaussian", GaussianEvent(10.0), 1.0, 1.0)

app = typer.Typer()
app.command("ledger")(ledger)


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "ledger.jsonl"
    book = FileLedger.open(found, "north")
    dataset = book.register(["patient-1", "patient-2"])
    for round_ in range(25):
        permit = book.charge(replace(CHARGE, round=round_, dataset=dataset), None)
    book.done(permit, "ab" * 32)
    book.witness("coordinator", "cd" * 32)
    return found


def test_help_has_an_example():
    found = call("--help")
    assert found.exit_code == 0 and "Example: medfl site ledger" in found.output


def test_what_was_spent_is_printed(path: Path):
    found = call(path)
    assert found.exit_code == 0
    for word in ("ledger of north: 25 charges, 1 releases noted", "chest-001", "0-24", "exact", "1.9931", "2.1657"):
        assert word in found.stdout
    assert f"the chain is whole: 28 records, head {FileLedger.read(path).head}" in found.stdout
    assert "pld: does not hold, no plan was fixed" in found.stdout and "TAINTED" not in found.stdout
    assert max(map(len, found.stdout.splitlines()[1:12])) <= 80


def test_one_json_object(path: Path):
    found = json.loads(call(path, "--json", "--delta", "1e-3").stdout)
    (group,) = found["groups"]
    assert found["delta"] == 1e-3 and group["charges"] == 25 and group["accountant"] == "exact"
    assert 0 < group["epsilon"] < 1.9931 and found["witnessed"] == {"coordinator": "cd" * 32}
    assert json.loads(call(path, "--json", "--verify").stdout) == {"valid": True, "records": 28, "head": found["head"]}


def test_verify_says_no_more(path: Path):
    assert call(path, "--verify").stdout.splitlines() == [
        f"the chain is whole: 28 records, head {FileLedger.read(path).head}"
    ]


@pytest.mark.parametrize("option", [[], ["--verify"], ["--json"]])
def test_a_broken_chain_is_a_fault(path: Path, option: list[str]):
    path.write_bytes(path.read_bytes().replace(b'"round":7', b'"round":8'))
    found = call(path, *option)
    assert isinstance(found.exception, RunError) and found.exception.exit_code == 1
    assert "ledger.jsonl, line 9: its content does not match its hash" in str(found.exception) and not found.stdout


def test_nothing_is_written(path: Path):
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    assert call(path).exit_code == 0 and path.read_bytes() == torn


def test_a_tainted_ledger_says_so(path: Path):
    FileLedger.open(path, "north").charge(replace(CHARGE, round=25, randomness="insecure-test"), None)
    found = call(path)
    assert "TAINTED: noise was drawn from a generator for tests" in found.stdout and "(tainted)" in found.stdout
    assert json.loads(call(path, "--json").stdout)["tainted"] is True


def test_a_long_ledger_is_a_summary(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    book = FileLedger.open(path, "north")
    for number in range(100):
        for _ in range(3):
            book.charge(replace(CHARGE, run=f"run-{number:03d}"), None)
    found = call(path).stdout
    assert len(found.splitlines()) < 60 and "70 earlier ones are in --json" in found and "run-099" in found
    assert len(json.loads(call(path, "--json").stdout)["runs"]) == 100


def test_an_empty_ledger(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    FileLedger.open(path, "north")
    assert "ledger of north: 0 charges" in call(path).stdout
    assert json.loads(call(path, "--json").stdout)["groups"] == []


def test_what_the_user_gets_wrong(path: Path, tmp_path: Path):
    for arguments in ([tmp_path / "none.jsonl"], [path, "--delta", "2"], [path, "--delta", "nan"]):
        assert isinstance(call(*arguments).exception, InputError)


def test_the_command_is_light_to_import():
    code = "import sys, medfl.cli.ledger; print(sorted({'torch', 'scipy', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
