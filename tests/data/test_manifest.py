"""Datalists: round trip, MONAI's reading of them, plain Decathlon files, and all faults with their keys."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.data.base import Case, Datalist
from medfl.data.manifest import load_datalist, save_datalist
from medfl.errors import DataError

FUZZ = settings(max_examples=100)


def write(folder: Path, content: Any) -> Path:
    path = folder / "datalist.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def faults(folder: Path, content: Any) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        load_datalist(write(folder, content))
    return {fault.where.rpartition(": ")[2]: fault.what for fault in caught.value.faults}


def made(root: Path, task: str, *cases: Case) -> Datalist:
    return Datalist("set", task, ("a", "b"), cases, root, "MR")


def test_each_task_comes_back_as_it_was(tmp_path: Path) -> None:
    detection = made(
        tmp_path,
        "detection",
        Case("a.png", tmp_path / "a.png", (0, 1), ((1.0, 2.0, 5.5, 6.0), (0.0, 0.0, 1.0, 1.0)), "p1", "north", "train"),
        Case("b.png", tmp_path / "b.png", (), (), "p2", "", "test"),
    )
    segmentation = made(
        tmp_path, "segmentation", Case("a.nii", tmp_path / "a.nii", tmp_path / "m/a.nii", None, "a.nii")
    )
    entry = Case("s.npz#x[3]", tmp_path / "s.npz", 1, None, "s.npz#x[3]", "", "val", "x", 3)
    for datalist in (detection, segmentation, made(tmp_path, "classification", entry), made(tmp_path, "")):
        save_datalist(datalist, tmp_path / "datalist.json")
        assert load_datalist(tmp_path / "datalist.json") == datalist


case_fields = st.fixed_dictionaries(
    {
        "patient": st.text(min_size=1, max_size=5),
        "site": st.text(max_size=5),
        "split": st.sampled_from(["train", "val", "test", ""]),
        "label": st.none() | st.integers(0, 5),
    }
)


@FUZZ
@given(fields=st.lists(case_fields, max_size=6), away=st.sampled_from(["", "lists", "lists/deep"]))
def test_round_trip_from_any_folder(fields: list[dict[str, Any]], away: str, tmp_path: Path) -> None:
    cases = [Case(f"{number}.png", tmp_path / "images" / f"{number}.png", **one) for number, one in enumerate(fields)]
    datalist = Datalist("set", "classification", tuple("abcdef"), tuple(cases), tmp_path, "XR")
    folder = tmp_path / away
    folder.mkdir(parents=True, exist_ok=True)
    save_datalist(datalist, folder / "d.json")
    found = load_datalist(folder / "d.json")
    assert set(found.cases) == set(cases)
    assert found.classes == datalist.classes
    written = json.loads((folder / "d.json").read_text())["training"]
    assert not any(Path(entry["image"]).is_absolute() for entry in written)


def test_monai_reads_what_is_written(tmp_path: Path) -> None:
    monai = pytest.importorskip("monai.data.decathlon_datalist")
    image, mask = tmp_path / "images/a.nii.gz", tmp_path / "masks/a.nii.gz"
    cases = (Case("a", image, mask, None, "p1", "north", "train"), Case("b", image.with_name("b"), mask, split="val"))
    (tmp_path / "lists").mkdir()
    save_datalist(made(tmp_path, "segmentation", *cases), tmp_path / "lists/d.json")
    found = monai.load_decathlon_datalist(tmp_path / "lists/d.json", is_segmentation=True, data_list_key="training")
    assert found == [{"image": str(image), "label": str(mask), "patient": "p1", "site": "north", "key": "a"}]
    found = monai.load_decathlon_datalist(tmp_path / "lists/d.json", data_list_key="validation")
    assert found[0]["label"] == str(mask)


def test_plain_decathlon_and_nnunet_labels(tmp_path: Path) -> None:
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    content = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [entry],
        "test": ["./imagesTs/b.nii.gz"],
    }
    found = load_datalist(write(tmp_path, content))
    assert (found.task, found.classes, found.modality) == (
        "segmentation",
        ("background", "Anterior", "Posterior"),
        "MRI",
    )
    assert [(case.key, case.split) for case in found.cases] == [
        ("imagesTr/a.nii.gz", "train"),
        ("imagesTs/b.nii.gz", "test"),
    ]
    assert found.cases[0].label == tmp_path / "labelsTr/a.nii.gz"
    assert found.cases[1].label is None
    nnunet = content | {"labels": {"background": 0, "Posterior": 2, "Anterior": 1}}
    assert load_datalist(write(tmp_path, nnunet)).classes == found.classes


def test_split_of_an_entry_wins_and_unsplit_is_kept(tmp_path: Path) -> None:
    content = {"training": [{"image": "a", "split": ""}, {"image": "b", "split": "test"}, {"image": "c"}]}
    assert [case.split for case in load_datalist(write(tmp_path, content)).cases] == ["", "test", "train"]


def test_all_faults_are_told_with_their_keys(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        {
            "training": [
                {"image": "a", "label": 1.5},
                {"label": 1},
                {"image": "c", "box": [[1, 2, 3]]},
                {"image": "d", "box": [[1, 2, float("nan"), 3]]},
                {"image": "e", "index": -1},
                {"image": "f", "label": True},
                {"image": "g", "label": 2**40},
            ]
        },
    )
    assert set(found) == {
        "training[0].label", "training[1].image", "training[2].box[0]", "training[3].box[0][2]", "training[4].index",
        "training[5].label", "training[6].label",
    }  # fmt: skip
    found = faults(
        tmp_path,
        {
            "task": "segmentation",
            "classes": ["a", "a"],
            "training": [{"image": "a", "label": 1}, {"image": "b", "split": "holdout"}, {"image": "b"}],
            "test": [{"image": "a"}],
        },
    )
    assert set(found) == {"classes", "training[0].label", "training[1].split", "training[2]", "test[0]"}
    assert "training[0]" in found["test[0]"]


def test_remedies_are_given(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"images": []}', '{"training": 3}', '{"training": [], "task": "x"}', "\ud800".encode(
        "utf-8", "surrogatepass").decode("latin1")):  # fmt: skip
        with pytest.raises(DataError) as caught:
            load_datalist(write(tmp_path, content))
        assert all(fault.remedy for fault in caught.value.faults)
    with pytest.raises(DataError, match="no such datalist"):
        load_datalist(tmp_path / "absent.json")


def test_an_unwritable_place_asks_for_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--out"):
        save_datalist(made(tmp_path, ""), tmp_path / "absent/datalist.json")
    (tmp_path / "kept").mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"read-only.*--out"):  # also for root
        save_datalist(made(tmp_path, ""), tmp_path / "kept/datalist.json")
    assert list((tmp_path / "kept").iterdir()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
names = ["image", "label", "box", "patient", "site", "split", "key", "array", "index"]
entries = st.lists(st.text(max_size=3) | st.dictionaries(st.sampled_from(names), json_values, max_size=5), max_size=3)
tops = ["name", "task", "classes", "labels", "modality"]


@FUZZ
@given(lists=st.fixed_dictionaries({"training": entries}, optional={"test": entries, "validation": entries}),
       top=st.dictionaries(st.sampled_from(tops), json_values, max_size=3))  # fmt: skip
def test_any_json_is_read_or_refused(lists: dict[str, Any], top: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, {**top, **lists})
    try:
        found = load_datalist(path)
    except DataError as error:
        assert error.faults
    else:
        save_datalist(found, tmp_path / "again.json")
        assert set(load_datalist(tmp_path / "again.json").cases) == set(found.cases)


@FUZZ
@given(content=st.binary(max_size=60))
def test_any_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(DataError):
        load_datalist(tmp_path / "d.json")
