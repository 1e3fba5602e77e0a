"""Coordinator and sites as processes of their own: the same model as a simulation, whoever is killed on the way."""

from pathlib import Path

import pytest

from toys.federations import SITES, Federation, until

SUMMED = {"channel": "masks", "clip": 1.0}
LONG = {"epochs": 20, "learning_rate": 0.003, "batch_size": 2, "rules": ["sgd"]}


def run(federation: Federation) -> None:
    """Everybody starts, and all ends well."""
    lead = federation.coordinator()
    sites = [federation.site(site) for site in federation.sites]
    assert lead.end() == 0, lead.text
    assert [site.end() for site in sites] == [0, 0, 0], sites[0].text


def test_services_give_the_model_of_the_simulation(tmp_path: Path) -> None:
    with Federation(tmp_path).set_up() as federation:
        run(federation)
        assert federation.model() == federation.simulated()
        summary = federation.summary()
        assert summary["rounds_completed"] == 3
        assert summary["regulator"]["outcomes"] == {"admit": 9}
        # what a site does with its images is written down there
        kinds = [entry.kind for entry in site_log(federation, "hospital-a")]
        assert kinds.count("trained") == 3
        assert kinds.index("offered") < kinds.index("joined") < kinds.index("trained")


def site_log(federation: Federation, site: str) -> list:
    from medfl.audit.log import AuditLog

    return AuditLog.open(federation.site_home(site) / "audit.log", f"site {site}").entries()


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["masks", "he"])
def test_sum_only_channels_give_the_model_of_the_simulation(tmp_path: Path, channel: str) -> None:
    if channel == "he":
        pytest.importorskip("tenseal")
    with Federation(tmp_path, update={**SUMMED, "channel": channel}).set_up() as federation:
        run(federation)
        assert federation.model() == federation.simulated()


@pytest.mark.slow
def test_a_site_killed_in_the_middle_of_a_round_ends_the_same_round(tmp_path: Path) -> None:
    with Federation(tmp_path, local=LONG).set_up() as federation:
        lead = federation.coordinator()
        first = {site: federation.site(site) for site in SITES}
        until(lambda: federation.status("hospital-b").get("detail") == "round 2", why=lead.text)
        first["hospital-b"].kill()
        again = federation.site("hospital-b")
        assert lead.end() == 0, lead.text
        assert again.end() == 0, again.text
        assert [list(record["failed"]) for record in federation.rounds()] == [[], [], []]
        assert federation.model() == federation.simulated()


@pytest.mark.slow
@pytest.mark.parametrize("update", [{}, SUMMED], ids=["clear", "masks"])
def test_a_coordinator_killed_in_the_middle_of_a_round_goes_on_with_it(tmp_path: Path, update: dict) -> None:
    with Federation(tmp_path, local=LONG, update=update).set_up() as federation:
        lead = federation.coordinator()
        sites = [federation.site(site) for site in SITES]
        until(lambda: federation.status("hospital-b").get("detail") == "round 2", why=lead.text)
        lead.kill()
        assert len(federation.rounds()) == 1
        again = federation.coordinator()
        assert again.end() == 0, again.text
        assert [site.end() for site in sites] == [0, 0, 0], sites[0].text
        assert federation.summary()["rounds_completed"] == 3
        assert federation.model() == federation.simulated()
        # nobody trained a round twice
        for site in SITES:
            rounds = [entry.body["round"] for entry in site_log(federation, site) if entry.kind == "trained"]
            assert sorted(set(rounds)) == [1, 2, 3]


@pytest.mark.slow
def test_a_site_that_is_gone_costs_its_rounds_and_comes_back(tmp_path: Path) -> None:
    with Federation(tmp_path, stop={"rounds": 40}, federation={"quorum": 2}).set_up() as federation:
        lead = federation.coordinator()
        sites = {site: federation.site(site) for site in SITES}
        until(lambda: len(federation.rounds()) >= 2, why=lead.text)
        sites["hospital-c"].freeze()
        until(lambda: any("hospital-c" in record["failed"] for record in federation.rounds()), 60, lead.text)
        missed = len(federation.rounds())
        sites["hospital-c"].thaw()
        assert lead.end() == 0, lead.text
        records = federation.rounds()
        assert len(records) == 40
        assert any("hospital-c" in record["verdicts"] for record in records[missed:]), lead.text
        assert all(len(record["verdicts"]) >= 2 for record in records)


def test_a_study_waits_for_the_steward_and_is_refused_with_a_note(tmp_path: Path) -> None:
    from medfl.site.home import SiteHome
    from medfl.site.studies import Studies

    with Federation(tmp_path, stop={"rounds": 1}).set_up() as federation:
        for site in SITES[1:]:
            path = federation.site_home(site) / "site.yaml"
            path.write_text(path.read_text().replace("approve: allowed", "approve: ask"))
        lead = federation.coordinator("--minimum", 2)
        for site in SITES:
            federation.site(site)
        for site in SITES[1:]:
            until(lambda site=site: federation.status(site).get("state") == "held", why=lead.text)
        assert not federation.rounds()
        kind, strict = (Studies(SiteHome.open(federation.site_home(site))) for site in SITES[1:])
        strict.reject(strict.all()[0].hash, "dr. c", "no children's images")
        kind.approve(kind.all()[0].hash, "dr. b")
        assert lead.end() == 0, lead.text
        assert list(federation.rounds()[0]["verdicts"]) == ["hospital-a", "hospital-b"]
        assert "no children's images" in lead.text
