import json

import pytest

from medfl.errors import InputError
from medfl.report.card import plain, trained_on, write_model_card
from medfl.report.run import read_run


def test_card_says_what_the_run_shows(make_run):
    run = make_run()
    text = write_model_card(run).read_text()
    assert (run / "model" / "model_card.md").is_file()
    summary = json.loads((run / "summary.json").read_text())
    for site, own in {**summary["metrics"]["sites"], **summary["metrics"]["unseen"]}.items():
        assert site in text and f"{own['auroc']['value']:.3f} (n {own['auroc']['n']})" in text
    recall = summary["metrics"]["global"]["recall"]["classes"]["pneumonia"]
    assert f"{recall['value']:.3f} (n {recall['n']})" in text
    assert "hospital-05 (unseen)" in text and "**Nothing is promised.**" in text
    assert "Classes | normal, pneumonia |" in text and f"medfl {summary['versions']['medfl']}" in text


def test_only_admitted_sites_are_in_the_model(make_run):
    run = read_run(make_run(sites=9, rounds=9))
    found = trained_on(run)
    for site in run.sites:
        rounds = sum(
            record["verdicts"].get(site, {}).get("outcome") in ("admit", "down-weight") for record in run.rounds
        )
        assert found.get(site, {"rounds": 0})["rounds"] == rounds
    assert "hospital-09" not in found
    # a card that counted every round a site was asked in would say more than the run shows
    asked = {site: sum(site in record["participants"] for record in run.rounds) for site in found}
    assert any(asked[site] > own["rounds"] for site, own in found.items())


def test_card_of_a_run_without_progress(make_run):
    text = write_model_card(make_run(rounds=0, evaluated=False)).read_text()
    assert "the model is the freshly initialised network" in text and "nan" not in text


def test_no_model_no_card(make_run):
    with pytest.raises(InputError, match="holds no saved model"):
        write_model_card(make_run(rounds=1, ended=False))


def test_names_do_not_become_markdown(make_run):
    text = write_model_card(make_run(names=["a|b", "[x](javascript:1)", "<b>c</b>\n# big", "d"], rounds=4)).read_text()
    assert "a\\|b" in text and "\\[x\\](javascript:1)" in text and "&lt;b&gt;c&lt;/b&gt; # big" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows) and not [
        line for line in text.splitlines() if line == "# big"
    ]


def test_plain_leaves_words_alone():
    assert plain("hospital-a's images") == "hospital-a's images"


def test_synthetic_images_are_told_of(make_run):
    assert "the metrics say nothing about patients" in write_model_card(make_run(rounds=1)).read_text()
