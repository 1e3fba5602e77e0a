"""Coordinator and sites as processes of their own: the same model as a simulation, whoever is killed on the way."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from toys.federations import SITES, STUDY, Federation, call, environment, medfl, until

from medfl.data.synthetic.config import SiteShift, SyntheticSpec
from medfl.data.synthetic.write import write_federation

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
def test_places_and_shared_images_give_the_model_of_the_simulation(tmp_path: Path) -> None:
    """Sites train on a set beside their own images and send, under masks, what they asked for a round before."""
    update = {**SUMMED, "submodel": {"kind": "union", "share": 0.05}, "memory": "error_feedback"}
    local = {"learning_rate": 0.003, "batch_size": 8, "rules": ["sgd"], "plan": "overlap"}
    federation = Federation(tmp_path, update=update, local=local)
    federation.images()
    spec = SyntheticSpec(generator="chest", task="classification", size=(16, 16), cases=20)
    write_federation(tmp_path / "public", spec, {"public": SiteShift()}, seed=9)
    for path in (tmp_path / "sites").glob("*.yaml"):
        shared = [{"manifest": "../public/datalist.json", "consent": "CC BY 4.0"}]
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"shared": shared}))
    (tmp_path / "homes").mkdir()
    federation.admit()
    with federation:
        run(federation)
        assert federation.model() == federation.simulated()
        data, (first, *_) = federation.summary()["data"], federation.rounds()
        assert all(own["shared"] == {"CC BY 4.0": 20} for own in data.values())
        assert first["cases"] == {site: own["cases"]["train"] for site, own in data.items()}
        joined = [entry for entry in site_log(federation, "hospital-a") if entry.kind == "joined"]
        assert joined[0].body["shared"] == {"CC BY 4.0": 20}


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
        until(lambda: any("hospital-c" in record["failed"] for record in federation.rounds()), 120, lead.text)
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


@pytest.mark.slow
def test_a_third_party_holds_the_key(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    channel = {"kind": "he", "key_holder": "notary"}
    with Federation(tmp_path, update={**SUMMED, "channel": channel}) as federation:
        federation.others = {"notary": "key-holder"}
        federation.set_up()
        lead = federation.coordinator()
        notary = federation.key_holder("notary")
        sites = [federation.site(site) for site in SITES]
        assert lead.end() == 0, lead.text + notary.text
        assert [party.end() for party in (*sites, notary)] == [0, 0, 0, 0], notary.text
        assert all(record["moved"] for record in federation.rounds())
        # no site of the study holds it; what is summed is the same
        assert federation.model() == federation.simulated("--set", "update.channel=masks")


@pytest.mark.slow
def test_a_private_round_is_paid_for_once_when_a_site_is_killed(tmp_path: Path) -> None:
    from medfl.privacy.ledger.file import FileLedger

    private = {"kind": "patient", "epsilon": 8, "delta": 1e-3, "accept_low_utility": True}
    with Federation(tmp_path, privacy=private, update={"channel": "masks"}, stop={"rounds": 12}).set_up() as federation:
        lead = federation.coordinator()
        sites = {site: federation.site(site) for site in SITES}
        until(lambda: len(federation.rounds()) >= 3, why=lead.text)
        sites["hospital-b"].kill()
        again = federation.site("hospital-b")
        assert lead.end() == 0, lead.text
        assert again.end() == 0, again.text
        records = federation.rounds()
        assert [record["round"] for record in records] == list(range(1, len(records) + 1))
        for site in SITES:
            ledger = FileLedger.read(federation.site_home(site) / "ledgers" / f"{site}.ledger")
            charged = [charge.round for charge in ledger.charges(federation.run_name())]
            answered = [record["round"] for record in records if site in record["verdicts"]]
            # whatever was sent was charged before
            assert set(answered) <= set(charged)
        assert any("hospital-b" in record["verdicts"] for record in records[-3:]), lead.text


@pytest.mark.slow
def test_an_auditor_asks_a_run_that_goes_on_for_its_evidence(tmp_path: Path) -> None:
    with Federation(tmp_path, stop={"rounds": 10_000}) as federation:
        federation.others = {"board": "auditor"}
        federation.set_up()
        lead = federation.coordinator()
        for site in SITES:
            federation.site(site)
        until(lambda: len(federation.rounds()) >= 3, why=lead.text)
        checks = json.loads(call("auditor", "evidence", "--home", federation.site_home("board"), "--json"))["checks"]
        assert [check["check"] for check in checks if check["ok"] is False] == []
        assert any("counted once" in check["check"] and check["ok"] for check in checks)
        # a site is no auditor, and an auditor is no site
        assert "is the home of a site" in refused("auditor", "evidence", "--home", federation.site_home(SITES[0]))
        assert "takes no part" in refused("site", "start", "--home", federation.site_home("board"))


def refused(*arguments: object) -> str:
    """What a command says that fails."""
    done = subprocess.run(medfl(*arguments), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2, done
    return done.stderr


@pytest.mark.slow
def test_prototypes_leave_the_sites_that_consent(tmp_path: Path) -> None:
    """GLFC's proxy server: the model of the simulation, and a hospital that did not consent is not asked to train."""
    local = {**STUDY["local"], "plan": {"kind": "class_stream", "rounds_per_task": 1}, "rules": [PROXIED]}
    with Federation(tmp_path / "all", local=local).set_up() as federation:
        for site in SITES:
            consent(federation, site)
        run(federation)
        assert federation.model() == federation.simulated()
        told = [record.get("prototypes", {}) for record in federation.rounds()]
        assert [sorted(entry) for entry in told] == [list(SITES), list(SITES), []]
        trained = [entry for entry in site_log(federation, "hospital-a") if entry.kind == "trained"]
        assert ["prototypes" in entry.body for entry in trained] == [True, True, False]
    with Federation(tmp_path / "some", local=local).set_up() as federation:
        for site in SITES[1:]:
            consent(federation, site)
        lead = federation.coordinator("--minimum", 2)
        for site in SITES:
            federation.site(site)
        until(lambda: federation.status(SITES[0]).get("state") == "held", why=lead.text)
        assert lead.end() == 0, lead.text
        assert list(federation.rounds()[0]["verdicts"]) == list(SITES[1:])


PROXIED = {
    "kind": "glfc",
    "old_model": "proxy",
    "prototype_size": 8,
    "rebuilt_images": 3,
    "rebuild_iterations": 10,
}


def consent(federation: Federation, site: str) -> None:
    path = federation.site_home(site) / "site.yaml"
    word = "approve: allowed\n  prototypes_may_leave: true"
    path.write_text(path.read_text().replace("approve: allowed", word))
