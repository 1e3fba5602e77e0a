import json

import pytest
import typer
from typer.testing import CliRunner

from medfl.cli.privacy import plan
from medfl.errors import InputError

app = typer.Typer()
app.command()(plan)

SITE = ("--unit", "site", "--epsilon", 8, "--delta", 1e-5, "--rounds", 100, "--sites", 4)
PATIENT = ("--unit", "patient", "--epsilon", 1, *SITE[4:], "--sampling-rate", 0.02, "--patients", 5000)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def found(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def test_site_level_noise_drowns_a_large_network_and_the_advice_says_so():
    content = found(*SITE, "--parameters", 11_000_000)
    assert content["unit"] == "site" and content["mode"] == "site" and content["adjacency"] == "add-remove"
    assert content["noise_multiplier"] == pytest.approx(6.0023, abs=1e-4) and content["calibrated"]
    assert content["signal_to_noise"] == pytest.approx(4 / (6.0023 * 11e6**0.5), rel=1e-3)
    assert "mode patient" in content["advice"][0] and "fewer parameters" in content["advice"][0]
    accountants = {row["accountant"]: row for row in content["accountants"]}
    assert accountants["exact"]["rounds"] == 100 and accountants["exact"]["tightest"]
    assert accountants["rdp"]["rounds"] == 88 and accountants["rdp"]["epsilon"] > 8


def test_shares_of_the_noise_keep_more_signal_than_each_site_its_own():
    shared = found(*PATIENT, "--parameters", 11_000_000)
    local = found(*PATIENT, "--parameters", 11_000_000, "--mode", "local", "--local-steps", 1)
    assert shared["mode"] == "patient" and shared["noise_multiplier"] == local["noise_multiplier"]
    assert shared["signal_to_noise"] == pytest.approx(4 * local["signal_to_noise"])
    assert shared["signal_to_noise"] == pytest.approx(0.02 * 5000 / (shared["noise_multiplier"] * 11e6**0.5), rel=1e-9)
    rows = {row["accountant"]: row for row in shared["accountants"]}
    assert rows["exact"]["epsilon"] is None and rows["exact"]["rounds"] is None
    assert rows["pld"]["tightest"] and rows["pld"]["rounds"] == 100 > rows["rdp"]["rounds"]


def test_local_mode_makes_one_pass_a_round_by_default():
    content = found(*PATIENT, "--mode", "local", "--noise-multiplier", 20)
    assert content["unit"] == "patient" and content["steps"] == 50
    rows = {row["accountant"]: row for row in content["accountants"]}
    assert rows["pld"]["rounds"] >= 100 and rows["pld"]["epsilon"] < 1


def test_given_noise_is_priced():
    content = found(*SITE, "--noise-multiplier", 5)
    rows = {row["accountant"]: row for row in content["accountants"]}
    assert rows["exact"]["epsilon"] == pytest.approx(9.99726, abs=5e-6)
    assert not content["calibrated"] and rows["exact"]["rounds"] == 69
    assert any("69 of 100 rounds" in text for text in content["advice"])


def test_the_table_names_unit_delta_and_the_tightest_bound():
    shown = run(*SITE, "--parameters", 50).output
    for text in ("site-level", "delta 1e-05", "6.0023", "exact (tightest)", "signal-to-noise"):
        assert text in shown


@pytest.mark.parametrize(
    "arguments, places",
    [
        (("--unit", "site", "--epsilon", 8, "--rounds", 100, "--sites", 4), ["--delta"]),
        ((), ["--unit", "--epsilon", "--rounds", "--sites", "--delta"]),
        (
            ("--mode", "local", "--unit", "site", "--epsilon", "nan", "--delta", 1, "--rounds", -1, "--sites", 0),
            ["--mode", "--delta", "--epsilon", "--rounds", "--sites"],
        ),
        ((*SITE, "--sampling-rate", 0.5), ["--sampling-rate"]),
        ((*SITE, "--local-steps", 3), ["--local-steps"]),
        ((*PATIENT[:-3], "1.5", "--patients", 0, "--noise-multiplier", "inf"), None),
    ],
)
def test_every_fault_is_named_with_its_remedy(arguments, places):
    with pytest.raises(InputError) as caught:
        run(*arguments)
    named = [fault.where for fault in caught.value.faults]
    assert sorted(named) == sorted(places or ["--sampling-rate", "--patients", "--noise-multiplier"])
    assert all(fault.remedy for fault in caught.value.faults) and caught.value.exit_code == 2


def test_help_shows_an_example():
    assert "Example: medfl privacy plan" in " ".join(run("--help").output.split())
