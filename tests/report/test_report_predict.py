import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from medfl.data.base import Image
from medfl.data.readers import read_mask, read_path
from medfl.errors import InputError
from medfl.report.grid import file_grid
from medfl.report.predict import output_name, predict_files, predict_image
from medfl.report.saved import SavedModel
from medfl.study.build import build_task

TURNS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # all 48 ways to store a volume
SHIFT = np.array([3.0, -7.0, 11.0])


def affine_of(order, signs, spacing=(1.0, 2.0, 3.0)):
    """Voxels whose axis i runs along world axis order[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = SHIFT
    return affine


class Bright(torch.nn.Module):
    """Class 1 where the pixel is above a half."""

    def forward(self, image):
        grey = image[:, :1]
        return torch.cat([0.5 - grey, grey - 0.5], dim=1)


def bright_model(study, dims, **preprocess):
    """A segmentation model that is right by construction, on the real task and preprocessing."""
    task = {"kind": "segmentation", "classes": ["background", "bright"], "spatial_dims": dims}
    data = {
        "source": {"kind": "datalist"},
        "preprocess": {"intensity": {"kind": "scale"}, **preprocess},
    }
    made = study("segmentation", task=task, data=data)
    return SavedModel(Path(), made, build_task(made.model_copy()), Bright(), torch.device("cpu"))


def volume(shape):
    """Background 10 with a bright block of 200 off the centre, and nothing symmetric about it."""
    data = np.full(shape, 10, np.int16)
    data[1 : shape[0] // 2, 2 : shape[1] // 2, 0 : shape[2] - 2] = 200
    return data


def save(path, data, affine, **header):
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units(header.get("units", "mm"))
    if "slope" in header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@settings(max_examples=25)
@given(
    turn=st.sampled_from(TURNS), corner=st.tuples(*[st.integers(0, 2)] * 3), size=st.tuples(*[st.integers(1, 3)] * 3)
)
def test_masks_and_boxes_return_to_the_file(tmp_path_factory, turn, corner, size):
    path = tmp_path_factory.mktemp("turn") / "a.nii"
    data = np.zeros((6, 7, 8), np.int16)
    data[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] = 1
    save(path, data, affine_of(*turn))
    image = read_path(path)
    grid = file_grid(path, image)
    read = image.array[0].astype(np.uint8)
    assert np.array_equal(grid.mask(read), data)
    places = np.argwhere(read)
    box = np.array([[*places.min(0), *(places.max(0) + 1)]], float)
    assert grid.boxes(box).tolist() == [[*corner, *(c + n for c, n in zip(corner, size, strict=True))]]


@pytest.mark.parametrize("turn", [((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, -1)), ((1, 2, 0), (-1, 1, 1))])
def test_mask_lies_on_the_input_in_world_space(tmp_path, study, turn):
    affine, data = affine_of(*turn), volume((12, 14, 10))
    affine[:3, :3] = affine[:3, :3] @ nib.eulerangles.euler2mat(0.1, 0.05, -0.08)
    path = save(tmp_path / "scan.nii.gz", data, affine)
    (found,) = predict_files(bright_model(study, 3), [path], tmp_path / "out")
    assert not found.faults
    written, source = nib.load(tmp_path / "out" / "scan_mask.nii.gz"), nib.load(path)
    assert written.shape == source.shape and np.array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert np.array_equal(np.asarray(written.dataobj), data == 200)
    assert found.result["voxels"] == {"background": int((data == 10).sum()), "bright": int((data == 200).sum())}
    # the reader's own array under the file's affine is the error that this guards against
    assert read_path(path).array.shape[1:] != source.shape or not np.array_equal(
        read_path(path).array[0] > 100, data == 200
    )
    assert np.array_equal(read_mask(tmp_path / "out" / "scan_mask.nii.gz").array, read_path(path).array > 100)


def test_mask_of_a_resampled_and_scaled_file(tmp_path, study):
    affine = affine_of((2, 0, 1), (-1, 1, -1))
    path = save(tmp_path / "scan.nii", volume((24, 28, 20)), affine, slope=0.5, inter=-100.0)
    model = bright_model(study, 3, spacing=[1.7, 1.7, 1.7])
    assert [one.faults for one in predict_files(model, [path], tmp_path / "out")] == [()]
    source, written = nib.load(path), nib.load(tmp_path / "out" / "scan_mask.nii.gz")
    truth, mask = np.asarray(source.dataobj) > source.get_fdata().mean(), np.asarray(written.dataobj) > 0
    assert set(np.unique(np.asarray(written.dataobj))) == {0, 1}
    assert 2 * (truth & mask).sum() / (truth.sum() + mask.sum()) > 0.85
    flipped = mask[::-1]
    assert 2 * (truth & flipped).sum() / (truth.sum() + mask.sum()) < 0.6


@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 1, 1)])
def test_masks_keep_odd_shapes(tmp_path, study, shape):
    data = np.full(shape, 10, np.int16)
    data[2:9, 3:5] = 200
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    (found,) = predict_files(bright_model(study, read_path(path).array.ndim - 1), [path], tmp_path)
    written = nib.load(tmp_path / "a_mask.nii.gz")
    assert not found.faults and written.shape == nib.load(path).shape
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(nib.load(path).dataobj) == 200)


def test_picture_has_a_picture_mask(tmp_path, study):
    pixels = np.full((20, 31), 10, np.uint8)
    pixels[3:9, 20:30] = 250
    Pillow.fromarray(pixels).save(tmp_path / "x.png")
    model = bright_model(study, 2, size=[40, 62])
    (found,) = predict_files(model, [tmp_path / "x.png"], tmp_path / "out")
    mask = np.asarray(Pillow.open(tmp_path / "out" / "x_mask.png"))
    assert mask.shape == pixels.shape and (mask == (pixels > 100)).mean() > 0.97
    assert json.loads((tmp_path / "out" / "x.json").read_text())["axes"] == "row, column"
    assert {file.name for file in found.files} == {"x.json", "x_mask.png", "x_overlay.png"}


class Boxes:
    """A task that finds one known box, in the pixels of the preprocessed image."""

    def __init__(self, box):
        self.box = box

    def predict(self, network, sample, info, device):
        from medfl.tasks.base import Prediction

        return Prediction({"boxes": [self.box], "labels": ["lung nodule"], "scores": [0.9]})


def test_boxes_come_back_to_the_original_pixels(study):
    made = study("detection")
    model = SavedModel(Path(), made, Boxes([8.0, 4.0, 16.0, 12.0]), Bright(), torch.device("cpu"))
    image = Image(np.random.default_rng(0).random((1, 64, 96), dtype=np.float32), (1.0, 1.0))
    found = predict_image(model, image, Path("x.png"))
    assert found.data["boxes"] == [[16.0, 12.0, 32.0, 36.0]]


def test_wrong_images_are_told_of_and_the_rest_goes_on(tmp_path, study):
    save(tmp_path / "volume.nii.gz", volume((8, 9, 10)), np.eye(4))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    np.savez(tmp_path / "channels.npz", image=np.zeros((8, 8, 4), np.float32))
    Pillow.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "good.png")
    Pillow.fromarray(np.zeros((16, 16, 3), np.uint8) + 7).save(tmp_path / "colour.png")
    names = ["volume.nii.gz", "broken.png", "missing.png", "channels.npz", "good.png", "colour.png"]
    found = list(predict_files(bright_model(study, 2), [tmp_path / name for name in names], tmp_path / "out"))
    said = [str(one.faults[0]) if one.faults else "" for one in found]
    assert "has 3 space axes, the model takes 2 (give single pictures" in said[0]
    assert "cannot be read as a picture" in said[1] and "does not exist" in said[2]
    assert "has 4 channels" in said[3] and "channels.npz" in said[3]
    assert said[4:] == ["", ""]
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"good", "colour"}


def test_names_that_collide_are_refused_before_anything_is_written(tmp_path, study):
    images = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.nii.gz", tmp_path / "y.png"]
    with pytest.raises(InputError, match=r"would all be written to x\.json"):
        list(predict_files(bright_model(study, 2), images, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a.nii.gz", "a"), ("a.b.NII", "a.b"), ("scan.PNG", "scan"), ("series", "series"), (".png", ".png")],
)
def test_output_names(name, wanted):
    assert output_name(Path("folder") / name) == wanted


def test_dicom_series_gets_a_mask_in_the_readers_frame(tmp_path, study):
    import os

    from medfl.data.readers.dicom_series import list_series

    root = Path(os.environ.get("MEDFL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "dicom_series"
    if not root.is_dir():
        pytest.skip(f"no DICOM series in {root}")
    volumes = [series for series in list_series(root) if len(series.files) > 3 and not series.reason]
    import shutil

    folder = tmp_path / "series"
    folder.mkdir()
    for number, file in enumerate(volumes[0].files):
        shutil.copy(file, folder / f"{number}.dcm")
    (found,) = predict_files(bright_model(study, 3), [folder], tmp_path / "out")
    image = read_path(folder)
    written = nib.load(tmp_path / "out" / "series_mask.nii.gz")
    assert not found.faults and written.shape == image.array.shape[1:]
    assert np.allclose(written.affine, image.affine, atol=1e-4)
