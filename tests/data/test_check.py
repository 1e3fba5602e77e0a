"""The integrity check: each planted fault is found, named with its file, and nothing else is."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from PIL import Image as Pillow
from typer.testing import CliRunner

from medfl.cli import data as commands
from medfl.data.base import Case, Datalist
from medfl.data.check import CheckReport, check_case, check_datalist
from medfl.data.importers import find_datalist
from medfl.data.manifest import save_datalist

DATA = Path(os.environ.get("MEDFL_TEST_DATA", Path(__file__).parents[3] / "shared/data"))


def picture(path: Path, seed: int, fill: int | None = None) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30), np.uint8)
    Pillow.fromarray(pixels if fill is None else np.full_like(pixels, fill)).save(path)
    return path


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def classification(folder: Path, count: int = 6) -> Datalist:
    cases = []
    for number in range(count):
        path = picture(folder / f"{number}.png", number)
        split = ("train", "val", "test")[number % 3]
        cases.append(Case(path.name, path, number % 2, None, f"p{number}", "north", split))
    return Datalist("set", "classification", ("well", "sick"), tuple(cases), folder)


def changed(datalist: Datalist, index: int, **fields: object) -> Datalist:
    cases = list(datalist.cases)
    cases[index] = replace(cases[index], **fields)  # type: ignore[arg-type]
    return replace(datalist, cases=tuple(cases))


def only(report: CheckReport, severity: str, what: str, case: str) -> None:
    """The report has exactly one finding, and it is this one."""
    assert [(finding.severity, finding.case) for finding in report.findings] == [(severity, case)], report.findings
    assert what in report.findings[0].what
    assert report.findings[0].remedy


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    report = check_datalist(classification(tmp_path))
    assert report.findings == ()
    assert report.sites["north"].cases == report.sites["north"].read == report.sites["north"].patients == 6


def test_missing_truncated_and_constant_images(tmp_path: Path) -> None:
    datalist = classification(tmp_path)
    (tmp_path / "1.png").unlink()
    only(check_datalist(datalist), "fault", "does not exist", "1.png")
    picture(tmp_path / "1.png", 1)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    only(check_datalist(datalist), "fault", "cannot be read as a picture", "2.png")
    picture(tmp_path / "2.png", 2, fill=7)
    report = check_datalist(datalist)
    only(report, "fault", "every pixel has the value 7", "2.png")
    assert report.findings[0].file == str(tmp_path / "2.png")
    assert (report.sites["north"].read, report.sites["north"].faulty) == (6, 1)


def test_labels_of_images(tmp_path: Path) -> None:
    datalist = classification(tmp_path)
    only(
        check_datalist(changed(datalist, 0, label=2)), "fault", "label 2 is no class: there are 0 well, 1 sick", "0.png"
    )
    only(check_datalist(changed(datalist, 0, label=-1)), "fault", "label -1", "0.png")
    only(check_datalist(changed(datalist, 0, label=None)), "fault", "has no label", "0.png")
    only(check_datalist(changed(datalist, 2, label=None)), "warning", "has no label", "2.png")  # a test image


def test_duplicates_and_patients(tmp_path: Path) -> None:
    datalist = classification(tmp_path)
    picture(tmp_path / "3.png", 1)
    report = check_datalist(changed(datalist, 3, site="south"))
    only(report, "warning", "same pixels as 1.png, which has another split (val, here train) and another site", "3.png")
    picture(tmp_path / "3.png", 3)
    only(
        check_datalist(changed(datalist, 4, patient="p0")),
        "fault",
        "patient p0 is in train and val (0.png, 4.png)",
        "0.png",
    )
    only(
        check_datalist(changed(datalist, 3, patient="p0", site="south")),
        "warning",
        "at the sites north and south",
        "0.png",
    )


def test_too_few_cases_and_unused_classes(tmp_path: Path) -> None:
    datalist = classification(tmp_path, 3)
    only(check_datalist(datalist, minimum_cases=4), "fault", "3 cases without fault, fewer than the 4", "")
    assert check_datalist(datalist, minimum_cases=3).findings == ()
    only(check_datalist(replace(datalist, classes=("well", "sick", "dead"))), "warning", "class 2 dead has no case", "")
    assert check_datalist(replace(datalist, cases=())).faults[0].what.startswith("0 cases")


def segmentation(folder: Path) -> Datalist:
    rng, cases = np.random.default_rng(0), []
    for number in range(4):
        image = volume(folder / f"{number}.nii.gz", rng.random((4, 5, 6)).astype(np.float32), np.diag([1, 1, 2, 1]))
        mask = volume(
            folder / f"m{number}.nii.gz", rng.integers(0, 3, (4, 5, 6)).astype(np.uint8), np.diag([1, 1, 2, 1])
        )
        cases.append(Case(image.name, image, mask, None, f"p{number}", "", "train"))
    return Datalist("set", "segmentation", ("background", "left", "right"), tuple(cases), folder)


def test_masks(tmp_path: Path) -> None:
    datalist = segmentation(tmp_path)
    assert check_datalist(datalist).findings == ()
    good = nib.load(tmp_path / "m1.nii.gz").get_fdata().astype(np.uint8)
    grid = np.diag([1, 1, 2, 1])
    moved = grid + np.array([[0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    for array, affine, severity, what in (
        (good + 2, grid, "fault", "mask has labels 3, 4, which are no classes"),
        (good[:3], grid, "fault", "mask has shape 3 x 5 x 6, the image 4 x 5 x 6"),
        (good, moved, "fault", "up to 3 voxels apart"),
        (good * 0, grid, "warning", "mask is empty"),
        (good / 2, grid, "fault", "not whole numbers"),
    ):
        volume(tmp_path / "m1.nii.gz", array, affine)
        report = check_datalist(datalist)
        only(report, severity, what, "1.nii.gz")
        assert report.findings[0].file == str(tmp_path / "m1.nii.gz")
    (tmp_path / "m1.nii.gz").unlink()
    only(check_datalist(datalist), "fault", "mask: does not exist", "1.nii.gz")
    only(check_datalist(changed(datalist, 1, label=None)), "fault", "has no mask", "1.nii.gz")


def test_values_and_spacing_of_volumes(tmp_path: Path) -> None:
    datalist = segmentation(tmp_path)
    array = np.random.default_rng(9).random((4, 5, 6)).astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    volume(tmp_path / "2.nii.gz", array, np.diag([1, 1, 2, 1]))
    only(check_datalist(datalist), "fault", "2 of 120 values are NaN or infinite", "2.nii.gz")
    array[0, 0, :2] = 0
    for name in ("2.nii.gz", "m2.nii.gz"):
        volume(tmp_path / name, array if name[0] == "2" else (array > 0.5).astype(np.uint8), np.diag([1, 1, 9, 1]))
    only(
        check_datalist(datalist),
        "warning",
        "spacing (1.0, 1.0, 9.0) mm is far from the median (1.0, 1.0, 2.0)",
        "2.nii.gz",
    )


def test_boxes_are_named_by_their_index(tmp_path: Path) -> None:
    good = (2.0, 3.0, 9.0, 9.5)
    case = Case("a.png", picture(tmp_path / "a.png", 0), (0, 1), (good, good), "p", "", "train")
    datalist = Datalist("set", "detection", ("a", "b"), (case,), tmp_path)
    assert check_datalist(datalist).findings == ()
    for box, severity, what in (
        ((5.0, 5.0, 5.0, 9.0), "fault", "box 1 (5.0, 5.0, 5.0, 9.0) has no area"),
        ((9.0, 5.0, 5.0, 9.0), "fault", "is inverted"),
        ((40.0, 5.0, 50.0, 9.0), "fault", "lies outside of the image 20 x 30"),
        ((5.0, 5.0, 15.0, 33.0), "fault", "passes the border of the image 20 x 30 by 3 pixels"),
        ((5.0, 5.0, 15.0, 31.0), "warning", "by 1 pixels"),
        ((-1e9, 5.0, 15.0, 30.0), "fault", "passes the border"),
        ((5.0, 5.0, 5.0, 15.0, 20.0, 20.0), "fault", "box 1 has 6 numbers for an image of 2 axes"),
    ):
        report = check_datalist(changed(datalist, 0, boxes=(good, box)), minimum_cases=0)
        only(report, severity, what, "a.png")
    report = check_datalist(changed(datalist, 0, boxes=(good,)), minimum_cases=0)
    only(report, "fault", "has 1 boxes and 2 labels", "a.png")
    assert "box 1: label 7 is no class" in check_datalist(changed(datalist, 0, label=(0, 7))).faults[0].what
    assert check_datalist(changed(datalist, 0, boxes=None)).faults[0].what == "has no boxes"
    assert check_datalist(changed(datalist, 0, boxes=(), label=())).faults == ()


def test_every_fault_is_named_not_only_the_first(tmp_path: Path) -> None:
    datalist = classification(tmp_path)
    for number in (0, 2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    report = check_datalist(changed(datalist, 1, label=9))
    assert [finding.case for finding in report.faults] == ["0.png", "1.png", "2.png", "4.png"]
    assert json.loads(json.dumps(report.to_json()))["sites"]["north"]["faulty"] == 4
    assert check_case(datalist.cases[0], datalist)[0] is None


# The commands


def run(*words: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command("import")(commands.import_)
    app.command("check")(commands.check)
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, found.stdout


def test_check_command_exits_with_2_on_faults(tmp_path: Path) -> None:
    datalist = classification(tmp_path)
    save_datalist(datalist, tmp_path / "datalist.json")
    code, text = run("check", tmp_path)
    assert code == 0
    assert "6 of 6 images read, 0 faults, 0 warnings: fit for use" in text
    (tmp_path / "1.png").unlink()
    code, text = run("check", tmp_path)
    assert code == 2
    assert "1.png at north: does not exist" in text
    code, text = run("check", tmp_path, "--json")
    assert code == 2
    assert json.loads(text)["findings"][0]["case"] == "1.png"


def test_import_command_writes_a_datalist_that_check_reads(tmp_path: Path) -> None:
    for number, name in enumerate(("well", "sick", "sick")):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "set" / name / f"{number}.png", number)
    (tmp_path / "lists").mkdir()
    code, text = run("import", tmp_path / "set", "--out", tmp_path / "lists", "--json")
    assert (code, json.loads(text)["classes"]) == (0, ["sick", "well"])
    assert run("check", tmp_path / "lists")[0] == 0
    code, text = run("import", tmp_path / "set", "--classes", "well,sick")
    assert "of well, sick, 3 cases of 3 patients" in text
    assert find_datalist(tmp_path / "set").classes == ("well", "sick")


@pytest.mark.skipif(not (DATA / "hippocampus").is_dir(), reason="real images are not here")
def test_real_data_is_as_its_readme_says() -> None:
    assert check_datalist(find_datalist(DATA / "hippocampus")).findings == ()
    flat = check_datalist(find_datalist(DATA / "blood/voc")).faults
    assert len(flat) == 2
    assert all("has no area" in finding.what for finding in flat)
