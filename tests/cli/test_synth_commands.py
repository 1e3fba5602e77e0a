import json
from collections import Counter

import pytest
import typer
from typer.testing import CliRunner

from medfl.cli.synth import split, stats, synth
from medfl.data.manifest import load_datalist
from medfl.errors import DataError

app = typer.Typer()
for command in (synth, split, stats):
    app.command()(command)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "data"
    shown = run("synth", out, "--task", "detection", "--sites", 2, "--cases", 10, "--size", "32x32", "--json")
    return out, json.loads(shown.stdout)


def test_synth_makes_a_split_datalist(made):
    out, shown = made
    datalist = load_datalist(out / "datalist.json")
    assert shown == {"datalist": str(out / "datalist.json"), "cases": 20, "sites": ["A-sharp", "B-lowdose"]}
    assert datalist.task == "detection" and Counter(case.site for case in datalist.cases) == {
        "A-sharp": 10,
        "B-lowdose": 10,
    }
    assert {case.split for case in datalist.cases} == {"train", "val", "test"}
    assert all(case.image.is_file() for case in datalist.cases)


def test_split_keeps_what_is_given_unless_the_datalist_has_none(made, tmp_path):
    out, _ = made
    before = load_datalist(out / "datalist.json").cases
    run("split", out / "datalist.json", "--seed", 9, "--out", tmp_path / "o.json")
    assert [case.split for case in load_datalist(tmp_path / "o.json").cases] == [case.split for case in before]


def test_stats_prints_one_object_and_draws(made, tmp_path):
    out, _ = made
    shown = run("stats", out / "datalist.json", "--plot", tmp_path / "p.png", "--json")
    content = json.loads(shown.stdout)
    assert [row["site"] for row in content["sites"]] == ["A-sharp", "B-lowdose"]
    assert content["sites"][0]["cases"] == 10 and content["sites"][0]["largest"] == [32, 32]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "A-sharp" in run("stats", out / "datalist.json", "--quick").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("synth", "x", "--size", "64"),
        ("synth", "x", "--size", "64xx64"),
        ("synth", "x", "--size", "8x8"),
        ("synth", "x", "--ratios", "6:2"),
        ("synth", "x", "--size", "32x32x32", "--format", "png"),
        ("split", "absent.json"),
    ],
)
def test_wrong_input_is_a_data_error(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["synth", "split", "stats"])
def test_help_has_an_example(command):
    assert "Example: medfl data" in " ".join(run(command, "--help").stdout.split())
