"""What a steward decided holds for exactly that study, for as many rounds as it says, and is seen at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.proxied import OWN, PROXIED

from medfl.errors import InputError, MedflError, RunError
from medfl.privacy.channels.base import CHANNELS
from medfl.site import studies
from medfl.site.home import SiteHome
from medfl.site.studies import Studies, refusals
from medfl.study.digest import study_hash
from medfl.study.load import load_study
from medfl.study.model import Policy, Site, Study
from medfl.update.submodels.last_aggregate import LastAggregateConfig
from medfl.update.submodels.union import UnionConfig


@pytest.fixture
def study(tiny: Any) -> Study:
    return load_study(tiny.study)


@pytest.fixture
def home(tiny: Any, tmp_path: Path) -> SiteHome:
    return SiteHome.create(tmp_path / "home", tiny.sites / "east.yaml")


def kinds(home: SiteHome) -> list[str]:
    return [record.kind for record in home.audit.entries()[1:]]


def test_a_new_study_is_held_until_somebody_decides(home: SiteHome, study: Study):
    agent, steward = Studies(home), Studies(SiteHome.open(home.folder))
    key = study_hash(study)
    assert agent.offer(study, "run-1", "lead").state == "held" == agent.offer(study, "run-2", "lead").state
    with pytest.raises(RunError, match="is held at this site"):
        agent.permit(key, "run-1", 1)
    steward.approve(key[:8], "dr. a")
    assert (agent.standing(key).state, agent.standing(key).by) == ("approved", "dr. a")
    agent.permit(key, "run-1", 1)
    steward.reject(key, "dr. b", "no ethics vote")
    assert agent.standing(key).note == "no ethics vote"
    with pytest.raises(RunError, match="is rejected at this site: no ethics vote"):
        agent.permit(key, "run-1", 1)
    assert kinds(home) == ["offered", "approved", "rejected"]
    (offer,) = agent.all()
    assert (offer.hash, offer.study, offer.run, offer.coordinator) == (key, study, "run-1", "lead")


def test_a_coordinator_that_offers_study_after_study_does_not_fill_the_disk(
    home: SiteHome, study: Study, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(studies, "_MOST", 3)
    known = Studies(home)
    for number in range(3):
        known.offer(study.model_copy(update={"name": f"s{number}"}), "run-1", "lead")
    for number in range(3, 6):
        with pytest.raises(RunError, match="removes those that nobody needs"):
            known.offer(study.model_copy(update={"name": f"s{number}"}), "run-1", "lead")
    assert len(list(home.studies.glob("*.json"))) == 3 and kinds(home) == ["offered"] * 3
    assert known.offer(study.model_copy(update={"name": "s1"}), "run-2", "lead").state == "held", "those are known"


def test_an_approval_is_of_one_hash(home: SiteHome, study: Study):
    known = Studies(home)
    known.offer(study, "r", "lead")
    known.approve(study_hash(study), "me")
    more = study.model_copy(update={"stop": study.stop.model_copy(update={"rounds": 4})})
    assert known.offer(more, "r", "lead").state == "held"


def test_an_approval_is_used_up_by_its_rounds_over_all_runs(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    known.offer(study, "one", "lead")
    known.approve(key, "me")
    for run, rounds in (("one", (1, 2)), ("two", (1,))):
        home.participation.begin(run, key, ["1"])
        for round_ in rounds:
            known.permit(key, run, round_)
            home.participation.trained(run, round_)
    known.permit(key, "two", 1)  # again, after a crash
    with pytest.raises(RunError, match="was for 3 rounds, which were trained"):
        known.permit(key, "two", 2)
    # a fake that looks at the number of the round alone lets it pass
    assert 1 <= 2 <= study.stop.rounds
    known.approve(key, "me")
    known.permit(key, "two", 2)
    for round_ in (0, 4):
        with pytest.raises(RunError, match="the study has 3 rounds"):
            known.permit(key, "two", round_)


def test_an_approval_is_used_up_by_rounds_that_are_asked_for_again_with_other_models(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    known.offer(study, "one", "lead")
    known.approve(key, "me")
    home.participation.begin("one", key, ["1"])
    for model in ("a", "a", "b", "c", "a", "d"):
        known.permit(key, "one", 1)
        home.participation.trained("one", 1, model)
    with pytest.raises(RunError, match="3 rounds were asked for again with other models"):
        known.permit(key, "one", 1)
    # the fake: by rounds alone, one of three was trained
    assert home.participation.rounds_of_study(key) == {("one", 1)}
    assert home.participation.trainings_of_study(key) == 4
    known.permit(key, "one", 2)
    known.approve(key, "me")
    for model in "efg":
        # also over restarts
        Studies(home).permit(key, "one", 1)
        home.participation.trained("one", 1, model)
    with pytest.raises(RunError, match="3 rounds were asked for again with other models"):
        Studies(home).permit(key, "one", 1)


def test_an_approval_is_used_up_by_metrics(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    known.offer(study, "one", "lead")
    known.approve(key, "me")
    most = 3 * (3 + 3)
    for _ in range(most):
        known.permit_evaluation(key)
        home.audit.append("evaluated", {"study": key, "run": "one", "split": "val"})
    home.audit.append("evaluated", {"study": "another", "run": "two", "split": "val"})
    with pytest.raises(RunError, match=f"metrics were told {most} times"):
        known.permit_evaluation(key)
    # also over restarts
    again = SiteHome.open(home.folder)
    assert again.audit.evaluations("another") == 1
    with pytest.raises(RunError, match=f"metrics were told {most} times"):
        Studies(again).permit_evaluation(key)
    known.approve(key, "me")
    Studies(again).permit_evaluation(key)


def test_metrics_of_public_images_are_told_as_often_as_they_are_asked_for(home: SiteHome, study: Study):
    public = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"public": home.site.name})})
    known, key = Studies(home), study_hash(public)
    known.offer(public, "one", "lead")
    known.approve(key, "me")
    for _ in range(40):
        known.permit_evaluation(key)
        home.audit.append("evaluated", {"study": key, "run": "one", "split": "val"})


def test_a_policy_may_approve_what_it_allows_and_nothing_else(home: SiteHome, study: Study):
    def policy(text: str) -> None:
        home.site_file.write_text(f"name: east\npolicy: {{approve: allowed{text}}}\n")

    known, key = Studies(home), study_hash(study)
    policy("")
    assert known.offer(study, "r", "lead").by == "the site's policy"
    known.permit(key, "r", 1)
    assert kinds(home) == ["offered", "approved"]
    policy(", channels: [masks]")
    assert known.standing(key).state == "held"
    assert "the study's channel is clear, the site asks for masks" in known.standing(key).note
    policy("")
    known.reject(key, "me", "not this one")
    assert known.standing(key).state == "rejected", "a person's word counts more"
    with pytest.raises(InputError, match="is nobody's name"):
        known.approve(key, "the site's policy")


def test_a_decision_that_the_log_does_not_have_does_not_count(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    known.offer(study, "r", "lead")
    (home.folder / "audit.log").write_bytes(b"")
    with pytest.raises(MedflError):
        known.approve(key, "me")
    assert Studies(home).standing(key).state == "held"


def test_files_that_were_changed_are_refused(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    known.offer(study, "r", "lead")
    known.approve(key, "me")
    decision, offer = home.studies / f"{key}.decision.json", home.studies / f"{key}.json"
    decision.write_text(json.dumps({**json.loads(decision.read_text()), "study": "0" * 64}))
    with pytest.raises(RunError, match="it is not a decision about this study"):
        known.standing(key)
    decision.unlink()
    told = json.loads(offer.read_text())
    told["study"]["stop"]["rounds"] = 99
    offer.write_text(json.dumps(told))
    with pytest.raises(RunError, match="not the one it is named after"):
        known.standing(key)


def test_a_prefix_must_name_one_study(home: SiteHome, study: Study):
    known, key = Studies(home), study_hash(study)
    with pytest.raises(InputError, match="fits no study that was offered"):
        known.find(key)
    known.offer(study, "r", "lead")
    assert known.find(key[:8]).hash == key
    for wrong in (key[:7], "../audit", "*" * 8):
        with pytest.raises(InputError, match="is not the beginning of a study's hash"):
            known.find(wrong)
    with pytest.raises(InputError, match="is empty"):
        known.reject(key, "me", " ")


@pytest.mark.parametrize(
    ("policy", "cases", "said"),
    [
        (Policy(tasks=("detection",)), None, "the study trains classification, the site allows detection"),
        (Policy(units=("patient",)), None, "the study has no differential privacy, the site asks for patient"),
        (Policy(max_epsilon=1.0), None, "allows epsilon 1, the study has no bound"),
        (Policy(minimum_cases=20), {"train": 19}, "19 training cases are fewer than the 20 asked for"),
        (Policy(metrics_may_leave=False), {"train": 30, "val": 3}, "keeps the model's metrics"),
    ],
)
def test_what_a_policy_refuses(study: Study, policy: Policy, cases: dict[str, int] | None, said: str):
    site = Site(name="east", policy=policy)
    assert [said in fault.what for fault in refusals(study, site, cases)] == [True]
    assert not list(refusals(study, Site(name="east"), cases))
    assert not list(refusals(study, site.model_copy(update={"policy": Policy()}), {"train": 30, "val": 3}))


def test_a_site_that_seals_its_updates_is_asked_before_it_tells_places(study: Study):
    sealed = study.update.model_copy(update={"channel": CHANNELS.default("masks"), "submodel": UnionConfig()})
    tells = study.model_copy(update={"update": sealed})

    def refused(found: Study, **policy: Any) -> list[bool]:
        site = Site(name="east", policy=Policy(**policy))
        return ["where the site's update is large" in fault.what for fault in refusals(found, site, None)]

    assert refused(tells, channels=("masks", "he")) == [True]
    assert not refused(tells, channels=("masks",), places_may_leave=True)
    assert not refused(tells) and not refused(tells, channels=("masks", "clear"))
    shared = sealed.model_copy(update={"submodel": LastAggregateConfig()})
    assert not refused(study.model_copy(update={"update": shared}), channels=("masks",))


def test_gradients_of_single_images_need_a_word_of_the_hospital(tiny: Any, tmp_path: Path):
    """What a simulation does without being told, a hospital must say."""
    proxied = tiny.inputs(*PROXIED).study
    found = {}
    for word in ("", "prototypes_may_leave: true", "prototypes_may_leave: false"):
        file = tmp_path / f"given{len(found)}" / "east.yaml"
        file.parent.mkdir()
        file.write_text(f"name: east\npolicy: {{approve: allowed, {word}}}\n")
        home = SiteHome.create(tmp_path / f"home{len(found)}", file)
        found[word] = Studies(home).offer(proxied, "r", "lead")
    assert [standing.approved for standing in found.values()] == [False, True, False]
    assert "does not consent to gradients of single images" in found[""].note
    assert not list(refusals(proxied, Site(name="east")))
    assert not list(refusals(tiny.inputs(*OWN).study, Site(name="east", policy=Policy().in_service())))
