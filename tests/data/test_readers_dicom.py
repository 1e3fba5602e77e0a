"""DICOM: slice order, geometry, values, series apart, and a DataError for anything without usable pixels."""

import csv
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from medfl.data.readers import read_mask, read_path
from medfl.data.readers.dicom_series import list_series
from medfl.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what pydicom says of broken files

DATA = Path(os.environ.get("MEDFL_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
FUZZ = settings(max_examples=80)
needs = pytest.mark.skipif


def slice_of(pixels: np.ndarray, **elements: Any) -> Dataset:
    """A minimal CT slice; elements override or, with None, remove what is set here."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid()
    made.SeriesInstanceUID, made.Modality, made.PatientID = "1.2.3", "CT", "P1"
    made.Rows, made.Columns = pixels.shape[-2:] if elements.get("SamplesPerPixel", 1) == 1 else pixels.shape[-3:-1]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelSpacing, made.SliceThickness = [0.5, 0.25], 2.0
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(path: Path, dataset: Dataset) -> Path:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, heights: list[float], **elements: Any) -> Path:
    """One slice a height in shuffled file order; the value of a slice is ten times its height."""
    for number, place in enumerate(np.random.default_rng(0).permutation(len(heights))):
        pixels = np.full((3, 4), round(heights[place] * 10), np.int16)
        pixels[0, 1] += 1
        save(folder / f"{number:03}.dcm", slice_of(pixels, ImagePositionPatient=[5, 6, heights[place]], **elements))
    return folder


def test_slices_are_ordered_by_position_and_placed_in_ras(tmp_path: Path) -> None:
    heights = [-4.0, -2.0, 0.0, 2.0, 4.0]
    image = read_path(series(tmp_path, heights, RescaleSlope=2, RescaleIntercept=-100))
    assert image.array.shape == (1, 4, 3, 5)
    assert image.spacing == (0.25, 0.5, 2.0)
    assert image.array[0, 0, 0].tolist() == [value * 20 - 100 for value in heights]
    assert image.affine is not None
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    # DICOM column 1, row 0 of a slice lies at x = 5 + 0.25 (LPS): there and only there is the marked pixel.
    where = np.argwhere(image.array[0, :, :, 0] != image.array[0, 0, 0, 0])
    assert where.tolist() == [[2, 2]]
    np.testing.assert_allclose(image.affine @ [*where[0], 0, 1], [-5.25, -6.0, -4.0, 1])
    assert image.notes == ()


def test_sagittal_and_oblique_slices(tmp_path: Path) -> None:
    for number, left in enumerate([3.0, 1.0, 2.0]):
        made = slice_of(np.full((3, 4), int(left), np.int16), ImagePositionPatient=[left, 0, 0])
        made.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        save(tmp_path / f"{number}.dcm", made)
    image = read_path(tmp_path)
    assert image.array.shape == (1, 3, 4, 3)
    assert image.array[0, :, 0, 0].tolist() == [3, 2, 1]  # axis 0 runs to the right, DICOM's x to the left
    assert image.spacing == (1.0, 0.25, 0.5)


def test_missing_and_uneven_slices_are_noted_with_their_place(tmp_path: Path) -> None:
    missing = read_path(series(tmp_path / "a", [0, 2, 4, 8, 10, 12, 18]))
    assert missing.notes == (
        "1 slice missing after slice 3 of 7, between 4.00 and 8.00 mm",
        "2 slices missing after slice 6 of 7, between 12.00 and 18.00 mm",
    )
    assert missing.spacing[2] == 2.0
    uneven = read_path(series(tmp_path / "b", [0, 2, 4, 6.7, 8.7]))
    assert uneven.notes == (
        "uneven slice spacing: 2.70 mm instead of 2.00 mm after slice 3 of 5, between 4.00 and 6.70 mm",
    )
    assert read_path(series(tmp_path / "c", [0, 2.001, 4, 6.002])).notes == ()


def test_two_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 slices at a position that another slice has \(at 2\.00 mm\)"):
        read_path(series(tmp_path, [0, 2, 2, 4]))


def test_copies_are_left_out_and_echoes_told_apart(tmp_path: Path) -> None:
    series(tmp_path / "a", [0, 2, 4])
    (tmp_path / "a/copy of 000.dcm").write_bytes((tmp_path / "a/000.dcm").read_bytes())
    image = read_path(tmp_path / "a")
    assert image.array.shape[-1] == 3
    assert image.notes == ("1 copies of the same instances ignored",)
    series(tmp_path / "b/x", [0, 2, 4], EchoTime=10)
    series(tmp_path / "b/y", [0, 2, 4], EchoTime=90)
    for path in (tmp_path / "b/y").iterdir():
        path.rename(tmp_path / "b/x" / f"second{path.name}")
    found = list_series(tmp_path / "b/x")
    assert [len(one.files) for one in found] == [3, 3]
    with pytest.raises(DataError, match="holds 2 series"):
        read_path(tmp_path / "b/x")
    assert read_path(tmp_path / "b/x", array=found[1].id).array.shape[-1] == 3


def test_a_folder_of_several_series_is_split(tmp_path: Path) -> None:
    series(tmp_path / "a", [0, 2, 4], SeriesInstanceUID="1.2.3")
    for number, path in enumerate(series(tmp_path / "b", [0, 1], SeriesInstanceUID="1.2.4").iterdir()):
        path.rename(tmp_path / "a" / f"b{number}")
    # One series, two shapes: two stacks.
    odd = slice_of(np.zeros((7, 7), np.int16), ImagePositionPatient=[0, 0, 9])
    save(tmp_path / "a/odd.dcm", odd)
    (tmp_path / "a/README.txt").write_text("not DICOM")
    (tmp_path / "a/DICOMDIR").write_text("not read")
    (tmp_path / "a/broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    found = list_series(tmp_path / "a")
    assert sorted(len(one.files) for one in found if not one.reason) == [1, 2, 3]
    assert [one.files[0].name for one in found if one.reason] == ["broken.dcm"]
    assert len({one.id for one in found}) == len(found)


def test_an_unreadable_file_beside_a_series_is_noted(tmp_path: Path) -> None:
    series(tmp_path, [0, 2, 4])
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    assert any("broken.dcm left out" in note for note in read_path(tmp_path).notes)


def test_a_truncated_slice_names_its_file(tmp_path: Path) -> None:
    series(tmp_path, [0, 2, 4])
    whole = (tmp_path / "001.dcm").read_bytes()
    (tmp_path / "001.dcm").write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"001\.dcm"):
        read_path(tmp_path)


def test_a_single_slice_is_row_column(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4)
    image = read_path(save(tmp_path / "a.dcm", slice_of(pixels, RescaleSlope=1, RescaleIntercept=-1024)))
    np.testing.assert_array_equal(image.array[0], pixels - 1024)
    assert image.spacing == (0.5, 0.25)
    np.testing.assert_array_equal(read_path(tmp_path).array, image.array)


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    for number in range(3):
        made = slice_of(np.full((3, 4), 10, np.int16), ImagePositionPatient=[0, 0, number])
        made.RescaleSlope, made.RescaleIntercept = number + 1, 0
        save(tmp_path / f"{number}.dcm", made)
    assert read_path(tmp_path).array[0, 0, 0].tolist() == [10, 20, 30]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    made = slice_of(pixels, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_path(save(tmp_path / "a.dcm", made)).array[0], 4095 - pixels.astype(int))


def test_rgb_and_compressed_syntaxes(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    extra = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    plain = read_path(save(tmp_path / "a.dcm", slice_of(rgb, **extra)))
    np.testing.assert_array_equal(plain.array, rgb.transpose(2, 0, 1))
    packed = slice_of(rgb, **extra)
    packed.compress(RLELossless)
    np.testing.assert_array_equal(read_path(save(tmp_path / "b.dcm", packed)).array, plain.array)
    deflated = slice_of(rgb, **extra)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(read_path(save(tmp_path / "c.dcm", deflated)).array, plain.array)


def enhanced(heights: list[float]) -> Dataset:
    pixels = np.stack([np.full((3, 4), round(height), np.int16) for height in heights])
    made = slice_of(
        pixels, PixelSpacing=None, SliceThickness=None, ImageOrientationPatient=None, NumberOfFrames=len(heights)
    )
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([Dataset()]), Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.25]
    shared.PixelMeasuresSequence[0].SliceThickness = 9
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number, height in enumerate(heights):
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, height]
        frame.PixelValueTransformationSequence = Sequence([Dataset()])
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1
        frame.PixelValueTransformationSequence[0].RescaleIntercept = number * 100
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return made


def test_enhanced_multi_frame_uses_its_functional_groups(tmp_path: Path) -> None:
    image = read_path(save(tmp_path / "a.dcm", enhanced([6.0, 0.0, 3.0])))
    assert image.array.shape == (1, 4, 3, 3)
    assert image.array[0, 0, 0].tolist() == [100, 203, 6]
    assert image.spacing == (0.25, 0.5, 3.0)
    with pytest.raises(DataError, match="at a position that another slice has"):
        read_path(save(tmp_path / "b.dcm", enhanced([6.0, 0.0, 6.0])))


def test_series_without_positions_follows_instance_numbers(tmp_path: Path) -> None:
    for name, number in (("a", 3), ("b", 1), ("c", 4)):
        made = slice_of(np.full((3, 4), number, np.int16), InstanceNumber=number, ImageOrientationPatient=None)
        save(tmp_path / f"{name}.dcm", made)
    image = read_path(tmp_path)
    assert image.array[0, 0, 0].tolist() == [1, 3, 4]
    assert image.affine is None
    assert image.spacing == (0.25, 0.5, 2.0)
    assert any("1 instance numbers missing between 1 and 4" in note for note in image.notes)


def test_label_maps_and_reports_are_refused_with_a_reason(tmp_path: Path) -> None:
    label = slice_of(np.zeros((3, 4), np.uint8), Modality="SEG")
    with pytest.raises(DataError, match="a label map and not an image"):
        read_path(save(tmp_path / "a.dcm", label))
    with pytest.raises(DataError, match="no pixel data"):
        read_path(save(tmp_path / "b.dcm", slice_of(np.zeros((3, 4), np.uint8), PixelData=None)))


def test_dicom_mask_must_be_whole_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", slice_of(np.arange(12, dtype=np.int16).reshape(3, 4), RescaleSlope=0.3))
    with pytest.raises(DataError, match="not whole numbers"):
        read_mask(path)


# Real files


@needs(not (DATA / "dicom_odd/files").is_dir(), reason="real images are not here")
@pytest.mark.parametrize(
    "path",
    sorted((DATA / "dicom_odd/files").iterdir()) if (DATA / "dicom_odd/files").is_dir() else [],
    ids=lambda p: p.name,
)
def test_odd_files_load_or_say_why(path: Path) -> None:
    try:
        image = read_path(path)
    except DataError as error:
        assert str(path) in str(error)
        assert len(error.faults[0].what) > 15
    else:
        assert image.array.dtype == np.float32
        assert image.array.ndim == len(image.spacing) + 1
        assert np.isfinite(image.array).all()


@needs(not (DATA / "dicom_odd/files").is_dir(), reason="real images are not here")
def test_odd_files_that_are_images_do_load() -> None:
    with (DATA / "dicom_odd/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [row["file"] for row in rows if row["pixels"] == "ok" and row["modality"] != "SEG"]
    assert len(expected) > 40
    for name in expected:
        read_path(DATA / "dicom_odd" / name)


@needs(not (DATA / "dicom_odd/files").is_dir(), reason="real images are not here")
@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        ("SC_rgb.dcm", "SC_rgb_expb.dcm", 0),
        ("SC_rgb.dcm", "SC_ybr_full_uncompressed.dcm", 1),
        ("SC_rgb.dcm", "pydicom__SC_rgb_dcmtk_+eb+cy+n2.dcm", 1),
        ("SC_rgb.dcm", "pydicom__SC_rgb_dcmtk_+eb+cr.dcm", 1),
        ("US1_UNCI.dcm", "US1_J2KI.dcm", 0),
        ("color-pl.dcm", "color-px.dcm", 0),
        ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm", 0),
        ("693_J2KR.dcm", "693_UNCR.dcm", 0),
        ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm", 0),
        ("pydicom__rtdose_rle.dcm", "pydicom__rtdose_expb.dcm", 0),
    ],
)
def test_one_image_in_two_codings_is_one_image(one: str, other: str, tolerance: float) -> None:
    first, second = (read_path(DATA / "dicom_odd/files" / name).array for name in (one, other))
    assert np.abs(first - second).mean() <= tolerance


@needs(not (DATA / "dicom_series").is_dir(), reason="real images are not here")
def test_real_series_is_in_slice_order() -> None:
    with (DATA / "dicom_series/files.csv").open() as file:
        height = {row["file"]: float(row["z"]) for row in csv.DictReader(file)}
    found = list_series(DATA / "dicom_series")
    assert sorted(len(one.files) for one in found) == [22, 40]
    for one in found:
        heights = [height[str(path.relative_to(DATA / "dicom_series"))] for path in one.files]
        assert heights == sorted(heights)
        assert [path.name for path in one.files] != sorted(path.name for path in one.files)
        image = read_path(one.path)
        for target, path in enumerate(one.files):
            stored = pydicom.dcmread(path).pixel_array.astype(np.float32)
            assert np.array_equal(np.sort(image.array[0, :, :, target], axis=None), np.sort(stored, axis=None))
        assert image.affine is not None
        # The last slice's first pixel lies where its own header says.
        last = pydicom.dcmread(one.files[-1])
        corner = np.linalg.inv(image.affine) @ [*(np.asarray(last.ImagePositionPatient, float) * [-1, -1, 1]), 1]
        columns, rows = image.array.shape[1:3]
        np.testing.assert_allclose(corner[:3], [columns - 1, rows - 1, len(one.files) - 1], atol=1e-2)
    volume = next(one for one in found if len(one.files) == 22)
    np.testing.assert_allclose(read_path(volume.path).spacing, (0.6875, 0.6875, 6.5), atol=1e-4)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("valid")
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4)
    packed = slice_of(pixels)
    packed.compress(RLELossless)
    made = [slice_of(pixels, ImagePositionPatient=[0, 0, 1]), enhanced([0.0, 1.0]), packed]
    return [save(folder / f"{number}.dcm", dataset).read_bytes() for number, dataset in enumerate(made)]


@FUZZ
@given(data=st.data())
def test_broken_dicom_raises_only_data_error(data: st.DataObject, valid: list[bytes], tmp_path: Path) -> None:
    content = bytearray(data.draw(st.sampled_from(valid)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        read_path(path)
    except DataError as error:
        assert error.faults
    for one in list_series(tmp_path):
        assert one.files == (path,)
