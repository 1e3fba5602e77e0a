"""Importers: layouts as hospitals have them, told apart and read without losing patient, site or split."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from medfl.data.importers import IMPORTERS, ImportOptions, find_datalist, import_dataset
from medfl.data.manifest import save_datalist
from medfl.errors import DataError

DATA = Path(os.environ.get("MEDFL_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
FUZZ = settings(max_examples=60)


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / folder).exists(), reason="real images are not here")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(path)
    return path


def volume(path: Path, labels: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(24).reshape(2, 3, 4) % (labels + 1) if labels else np.arange(24).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), path)
    return path


def slices(folder: Path, **elements: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    for height in range(3):
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CTImageStorage
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        made.SeriesInstanceUID, made.Modality, made.PatientID, made.PatientName = "1.2.3", "CT", "P1", "Secret^Name"
        made.PatientBirthDate, made.InstitutionName = "19500101", "North Clinic"
        made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 2, 2, 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, height], [1, 0, 0, 0, 1, 0]
        made.PixelSpacing, made.PixelData = [1, 1], np.arange(4, dtype=np.int16).tobytes()
        for name, value in elements.items():
            setattr(made, name, value)
        made.save_as(folder / f"{height}.dcm", enforce_file_format=True)
    return folder


# MedMNIST


def medmnist(path: Path, **arrays: np.ndarray) -> Path:
    images = {f"{split}_images": np.zeros((count, 4, 4), np.uint8) for split, count in (("train", 3), ("test", 2))}
    labels = {"train_labels": np.array([[0], [2], [1]], np.uint8), "test_labels": np.array([[1], [0]], np.uint8)}
    np.savez_compressed(path, **{**images, **labels, **arrays})
    return path


def test_medmnist_sites_and_splits(tmp_path: Path) -> None:
    found = import_dataset(medmnist(tmp_path / "x.npz", train_sites=np.array([0, 2, 1])))
    assert [case.label for case in found.cases] == [0, 2, 1, 1, 0]
    assert [case.site for case in found.cases] == ["common", "site2", "site1", "", ""]
    assert [case.split for case in found.cases] == ["train"] * 3 + ["test"] * 2
    assert (found.cases[4].array, found.cases[4].index, found.classes) == ("test_images", 1, ("0", "1", "2"))
    assert import_dataset(tmp_path).cases == found.cases
    named = import_dataset(tmp_path, options=ImportOptions(("a", "b", "c")))
    assert named.classes == ("a", "b", "c")


def test_medmnist_faults_come_together(tmp_path: Path) -> None:
    wrong = {"train_labels": np.zeros((3, 14), np.uint8), "test_labels": np.zeros(5, np.uint8)}
    with pytest.raises(DataError) as caught:
        import_dataset(medmnist(tmp_path / "x.npz", **wrong))
    assert [fault.where.rpartition(": ")[2] for fault in caught.value.faults] == ["train_labels", "test_labels"]


# Folders


def test_folders_with_and_without_splits(tmp_path: Path) -> None:
    for place in ("flat/sick/a.png", "flat/well/b.jpg", "deep/train/sick/a.png", "deep/valid/well/b.png",
                  "deep/test/sick/c.png"):  # fmt: skip
        picture(tmp_path / place)
    (tmp_path / "flat/sick/._a.png").write_text("macOS")
    flat = import_dataset(tmp_path / "flat")
    assert [(case.key, case.label, case.patient, case.split) for case in flat.cases] == [
        ("sick/a.png", 0, "sick/a.png", ""),
        ("well/b.jpg", 1, "well/b.jpg", ""),
    ]
    deep = import_dataset(tmp_path / "deep")
    assert (deep.task, deep.classes) == ("classification", ("sick", "well"))
    assert {(case.split, case.label) for case in deep.cases} == {("train", 0), ("val", 1), ("test", 0)}


def test_image_and_mask_folders_are_not_classes(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match="no data set that medfl knows"):
        import_dataset(tmp_path)


# COCO


def coco(folder: Path, name: str = "annotations.json", **changes: Any) -> Path:
    picture(folder / "images/a.png")
    content = {
        "images": [
            {"id": 7, "file_name": "images/a.png", "patient": "p", "site": "north", "split": "valid"},
            {"id": 8, "file_name": "b.png"},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 4, "bbox": [5, 1, 0, 2]},
            {"image_id": 7, "category_id": 4, "bbox": [0, 0, 8, 6], "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "nodule"}, {"id": 4, "name": "cyst"}],
    }
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({**content, **changes}))
    return folder


def test_coco_boxes_are_row_column_and_crowds_noted(tmp_path: Path) -> None:
    options = ImportOptions()
    found = import_dataset(coco(tmp_path), options=options)
    first, second = found.cases
    assert found.classes == ("cyst", "nodule")
    assert first.boxes == ((2.0, 1.0, 6.0, 4.0), (1.0, 5.0, 3.0, 5.0))  # the box without width is kept for the check
    assert first.label == (1, 0)
    assert (first.patient, first.site, first.split) == ("p", "north", "val")
    assert (second.boxes, second.label, second.patient) == ((), (), "b.png")
    assert options.notes == ["annotations.json: 1 annotations marked iscrowd left out, they outline groups"]


def test_coco_split_from_file_name_and_given_classes(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
    coco(tmp_path, "annotations/instances_val2017.json", images=images)
    found = import_dataset(tmp_path, options=ImportOptions(("nodule", "cyst", "mass")))
    assert [case.split for case in found.cases] == ["val", "val"]
    assert found.cases[0].image == tmp_path / "images/a.png"
    assert found.cases[0].label == (0, 1)
    assert found.classes == ("nodule", "cyst", "mass")


def test_coco_faults_come_together(tmp_path: Path) -> None:
    boxes = [{"image_id": 7, "category_id": 9, "bbox": [1, 2]}, {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
             {"image_id": 99, "category_id": 9, "bbox": [1, 2, 3, 4]}]  # fmt: skip
    with pytest.raises(DataError) as caught:
        import_dataset(coco(tmp_path, annotations=boxes))
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert all(word in text for word in ("annotations[0]", "annotations[1]", "image 99"))


# Pascal VOC


def voc(path: Path, filename: str, *boxes: tuple[str, int, int, int, int]) -> Path:
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{u}</xmax><ymax>{v}</ymax></bndbox>"
        "</object>"
        for name, x, y, u, v in boxes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{filename}</filename>{things}</annotation>")
    return path


def test_voc_finds_images_and_listed_splits(tmp_path: Path) -> None:
    voc(tmp_path / "Annotations/a.xml", "a", ("cell", 1, 2, 5, 4), ("cell", 3, 3, 3, 3))
    voc(tmp_path / "Annotations/b.xml", "wrong.gif")
    picture(tmp_path / "JPEGImages/a.jpg")
    picture(tmp_path / "JPEGImages/b.png")
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "test.txt").write_text("b -1\n")
    found = import_dataset(tmp_path)
    assert [(case.key, case.split) for case in found.cases] == [
        ("JPEGImages/a.jpg", "train"),
        ("JPEGImages/b.png", "test"),
    ]
    assert found.cases[0].boxes == ((2.0, 1.0, 4.0, 5.0), (3.0, 3.0, 3.0, 3.0))
    assert import_dataset(tmp_path / "Annotations").cases[1].image == tmp_path / "JPEGImages/b.png"


def test_voc_with_entities_or_without_corners_is_refused(tmp_path: Path) -> None:
    voc(tmp_path / "a.xml", "a.png", ("", 1, 2, 3, 4))
    (tmp_path / "b.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotation>&a;</annotation>')
    (tmp_path / "c.xml").write_text("<annotation>")
    with pytest.raises(DataError) as caught:
        import_dataset(tmp_path)
    assert len(caught.value.faults) == 3


# Tables and Decathlon


def test_table_with_masks_or_labels(tmp_path: Path) -> None:
    volume(tmp_path / "seg/images/a.nii.gz")
    volume(tmp_path / "seg/masks/a.nii.gz", labels=2)
    (tmp_path / "seg/volumes.csv").write_text(
        "\ufeffFile;mask;Patient;SITE;split\nimages/a.nii.gz;masks/a.nii.gz;p1;north;train\n"
        "images/b.nii.gz;masks/b.nii.gz;p2;south;validation\n"
    )
    found = import_dataset(tmp_path / "seg")
    assert (found.task, found.classes) == ("segmentation", ("background", "label 1", "label 2"))
    assert [(case.patient, case.site, case.split) for case in found.cases] == [
        ("p1", "north", "train"),
        ("p2", "south", "val"),
    ]
    assert found.cases[0].label == tmp_path / "seg/masks/a.nii.gz"
    picture(tmp_path / "cls/a.png")
    (tmp_path / "cls/any.csv").write_text("image,label\na.png,sick\nb.png,well\nc.png,\n")
    found = import_dataset(tmp_path / "cls")
    assert (found.classes, [case.label for case in found.cases]) == (("sick", "well"), [0, 1, None])


def test_table_faults_name_their_lines(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("file,split\na.png,train\na.png,train\nb.png,holdout\n")
    with pytest.raises(DataError, match=r"line 4: there is no split 'holdout'"):
        import_dataset(tmp_path)
    (tmp_path / "t.csv").write_text("file,split\na.png,train\na.png,train\n")
    with pytest.raises(DataError, match=r"a\.png is listed more than once"):
        import_dataset(tmp_path)
    (tmp_path / "t.csv").write_text("file,split\na.png,train\n,test\n")
    with pytest.raises(DataError, match="line 3: names no image"):
        import_dataset(tmp_path)


def test_decathlon_and_nnunet(tmp_path: Path) -> None:
    volume(tmp_path / "m/imagesTr/a.nii.gz")
    volume(tmp_path / "m/labelsTr/a.nii.gz", labels=1)
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    (tmp_path / "m/dataset.json").write_text(json.dumps({"name": "Heart", "training": [entry]}))
    found = import_dataset(tmp_path / "m")
    assert (found.name, found.classes, found.cases[0].key) == ("Heart", ("background", "label 1"), "imagesTr/a.nii.gz")
    volume(tmp_path / "n/imagesTr/h_001_0000.nii.gz")
    volume(tmp_path / "n/imagesTs/h_002_0000.nii.gz")
    content = {"labels": {"background": 0, "left": 1}, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    (tmp_path / "n/dataset.json").write_text(json.dumps(content))
    found = import_dataset(tmp_path / "n")
    assert (found.classes, found.modality) == (("background", "left"), "MRI")
    assert [(case.patient, case.split) for case in found.cases] == [("h_001", ""), ("h_002", "test")]
    assert [case.label for case in found.cases] == [tmp_path / "n/labelsTr/h_001.nii.gz", None]


# DICOM


def test_dicom_case_a_series_and_nothing_else_of_the_patient(tmp_path: Path) -> None:
    slices(tmp_path / "a")
    slices(tmp_path / "b", SeriesInstanceUID="1.2.4", PatientID="P2")
    found = import_dataset(tmp_path)
    assert [(case.key, case.patient, case.site) for case in found.cases] == [
        ("a", "P1", "North Clinic"),
        ("b", "P2", "North Clinic"),
    ]
    save_datalist(found, tmp_path / "datalist.json")
    text = (tmp_path / "datalist.json").read_text()
    assert "P1" in text
    assert not any(word in text for word in ("Secret", "1950", "1.2.3"))


def test_dicom_series_in_one_folder_are_named(tmp_path: Path) -> None:
    from medfl.data.readers import read_image

    slices(tmp_path / "x")
    for path in slices(tmp_path / "y", SeriesInstanceUID="1.2.4", PatientID="P2").iterdir():
        path.rename(tmp_path / "x" / f"y{path.name}")
    found = import_dataset(tmp_path / "x")
    assert len({case.key for case in found.cases}) == 2
    assert {read_image(case).array.shape for case in found.cases} == {(1, 2, 2, 3)}


def test_dicom_takes_site_split_and_label_from_a_table(tmp_path: Path) -> None:
    slices(tmp_path / "a")
    slices(tmp_path / "b", SeriesInstanceUID="1.2.4")
    rows = [f"{name}/{number}.dcm,{site},{split},{label}" for name, site, split, label in
            (("a", "n", "train", "sick"), ("b", "s", "test", "well")) for number in range(3)]  # fmt: skip
    (tmp_path / "files.csv").write_text("\n".join(["file,site,split,label", *rows]))
    found = import_dataset(tmp_path)
    assert [(case.site, case.split, case.label) for case in found.cases] == [("n", "train", 0), ("s", "test", 1)]
    assert found.task == "classification"


# All


def test_what_was_looked_for_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError) as caught:
            find_datalist(path)
        assert str(path) in str(caught.value)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError) as caught:
        find_datalist(tmp_path)
    assert all(kind in str(caught.value) for kind in (*IMPORTERS.targets, "datalist.json"))
    with pytest.raises(DataError, match="use one of"):
        import_dataset(tmp_path, "dicomm")
    for kind in IMPORTERS.targets:
        with pytest.raises(DataError):
            import_dataset(tmp_path, kind)


def test_a_datalist_in_the_folder_wins(tmp_path: Path) -> None:
    found = import_dataset(coco(tmp_path))
    (tmp_path / "lists").mkdir()
    for place in (tmp_path, tmp_path / "lists"):
        save_datalist(found, place / "datalist.json")
        assert set(find_datalist(place).cases) == set(found.cases)
    (tmp_path / "datalist.json").write_text('{"training": ')
    with pytest.raises(DataError, match="not JSON"):
        find_datalist(tmp_path)


@FUZZ
@given(name=st.sampled_from(["a.csv", "a.xml", "a.json", "dataset.json", "a.npz", "a.dcm"]), data=st.data())
def test_any_file_imports_or_is_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    texts = ["image,label,split\n", "<annotation>", "</annotation>", '{"images":', '"categories":[', "]}", "{}", '"training":', ",", "\n", "a.png", "0"]  # fmt: skip # noqa: E501
    content = "".join(data.draw(st.lists(st.sampled_from(texts) | st.text(max_size=3), max_size=8)))
    folder = tmp_path / name.replace(".", "")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    for kind in (None, *IMPORTERS.targets):
        try:
            import_dataset(folder, kind)
        except DataError as error:
            assert error.faults


# Real data


@needs("blood")
def test_blood_by_coco_and_by_voc_is_the_same() -> None:
    coco_cases = {case.image: case for case in import_dataset(DATA / "blood").cases}
    found = import_dataset(DATA / "blood/voc")
    assert len(coco_cases) == len(found.cases) == 364
    differing = []
    for case in found.cases:
        assert case.boxes is not None
        if set(case.boxes) != set(coco_cases[case.image].boxes or ()):
            differing.append(case)
    flat = [box for case in found.cases for box in case.boxes or () if box[0] == box[2] or box[1] == box[3]]
    assert len(flat) == 2
    assert sum(len(case.boxes or ()) for case in coco_cases.values()) == 4886
    assert len(differing) <= 3  # the two images with a box without area, which the COCO file left out


@needs("pneumonia_mnist")
def test_pneumonia_sites() -> None:
    found = import_dataset(DATA / "pneumonia_mnist")
    train = Counter((case.site, case.label) for case in found.cases if case.split == "train")
    assert [(train[f"site{k}", 0], train[f"site{k}", 1]) for k in range(1, 5)] == [
        (949, 482), (73, 1048), (83, 140), (109, 1824),
    ]  # fmt: skip


@needs("hippocampus")
def test_hippocampus_and_dicom_series() -> None:
    found = import_dataset(DATA / "hippocampus")
    assert (found.task, len(found.classes), len(found.cases)) == ("segmentation", 3, 48)
    assert Counter(case.site for case in found.cases) == {f"site{k}": 12 for k in range(1, 5)}
    series = import_dataset(DATA / "dicom_series")
    assert [case.patient for case in series.cases] == ["PGBM-003"] * 2
    assert {case.site for case in series.cases} == {"SIEMENS", "derived"}
