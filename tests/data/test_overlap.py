"""Overlap by consent: what a site may train on beside its own images, what it may not, and that nobody's weight counts
it. That it saves synchronisations is in federation/test_local_work.py."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from toys.crashes import model_bytes, records
from toys.parts import Federated, configured, federation_parts
from toys.tasks import Classifier, Rows

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.data.base import Case, SampleInfo, SiteData, lent, origin_of
from medfl.data.manifest import load_datalist, save_datalist
from medfl.data.plans.base import PLANS
from medfl.data.plans.overlap import Overlap, OverlapConfig
from medfl.data.synthetic.config import SiteShift, SyntheticSpec
from medfl.data.synthetic.write import write_federation
from medfl.errors import InputError, RunError, StudyError
from medfl.learning.messages import SiteInfo, TrainReply
from medfl.report.run import read_run
from medfl.report.views import findings, results
from medfl.site.home import SiteHome
from medfl.site.studies import refusals
from medfl.site.summary import summary
from medfl.site.withdrawal import withdraw
from medfl.study import shared_images
from medfl.study.load import load_site_file, load_sites, load_study
from medfl.study.shared_images import offered
from medfl.study.sources import RunInputs, assign_cases, load_site_data, own_cases
from medfl.transport.answers import info_of
from medfl.transport.messages import decode_reply, encode_reply
from medfl.transport.serving import info_json

CONSENT = "DUA 2026-11, ethics vote 12/26"
SITES = ("east", "south", "west")
OVERLAP = "local.plan={kind: overlap, redundancy: 1}"


def images(folder: Path, cases: int = 9, **changes: Any) -> Path:
    """The manifest of a small set of chests."""
    spec = {"generator": "chest", "task": "classification", "size": (24, 24), "cases": cases} | changes
    return write_federation(folder, SyntheticSpec(**spec), {"public": SiteShift()}, seed=9)


def edit(manifest: Path, change: Callable[[Case], Case]) -> None:
    datalist = load_datalist(manifest)
    save_datalist(replace(datalist, cases=tuple(map(change, datalist.cases))), manifest)


def share(tiny: Any, *manifests: Path, sites: Sequence[str] = SITES) -> None:
    """Write into the sites' files that they may train on these."""
    for name in sites:
        path = tiny.sites / f"{name}.yaml"
        entries = [{"manifest": str(manifest), "consent": CONSENT} for manifest in manifests]
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"shared": entries}))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return images(tmp_path / "public")


# the plan


def made(redundancy: float = 0.5) -> Overlap:
    return Overlap(OverlapConfig(redundancy=redundancy))


@pytest.mark.parametrize(("redundancy", "expected"), [(0, 0), (0.1, 1), (0.5, 5), (1, 10), (2, 20), (10, 30)])
def test_a_round_draws_a_share_of_the_own_samples_anew(redundancy: float, expected: int) -> None:
    own, others = np.arange(10), np.arange(10, 40)
    rounds = [made(redundancy).drawn("a", round_, own, others) for round_ in range(1, 9)]
    for found in rounds:
        assert set(own) <= set(found) and len(found) == len(set(found)) == 10 + expected
    assert rounds[0].tolist() == made(redundancy).drawn("a", 1, own, others).tolist(), "a resumed run sees the same"
    elsewhere = made(redundancy).drawn("b", 1, own, others)
    if 0 < expected < 30:
        assert len({tuple(found) for found in rounds}) > 1 and elsewhere.tolist() != rounds[0].tolist()
        # the fake that draws the same each time leaves most of the set unused
        assert len(set(np.concatenate(rounds))) > len(set(rounds[0])) or expected > 20


class Unseeded(Overlap):
    """The fake: draws by site and round alone."""

    def bind(self, classes: Sequence[str], seed: int) -> None:
        pass


@pytest.mark.parametrize(("plan", "right"), [(Overlap, True), (Unseeded, False)])
def test_studies_with_other_seeds_draw_other_images(plan: type[Overlap], right: bool) -> None:
    found = []
    for seed in (0, 1, 1, 2**32 - 1):
        one = plan(OverlapConfig(redundancy=1))
        one.bind(["a", "b"], seed)
        found.append(tuple(one.drawn("a", 1, np.arange(10), np.arange(10, 60))))
    assert found[1] == found[2] and (len(set(found)) == 3) == right


@pytest.mark.parametrize(("plan", "right"), [(Overlap, True), (Unseeded, False)])
def test_the_study_s_seed_comes_to_the_plan(plan: type[Overlap], right: bool) -> None:
    drawn = []
    for seed in (1, 2):
        one = plan(OverlapConfig(redundancy=1))
        sites = [SiteData("a", {"train": Keyed(8, 40)}, lent={"shared-1": 40})]
        Federated(Classifier(3, 3), sites, federation_parts(), plan=one, seed=seed)
        drawn.append(one.drawn("a", 1, np.arange(10), np.arange(10, 60)).tolist())
    assert (drawn[0] != drawn[1]) == right


class CountsShared(Overlap):
    """The fake: weighs a site by all that it trains on."""

    def unique(self, site: str, round: int, samples: Any, indices: Any) -> int:
        return len({samples.info(int(index)).key for index in indices})


class Keyed(Rows):
    """Own rows and lent ones, each twice as with augmentation."""

    def __init__(self, own: int, others: int) -> None:
        cases = [Case(f"{n}", Path("x")) for n in range(own)]
        cases += [lent(Case(f"{n}", Path("x")), "a", "shared-1") for n in range(others)]
        self.keys = [case.key for case in cases for _ in range(2)]
        rng = np.random.default_rng(own)
        super().__init__(rng.normal(size=(len(self.keys), 3)), rng.integers(3, size=len(self.keys)), own + others)

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.keys[index], self.keys[index], (1.0,))


@pytest.mark.parametrize(("plan", "right"), [(Overlap, True), (CountsShared, False)])
def test_weights_count_own_cases_alone(plan: type[Overlap], right: bool) -> None:
    own, others = {"a": 8, "b": 4}, {"a": 2, "b": 40}
    sites = [SiteData(name, {"train": Keyed(own[name], others[name])}, lent={"shared-1": others[name]}) for name in own]
    assert [data.cases for data in sites] == [{"train": 8}, {"train": 4}]
    federated = Federated(Classifier(3, 3), sites, federation_parts(), plan=plan(OverlapConfig(redundancy=10)))
    federated.federation.plan({"a": 8, "b": 4})
    outcome = federated.round()
    assert ({name: mine.cases for name, mine in outcome.sites.items()} == own) == right
    assert {name: mine.shared for name, mine in outcome.sites.items()} == others
    assert not right or all(mine.counts for mine in outcome.sites.values())


def test_settings_and_marks() -> None:
    assert configured(PLANS, "overlap").traits() == {"shares-data", "reads-shared"}
    for wrong in (-0.1, 11, float("nan")):
        with pytest.raises(ValidationError):
            OverlapConfig(redundancy=wrong)
    case = Case("a/b.png", Path("/a/b.png"))
    assert origin_of(case.key) == "" and origin_of(lent(case, "x", "shared-2").key) == "shared-2"


# what a site's file names


def test_shared_cases_are_trained_on_and_nothing_else_changes(tiny: Any, public: Path) -> None:
    share(tiny, public)
    plain, found = assign_cases(tiny.inputs()).cases, assign_cases(tiny.inputs(OVERLAP)).cases
    for name in SITES:
        more = [case for case in found[name] if case not in plain[name]]
        assert len(more) == 9 == len(found[name]) - len(plain[name])
        assert {case.split for case in more} == {"train"} and all(origin_of(case.key) == "shared-1" for case in more)
        data = load_site_data(tiny.inputs(OVERLAP), name, found[name])
        own = sum(case.split == "train" for case in plain[name])
        assert data.cases["train"] == own and data.lent == {"shared-1": 9} and len(data.splits["train"]) == own + 9
    assert found["north"] == plain["north"], "a site that does not train is lent nothing"


def test_a_study_without_the_plan_never_opens_them(tiny: Any, tmp_path: Path) -> None:
    share(tiny, tmp_path / "nowhere.json")
    plain = assign_cases(tiny.inputs()).cases
    assert not any(origin_of(case.key) for own in plain.values() for case in own)
    with pytest.raises(InputError, match="nowhere"):
        assign_cases(tiny.inputs(OVERLAP))


def test_a_site_without_the_entry_is_named_with_its_file(tiny: Any, public: Path) -> None:
    share(tiny, public, sites=["south"])
    with pytest.raises(InputError) as told:
        assign_cases(tiny.inputs(OVERLAP))
    assert [fault.where for fault in told.value.faults] == ["site east", "site west"]
    assert "nothing under `shared`" in str(told.value) and "east.yaml" in str(told.value)
    # the pooled baseline has no site whose file could say so
    assert assign_cases(tiny.inputs(OVERLAP).model_copy(update={"pooled": True})).cases["pooled"]


def test_what_a_manifest_holds_for_validation_or_test_is_left_out(tiny: Any, public: Path) -> None:
    share(tiny, public)
    keys = [case.key for case in load_datalist(public).cases]
    edit(public, lambda case: replace(case, split={0: "train", 1: "val", 2: "test"}[keys.index(case.key) % 3]))
    # patients of a manifest have one split each; these have one image each here
    found = assign_cases(tiny.inputs(OVERLAP)).cases["east"]
    assert len([case for case in found if origin_of(case.key)]) == 3
    edit(public, lambda case: replace(case, split="test"))
    with pytest.raises(InputError, match="all of its 9 images for validation or test"):
        assign_cases(tiny.inputs(OVERLAP))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_patient_who_is_tested_on_is_refused(tiny: Any, public: Path, split: str) -> None:
    share(tiny, public)
    (known,) = [case for case in assign_cases(tiny.inputs()).cases["east"] if case.split == split][:1]
    edit(public, lambda case: replace(case, patient="somebody"))
    assign_cases(tiny.inputs(OVERLAP))
    edit(public, lambda case: replace(case, patient=known.patient))
    with pytest.raises(InputError, match=f"{known.patient}: is in several splits: .*{split}"):
        assign_cases(tiny.inputs(OVERLAP))


def test_a_patient_who_is_trained_on_already_may_be_shared(tiny: Any, public: Path) -> None:
    share(tiny, public, sites=["east"])
    share(tiny, images(public.parent.parent / "other"), sites=["south", "west"])
    (known,) = [case for case in assign_cases(tiny.inputs()).cases["east"] if case.split == "train"][:1]
    edit(public, lambda case: replace(case, patient=known.patient))
    assert assign_cases(tiny.inputs(OVERLAP)).cases["east"]


def test_an_image_that_any_site_tests_on_is_refused(tiny: Any, tmp_path: Path) -> None:
    """Handed over by another hospital, under another name of its patient."""
    cases = assign_cases(tiny.inputs()).cases
    everything = load_datalist(next(iter(Path(cases["south"][0].image).parents[2].glob("datalist.json"))))
    for split, allowed in (("train", True), ("test", False)):
        given = [case for case in cases["south"] if case.split == split]
        handed = [replace(case, key=str(n), patient=f"p{n}", site="", split="") for n, case in enumerate(given)]
        manifest = tmp_path / f"{split}.json"
        save_datalist(replace(everything, cases=tuple(handed)), manifest)
        share(tiny, images(tmp_path / f"beside-{split}"), sites=["south"])
        share(tiny, manifest, sites=["east", "west"])
        if allowed:
            found = assign_cases(tiny.inputs(OVERLAP)).cases
            assert {case.image for case in given} <= {case.image for case in found["east"]}
            continue
        with pytest.raises(InputError, match="validation or test images of a site") as told:
            assign_cases(tiny.inputs(OVERLAP))
        assert {fault.where for fault in told.value.faults} == {
            "the file of site east: shared",
            "the file of site west: shared",
        }


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_copy_of_an_image_that_is_tested_on_is_refused(
    tiny: Any, public: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Handed over as hospitals do: as files of their own, with other names and other patients."""
    cases = assign_cases(tiny.inputs()).cases
    share(tiny, public)
    copied, first = public.parent / "handed-over.png", load_datalist(public).cases[0].key
    edit(public, lambda case: replace(case, image=copied) if case.key == first else case)
    for chosen, allowed in (("train", True), (split, False)):
        (given, *_) = [case for case in cases["south"] if case.split == chosen]
        copied.write_bytes(given.image.read_bytes())
        if allowed:
            assert copied in {case.image for case in assign_cases(tiny.inputs(OVERLAP)).cases["east"]}
            continue
        with pytest.raises(InputError, match=r"1 images are copies of validation or test images.*handed-over") as told:
            assign_cases(tiny.inputs(OVERLAP))
        assert len(told.value.faults) == len(SITES)
    # the fake that goes by places alone lets it through
    monkeypatch.setattr(shared_images, "copies", lambda *_: [])
    assert assign_cases(tiny.inputs(OVERLAP)).cases["east"]


def test_an_image_twice_is_refused(tiny: Any, public: Path) -> None:
    share(tiny, public, public)
    with pytest.raises(InputError, match=r"9 images are there twice.* and 4 more"):
        assign_cases(tiny.inputs(OVERLAP))


def test_images_of_other_classes_are_refused(tiny: Any, tmp_path: Path) -> None:
    share(tiny, images(tmp_path / "ct", generator="ct", task="segmentation"))
    with pytest.raises(InputError, match="is for segmentation, the study trains classification"):
        assign_cases(tiny.inputs(OVERLAP))


@pytest.mark.parametrize("entry", [{"consent": "x"}, {"manifest": "a"}, {"manifest": "a", "consent": ""}])
def test_an_entry_without_a_manifest_or_a_consent_is_refused(tiny: Any, entry: dict[str, str]) -> None:
    (tiny.sites / "east.yaml").write_text(yaml.safe_dump({"name": "east", "shared": [entry]}))
    with pytest.raises(StudyError, match="shared"):
        load_sites(tiny.sites)


# runs


def test_a_run_tells_own_and_shared_cases_apart(tiny: Any, tmp_path: Path, public: Path) -> None:
    share(tiny, public)
    run, plain = tmp_path / "run", tmp_path / "plain"
    simulate(tiny.inputs(OVERLAP, "stop.rounds=2"), run, Observer(), workers=1)
    simulate(tiny.inputs("stop.rounds=2"), plain, Observer(), workers=1)
    own = {name: own["cases"] for name, own in json.loads((plain / "summary.json").read_text())["data"].items()}
    data = json.loads((run / "summary.json").read_text())["data"]
    assert {name: mine["cases"] for name, mine in data.items()} == own
    assert {name: mine["shared"] for name, mine in data.items()} == {name: {CONSENT: 9} for name in SITES} | {
        "north": {}
    }
    for record, before in zip(records(run), records(plain), strict=True):
        assert record["cases"] == before["cases"] and not record["refused"]
        assert all(0 < count <= 9 for count in record["shared"].values()) and set(record["shared"]) == set(SITES)
        assert not before["shared"]
    assert model_bytes(run) != model_bytes(plain)
    read = read_run(run)
    said = "\n".join(findings(read, results(read)))
    assert f"east trained on {own['east']['train']} cases of its own and on 9 shared ones ({CONSENT})" in said


def real_sites(tmp_path: Path, public: Path) -> Path:
    """Files of hospitals with images of their own."""
    folder = tmp_path / "hospitals"
    folder.mkdir()
    for number, name in enumerate(("east", "south", "west")):
        spec = SyntheticSpec(generator="chest", task="classification", size=(24, 24), cases=12)
        write_federation(tmp_path / name, spec, {"images": SiteShift(noise=0.01 * number)}, seed=number)
        manifest = f"../{public.relative_to(tmp_path)}"
        about = {"name": name, "data": f"../{name}", "shared": [{"manifest": manifest, "consent": CONSENT}]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(about))
    return folder


def test_a_service_holds_what_a_simulation_of_all_sites_holds(tiny: Any, tmp_path: Path, public: Path) -> None:
    sites = real_sites(tmp_path, public)
    study = load_study(tiny.study, (OVERLAP, "evaluation.unseen=[]"))
    cache = tiny.inputs().cache
    together = assign_cases(RunInputs(study=study, sites=tuple(load_sites(sites)), cache=cache)).cases
    for path in sorted(sites.glob("*.yaml")):
        site = load_site_file(path)
        alone = own_cases(RunInputs(study=study, sites=(site,), cache=cache))
        assert list(alone) == list(together[site.name]) and sum(bool(origin_of(case.key)) for case in alone) == 9


def test_a_home_keeps_the_manifests_where_they_are_and_leaves_withdrawn_patients_out(
    tiny: Any, tmp_path: Path, public: Path
) -> None:
    path = tmp_path / "hospital.yaml"
    path.write_text(
        f"# ours\nname: east\ndata: east\nshared:\n  # by hand\n  - {{manifest: public/datalist.json , "
        f'consent: "{CONSENT}"}}  # a vote\n'
    )
    spec = SyntheticSpec(generator="chest", task="classification", size=(24, 24), cases=12)
    write_federation(tmp_path / "east", spec, {"images": SiteShift()}, seed=4)
    home = SiteHome.create(tmp_path / "home", path)
    assert [(entry.manifest, entry.consent) for entry in home.site.shared] == [(public, CONSENT)]
    assert "# by hand" in home.site_file.read_text() and "# a vote" in home.site_file.read_text()
    study = load_study(tiny.study, (OVERLAP,))
    inputs = RunInputs(study=study, sites=(home.site,), cache=home.cache)
    gone = load_datalist(public).cases[0].patient
    found = withdraw(home, [gone, "nobody"], "Dr. Steward")
    assert found.unknown == ["nobody"]
    kept = home.without_withdrawn(own_cases(inputs))
    assert {case.patient for case in own_cases(inputs)} - {case.patient for case in kept} == {f"east/{gone}"}


def test_the_steward_is_told_how_many_and_by_whose_consent(tiny: Any, public: Path) -> None:
    share(tiny, public)
    study, plain = load_study(tiny.study, (OVERLAP,)), load_study(tiny.study)
    (site,) = [site for site in load_sites(tiny.sites) if site.name == "east"]
    found = summary(study, site, shared=offered(study, site))
    assert f"9 images of {public}" in found.text() and CONSENT in found.text() and found.facts["shared"] == 9
    assert CONSENT not in summary(plain, site, shared=offered(plain, site)).text()
    bare = site.model_copy(update={"shared": ()})
    assert "names none" in summary(study, bare).text()
    assert ["none under `shared`" in fault.what for fault in refusals(study, bare)] == [True]
    assert not list(refusals(plain, bare)) and not list(refusals(study, site))


# what a peer says


def test_the_number_of_shared_cases_travels_and_is_checked() -> None:
    reply = TrainReply("a", 1, None, 3, 2, 1, 1.0, 1.0, shared=7)
    assert decode_reply(b"".join(encode_reply(reply))).shared == 7
    assert b"shared" not in b"".join(encode_reply(replace(reply, shared=0)))
    for wrong in (-1, 2.0, True, "7", 2**60):
        with pytest.raises(RunError, match="fields shared are not"):
            decode_reply(b"".join(encode_reply(replace(reply, shared=wrong))))  # type: ignore[arg-type]


def test_consents_that_a_site_joins_with_are_checked() -> None:
    info = SiteInfo("a", {"train": 3}, {}, "", {CONSENT: 9})
    assert info_of(info_json(info)) == info
    assert info_of({key: value for key, value in info_json(info).items() if key != "shared"}).shared == {}
    for wrong in ({"x": -1}, {"x": 1.5}, {str(n): 1 for n in range(17)}, ["x"], 3):
        with pytest.raises(RunError):
            info_of(info_json(info) | {"shared": wrong})
