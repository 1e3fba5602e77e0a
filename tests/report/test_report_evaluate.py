import json
import shutil
from pathlib import Path

import pytest
from PIL import Image as Pillow

from medfl.coordinator.runner import inputs_of
from medfl.errors import InputError
from medfl.report.evaluate import evaluate_model
from medfl.report.page import write_report
from medfl.report.pictures import choose, for_picture, sample_predictions
from medfl.report.saved import load_saved
from medfl.tasks.base import Prediction


def summary_of(run: Path):
    return json.loads((run / "summary.json").read_text())


def test_evaluation_repeats_the_summary(trained):
    wanted = summary_of(trained)["metrics"]
    for model in (trained, trained / "model"):
        assert evaluate_model(model)["metrics"] == wanted


def test_the_same_images_given_again_have_the_same_splits(trained):
    found = evaluate_model(trained, data=trained.parent / "data")
    everything = evaluate_model(trained, data=trained.parent / "data", split="all")
    parts = [evaluate_model(trained, data=trained.parent / "data", split=s)["cases"] for s in ("train", "val", "test")]
    assert everything["cases"] == {name: sum(part.get(name, 0) for part in parts) for name in everything["cases"]}
    assert sum(everything["cases"].values()) == 72
    assert found["metrics"]["sites"]["north"] == summary_of(trained)["metrics"]["sites"]["north"]


def test_training_images_are_not_augmented(trained):
    found = evaluate_model(trained, split="train", site="north")
    assert found["metrics"]["global"]["accuracy"]["n"] == found["cases"]["north"]
    assert found["cases"]["north"] == summary_of(trained)["data"]["north"]["cases"]["train"]


def test_one_site(trained):
    found = evaluate_model(trained, site="west")
    assert list(found["metrics"]["unseen"]) == ["west"] and found["metrics"]["sites"] == {}
    assert found["metrics"]["global"] == summary_of(trained)["metrics"]["unseen"]["west"]
    with pytest.raises(InputError, match=r"there is no site 'east' \(sites with images: north, south, west\)"):
        evaluate_model(trained, site="east")


def test_images_of_no_site(trained, tmp_path):
    for number, name in enumerate(["normal", "pneumonia"] * 3):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Pillow.new("L", (40, 40), number * 9).putpixel((1, 1), 1)
        Pillow.linear_gradient("L").resize((40 + number, 40)).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "normal" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    found = evaluate_model(trained, data=tmp_path / "data", split="all")
    assert list(found["cases"].values()) == [6]
    ((_, reasons),) = found["skipped"].items()
    assert any("broken.png" in key and "picture" in reason for key, reason in reasons.items())


def test_faults_name_the_remedy(trained, tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        evaluate_model(tmp_path)
    with pytest.raises(InputError, match="there is no split 'tset'"):
        evaluate_model(trained, split="tset")
    with pytest.raises(InputError, match=r"--data .* does not exist"):
        evaluate_model(trained, data=tmp_path / "nothing")
    shutil.copytree(trained / "model", tmp_path / "model")
    with pytest.raises(InputError, match="give --data, or the run folder"):
        evaluate_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        load_saved(tmp_path / "model")


def test_a_model_of_another_network_is_refused(trained, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    path = tmp_path / "model" / "study.yaml"
    path.write_text(path.read_text().replace("width: 4", "width: 8"))
    with pytest.raises(InputError, match="do not fit the network"):
        load_saved(tmp_path / "model")


def test_pictures_come_from_all_sites_and_stay_the_same(trained):
    pictures = sample_predictions(inputs_of(trained), trained, 5)
    assert [picture.caption.split(":")[0] for picture in pictures] == ["north", "south", "west", "north", "south"]
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    assert len({picture.caption for picture in pictures}) == 5
    again = sample_predictions(inputs_of(trained), trained, 5)
    assert [picture.png for picture in again] == [picture.png for picture in pictures]
    assert all("normal 0." in picture.alt and "pneumonia 0." in picture.alt for picture in pictures)


class Labelled:
    def __init__(self, *labels):
        self._labels = labels

    def labels(self):
        import numpy as np

        return np.array(self._labels)


def test_foreground_first_and_classes_in_turn():
    samples = {"a": Labelled(0, 0, 2, 1), "b": Labelled(0, 0)}
    shown = [(one.site, one.index) for one in choose(samples, "detection", 5)]
    assert shown == [("a", 2), ("b", 0), ("a", 3), ("b", 1), ("a", 0)]
    samples = {"a": Labelled(0, 0, 0, 1), "b": Labelled(0, 1)}
    shown = [(one.site, one.index) for one in choose(samples, "classification", 4)]
    assert shown == [("a", 3), ("b", 0), ("a", 0), ("b", 1)]


def test_boxes_of_low_scores_are_not_drawn_but_counted():
    data = {"boxes": [[0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 5, 5]], "labels": ["a", "b", "a"], "scores": [0.9, 0.1, 0.3]}
    drawn, left_out = for_picture(Prediction(data))
    assert drawn.data == {"boxes": [[0, 0, 2, 2], [4, 4, 5, 5]], "labels": ["a", "a"], "scores": [0.9, 0.3]}
    assert left_out == 1 and len(data["boxes"]) == 3
    assert for_picture(Prediction({"voxels": {"x": 1}}))[1] == 0


def test_report_shows_pictures_and_does_without_them(trained, tmp_path):
    page = write_report(trained).read_text()
    assert page.count('<img src="data:image/png;base64,') == 6 and "images of the sites&#39; patients" in page.replace(
        "'", "&#39;"
    )
    assert "<img" not in write_report(trained, pictures=False).read_text()
    data = trained.parent / "data"
    data.rename(tmp_path / "moved")
    try:
        page = write_report(trained).read_text()
    finally:
        (tmp_path / "moved").rename(data)
    assert "<img" not in page and "There are no sample predictions, because" in page
