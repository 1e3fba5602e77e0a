"""The steward's summary says what the study says, for every study that ships."""

from pathlib import Path
from typing import Any

import pytest
from toys.proxied import OWN, PROXIED

from medfl.privacy.channels.base import CHANNELS
from medfl.privacy.trust import PROBES, PROTOTYPES, QUESTIONS, SNAPSHOTS, privacy_statement
from medfl.site.summary import Summary, shared_values, summary
from medfl.study.build import build_mechanism
from medfl.study.digest import study_hash
from medfl.study.load import load_study
from medfl.study.model import Policy, Site, Study
from medfl.update.submodels.lottery import LotteryConfig
from medfl.update.submodels.union import UnionConfig

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.yaml"))
CASES = {"train": 1234, "val": 56, "test": 78}
SITE = Site(name="hospital-a")


def section(found: Summary, title: str) -> str:
    (part,) = [part for part in found.sections if part.title == title]
    return "\n".join(part.lines)


def told_by(study: Study) -> set[str]:
    """Metrics that the study's own evaluation would send."""
    from medfl.study.build import build_task

    task = build_task(study)
    return {metric.name for metric in task.metrics(task.empty())}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_every_sentence_follows_from_the_study(path: Path):
    study = load_study(path)
    found, privacy = summary(study, SITE, CASES, ["south"]), study.privacy
    facts = found.facts
    assert found.hash == study_hash(study) and found.hash in section(found, "What you decide on")
    assert all(name in section(found, "What is trained") for name in study.task.classes if name != "background")
    assert "1,234 train, 56 val, 78 test" in section(found, "On which of your images")
    assert f"{study.stop.rounds} rounds at most" in section(found, "For how long")

    leaves = section(found, "What leaves your site")
    listed = privacy is None or privacy.site_metrics == "listed"
    assert set(facts["metrics"]) == (told_by(study) if listed else set())
    assert all(name in leaves for name in facts["metrics"])
    assert ("metrics on your images do not leave" in leaves) != listed
    assert ("in the clear" in leaves) == (study.update.channel.kind == "clear")
    assert ("under a mask" in leaves) == (study.update.channel.kind == "masks")
    assert ("training loss" in leaves) == (privacy is None), "losses stay at the site under differential privacy"

    protection, mechanism = section(found, "How patients are protected"), build_mechanism(study)
    assert ("NO differential privacy" in protection) == (mechanism is None)
    if mechanism is None:
        assert facts["privacy"]["epsilon"] is facts["privacy"]["unit"] is None
        fair = study.federation.schedule.kind == "drfa"
        covered = privacy_statement(study.update.channel.kind, snapshots=fair, probes=fair)["not_covered"]
    else:
        assert f"epsilon {mechanism.config.epsilon:g} at delta {mechanism.config.delta:g}" in protection
        assert ("one patient" in protection) == (mechanism.unit == "patient")
        covered = mechanism.not_covered()
    assert all(item in protection for item in covered) and facts["privacy"]["not_covered"] == covered

    trust = dict(row.split(": ", 1) for row in section(found, "Who can see what").splitlines())
    assert trust == facts["trust"] and trust["Other sites"] == "south"
    assert QUESTIONS["updates"] in trust and "`" not in found.text()
    assert found.to_json()["sections"]["What is trained"]


def of(name: str) -> Study:
    return load_study(Path(__file__).parents[2] / "configs" / name)


def test_trust_differs_by_mode():
    said = {
        name: summary(of(f"private/pneumonia_{name}.yaml"), SITE).facts["trust"]
        for name in ("site", "patient", "local")
    }
    assert said["patient"]["Who sees updates"].startswith("nobody")
    assert "before the noise" in said["site"]["Who sees updates"]
    assert "up to 1 site" in said["patient"]["Epsilon holds against"]
    assert said["local"]["Epsilon holds against"] == "everyone but the site itself"


def test_what_epsilon_means_in_numbers():
    study = of("private/pneumonia_patient.yaml")
    for epsilon, factor in ((8, "at most 2,981,"), (1, "at most 2.72,"), (20, "more than a million,")):
        assert study.privacy is not None
        private = study.privacy.model_copy(update={"epsilon": float(epsilon)})
        found = summary(study.model_copy(update={"privacy": private}), SITE)
        assert factor in section(found, "How patients are protected")
    unbounded = study.privacy.model_copy(update={"epsilon": None, "noise_multiplier": 2.0})
    found = summary(study.model_copy(update={"privacy": unbounded}), SITE)
    assert "NO budget is set" in section(found, "How patients are protected")


def test_a_site_that_only_evaluates_is_told_so():
    found = summary(of("pneumonia.yaml"), Site(name="hospital-e"), {"val": 5, "test": 6})
    assert not found.facts["trains"]
    assert "none of them are trained on" in section(found, "On which of your images")
    assert "its update" not in section(found, "What leaves your site")


@pytest.mark.parametrize("cases", [None, CASES])
def test_what_the_policy_refuses_is_said(cases: Any):
    site = Site(name="hospital-a", policy=Policy(max_epsilon=2.0, metrics_may_leave=False))
    found = summary(of("private/pneumonia_patient.yaml"), site, cases)
    policy = section(found, "What your site's policy says")
    assert "REFUSES the study: allows epsilon 2, the study asks for 8" in policy
    assert len(found.facts["refusals"]) == 2 and found.facts["metrics"] == []
    assert "do not leave" in section(found, "What leaves your site")
    allowed = section(summary(of("private/pneumonia_patient.yaml"), SITE, cases), "What your site's policy says")
    assert allowed.startswith("allows the study" if cases else "allows what can be judged before")


@pytest.mark.parametrize("channel", ["masks", "clear"])
def test_the_steward_is_told_of_places_that_leave_in_the_clear(channel: str):
    study = of("stacks/private_sparse.yaml")
    assert "IN THE CLEAR" not in summary(study, SITE).text()
    assert not summary(study, SITE).facts["tells_places"]
    part = {"submodel": UnionConfig(share=0.02), "channel": CHANNELS.default(channel)}
    found = summary(study.model_copy(update={"update": study.update.model_copy(update=part)}), SITE, CASES)
    leaves = section(found, "What leaves your site")
    assert found.facts["tells_places"] and "which 2.00% of the network's numbers" in leaves
    sealed = channel != "clear"
    assert ("which values of each site's update are the largest" in section(found, "Who can see what")) == sealed
    assert any("by name of the site" in item for item in found.facts["privacy"]["not_covered"]) == sealed


def test_the_steward_is_told_of_probes_and_snapshots():
    fair = of("stacks/fairness.yaml")
    found = summary(fair, SITE, CASES)
    leaves, protection = section(found, "What leaves your site"), section(found, "How patients are protected")
    assert (
        "as often as the coordinator asks" in leaves
        and "on 512 of your own training images or more, or on all" in leaves
    )
    assert "a second vector" in leaves and f"ONE batch of {fair.local.batch_size} training images" in leaves
    assert PROBES in protection and SNAPSHOTS in protection and SNAPSHOTS in section(found, "Who can see what")
    assert found.facts["probes"] and found.facts["snapshots"]
    kept = summary(fair, SITE.model_copy(update={"policy": Policy(metrics_may_leave=False)}), CASES)
    assert "your site's policy keeps it" in section(kept, "What leaves your site") and not kept.facts["probes"]
    plain = fair.model_copy(update={"federation": of("pneumonia.yaml").federation})
    other = summary(plain, SITE, CASES)
    for said in ("as often as the coordinator asks", "a second vector", PROBES, SNAPSHOTS):
        assert said not in other.text()
    assert not other.facts["probes"] and not other.facts["snapshots"]
    assert "a second vector" not in summary(fair, SITE, {"val": 5, "test": 6}).text(), "it only evaluates"


def test_the_steward_is_told_of_a_mask_that_follows_the_images():
    study = of("stacks/bandwidth_up.yaml")
    masked = study.model_copy(update={"update": study.update.model_copy(update={"submodel": LotteryConfig()})})
    told = "which of the network's numbers your site keeps"
    assert told in section(summary(masked, SITE, CASES), "What leaves your site")
    assert told not in summary(study, SITE, CASES).text()


def test_the_networks_size_is_counted():
    study = of("segmentation.yaml")
    values = shared_values(study)
    found = summary(study, SITE, values=values)
    assert f"{values:,} numbers" in found.text() and found.facts["size"] == "small"
    assert "never leaves your site" in section(found, "What is trained"), "the teacher stays"
    assert "counted when they are loaded" in section(found, "On which of your images")
    sizes = [summary(study, SITE, values=number).facts["size"] for number in (999_999, 1_000_000, 20_000_000)]
    assert sizes == ["small", "of medium size", "large"]


def test_what_a_proxy_server_is_told_is_said_in_plain_words(tiny: Any):
    study, own = tiny.inputs(*PROXIED).study, tiny.inputs(*OWN).study
    found, other = summary(study, SITE, CASES), summary(own, SITE, CASES)
    leaves = section(found, "What leaves your site")
    for said in ("ONE of your training images", "which class the image is of", "REBUILDS THE IMAGE", "protects nobody"):
        assert said in leaves and said not in other.text()
    assert "images and labels do not leave" not in leaves
    assert "images and labels do not leave" in section(other, "What leaves your site")
    assert found.facts["prototypes"] and not other.facts["prototypes"]
    assert PROTOTYPES in section(found, "How patients are protected")
    assert "rebuilds them" in section(found, "Who can see what")
    refused = summary(study, SITE.model_copy(update={"policy": SITE.policy.in_service()}), CASES)
    assert "REFUSES the study: does not consent" in section(refused, "What your site's policy says")
    evaluates = summary(study, SITE, {"val": 5, "test": 6})
    assert "images and labels do not leave" in section(evaluates, "What leaves your site")
