"""Which site holds which images, and what is refused before anything is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medfl.errors import InputError
from medfl.study.sources import assign_cases, load_site_data


def images(root: Path, sites: dict[str, list[str]], classes: tuple[str, ...] = ("normal", "pneumonia")) -> Path:
    """A folder with a datalist: for each site one image a named split."""
    items = []
    for site, splits in sites.items():
        for number, split in enumerate(splits):
            path = root / site / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (24, 24), number).save(path)
            items.append({"image": f"{site}/{number}.png", "label": number % 2, "site": site, "split": split})
    about = {"name": "grey", "task": "classification", "classes": classes, "training": items}
    (root / "datalist.json").write_text(json.dumps(about))
    return root


def given(tiny: Any, data: Path, *overrides: str, **changes: Any) -> Any:
    inputs = tiny.inputs("evaluation.unseen=[]", *overrides)
    return inputs.model_copy(update={"data": data, "sites": (), **changes})


ALL = ["train", "train", "val", "test"]


def test_the_same_classes_in_another_order_are_refused(tiny: Any, tmp_path: Path) -> None:
    data = images(tmp_path / "data", {"a": ALL}, ("pneumonia", "normal"))
    with pytest.raises(InputError, match=r"numbers pneumonia, normal differently.*--classes 'normal,pneumonia'"):
        assign_cases(given(tiny, data))
    assert set(assign_cases(given(tiny, data, "task.classes=[pneumonia, normal]")).cases) == {"a"}


def test_sites_with_data_of_their_own_must_agree_on_classes(tiny: Any, tmp_path: Path) -> None:
    east = images(tmp_path / "e", {"x": ALL})
    west = images(tmp_path / "w", {"x": ALL}, ("pneumonia", "normal"))
    inputs = tiny.inputs("evaluation.unseen=[]")
    sites = {site.name: site for site in inputs.sites}
    pair = [sites[name].model_copy(update={"data": data}) for name, data in (("east", east), ("west", west))]
    with pytest.raises(InputError, match=r"site west.*pneumonia, normal, site east.*normal, pneumonia"):
        assign_cases(inputs.model_copy(update={"sites": tuple(pair)}))


def test_equal_names_of_files_and_patients_at_two_hospitals_are_different_people(tiny: Any, tmp_path: Path) -> None:
    inputs = tiny.inputs("evaluation.unseen=[]")
    folders = {name: images(tmp_path / name, {"x": ALL}) for name in ("east", "west")}
    pair = [site.model_copy(update={"data": folders[site.name]}) for site in inputs.sites if site.name in folders]
    cases = assign_cases(inputs.model_copy(update={"sites": tuple(pair)})).cases
    assert {site: len(own) for site, own in cases.items()} == {"east": 4, "west": 4}
    assert len({case.patient for own in cases.values() for case in own}) == 8


@pytest.mark.parametrize("baseline", [{}, {"pooled": True}, {"only": "west"}])
def test_a_policy_also_keeps_images_from_evaluation(tiny: Any, baseline: dict[str, Any]) -> None:
    (tiny.sites / "east.yaml").write_text("{name: east, policy: {tasks: [detection]}}")
    inputs = tiny.inputs().model_copy(update=baseline)
    cases = assign_cases(inputs).cases
    assert load_site_data(inputs, "west", cases["west"]).splits
    with pytest.raises(InputError, match="site east: its policy does not allow classification"):
        load_site_data(inputs, "east", cases["east"])


def test_site_files_without_images_are_named(tiny: Any, tmp_path: Path) -> None:
    data = images(tmp_path / "data", {"east": ALL, "south": ALL, "west": ALL})
    sites = tiny.inputs().sites
    with pytest.raises(InputError, match=r"--sites: names 'north', which has no images"):
        assign_cases(given(tiny, data, sites=sites))
    there = tuple(site for site in sites if site.name != "north")
    assert set(assign_cases(given(tiny, data, sites=there)).cases) == {"east", "south", "west"}


def test_roles_that_a_site_cannot_have_come_together(tiny: Any, tmp_path: Path) -> None:
    data = images(tmp_path / "data", {"a": ALL, "b": ["train", "train"], "c": ALL})
    study = tiny.inputs("evaluation.unseen=[b, c]", "evaluation.public=b").study
    with pytest.raises(InputError) as caught:
        assign_cases(given(tiny, data, study=study, only="c", pooled=True))
    said = str(caught.value)
    assert "'b', which has training images only" in said
    assert "'b', which has no validation images" in said
    assert "'c', which evaluation.unseen keeps from training" in said
    assert "two different baselines" in said


@pytest.mark.parametrize("name", ["pooled", "north/ward"])
def test_names_with_a_meaning_of_their_own_are_refused(tiny: Any, tmp_path: Path, name: str) -> None:
    data = images(tmp_path / "data", {name: ALL, "other": ALL})
    with pytest.raises(InputError, match=name):
        assign_cases(given(tiny, data, pooled=True))
