from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import medfl.data.preprocess as module
from medfl.data.base import Case, Image
from medfl.data.preprocess import (
    Percentile,
    PreprocessConfig,
    Scale,
    Unchanged,
    Window,
    preprocess,
    preprocess_image,
    restore_boxes,
    restore_mask,
)
from medfl.errors import DataError

RNG = np.random.default_rng(0)
RAW = Unchanged()


def image(shape, spacing=None, array=None):
    pixels = RNG.random(shape, dtype=np.float32) if array is None else array
    return Image(pixels, spacing or (1.0,) * (pixels.ndim - 1))


@pytest.fixture
def reads(monkeypatch):
    """Let `preprocess` read these arrays in place of files."""

    def give(picture, mask=None):
        monkeypatch.setattr(module, "read_image", lambda case: picture)
        monkeypatch.setattr(module, "read_mask", lambda path: Image(mask[None], picture.spacing))

    return give


def case(label=0, boxes=None):
    return Case("k", Path("/k.png"), label, boxes)


def lesion(shape, box):
    mask = np.zeros(shape, np.uint8)
    half = len(box) // 2
    mask[tuple(map(slice, box[:half], box[half:]))] = 1
    return mask


GEOMETRIES = [
    ((60, 40), None, {"size": (30, 30)}),
    ((60, 40), None, {"size": (90, 64)}),
    ((60, 40), (0.5, 1.0), {"spacing": (1.0, 1.0)}),
    ((60, 40), (0.5, 1.0), {"spacing": (1.0, 1.0), "size": (48, 48)}),
    ((30, 40, 20), (1.0, 1.0, 2.0), {"spacing": (1.0, 1.0, 1.0)}),
    ((30, 40, 20), (1.0, 1.0, 2.0), {"size": (32, 32, 32)}),
    ((30, 40, 20), (1.0, 1.0, 2.0), {"spacing": (1.0, 1.0, 1.0), "size": (40, 40, 40)}),
]


@pytest.mark.parametrize(("shape", "spacing", "config"), GEOMETRIES)
def test_image_mask_and_box_stay_on_top_of_each_other(reads, shape, spacing, config):
    dims = len(shape)
    box = (8, 12, 20, 28) if dims == 2 else (8, 12, 6, 20, 28, 14)
    mask = lesion(shape, box)
    picture = image(None, spacing, mask[None].astype(np.float32))
    reads(picture, mask)
    settings = PreprocessConfig(intensity=RAW, **config)
    seen = preprocess(case(Path("/m.png")), settings, "segmentation", ("0", "1")).sample
    found = preprocess(case((0,), (box,)), settings, "detection", ("0",)).sample
    assert seen["image"].shape[1:] == seen["label"].shape and seen["image"].dtype == np.float32
    assert seen["image"].flags.c_contiguous and seen["label"].dtype == np.uint8
    inside = np.argwhere(seen["label"] == 1)
    edges = np.concatenate([inside.min(0), inside.max(0) + 1])
    assert np.abs(edges - found["box"][0]).max() <= 1.0
    assert np.mean((seen["image"][0] > 0.5) != (seen["label"] == 1)) < 0.03
    # A preprocessing that forgot the boxes would be far off here.
    if config.get("size") != (90, 64):
        assert np.abs(np.array(box) - edges).max() > 1.0 or dims == 3
    assert np.allclose(restore_boxes(found["box"], picture, settings), box, atol=1e-4)
    assert np.mean(restore_mask(seen["label"], picture, settings) != mask) < 0.02
    assert restore_mask(seen["label"], picture, settings).shape == mask.shape


def test_restoring_an_enlarged_mask_is_exact():
    mask = RNG.integers(0, 3, (20, 30)).astype(np.uint8)
    settings = PreprocessConfig(size=(60, 90))
    grid = module.grid_of(image((1, 20, 30)), settings)
    assert np.array_equal(restore_mask(module._nearest(mask, grid.target), image((1, 20, 30)), settings), mask)


def test_shrinking_is_antialiased_and_plain_interpolation_is_not():
    stripes = np.tile(np.float32([0, 1]), 64)[None].repeat(128, 0)
    small = preprocess_image(image(None, array=stripes[None]), PreprocessConfig(size=(32, 32), intensity=RAW))
    assert np.abs(small[0, 2:-2, 2:-2] - 0.5).max() < 0.05
    assert np.abs(stripes[::4, ::4] - 0.5).max() == 0.5


def test_spacing_of_the_sample_is_reported(reads):
    reads(image((1, 60, 40), (0.5, 1.0)))
    assert preprocess(case(), PreprocessConfig(size=(30, 20)), "classification", ("a",)).spacing == (1.0, 2.0)


def test_intensities():
    pixels = np.linspace(-1000, 1000, 1001, dtype=np.float32).reshape(1, 7, 143)

    def scaled(kind):
        return preprocess_image(image(None, array=pixels), PreprocessConfig(intensity=kind))

    assert np.array_equal(scaled(RAW), pixels)
    assert np.allclose(scaled(Scale()), (pixels + 1000) / 2000, atol=1e-6)
    assert np.allclose(scaled(Window(lower=-500, upper=500)), np.clip((pixels + 500) / 1000, 0, 1), atol=1e-6)
    percentile = scaled(Percentile(lower=10, upper=90))
    assert np.mean(percentile == 0) == pytest.approx(0.1, abs=0.01) == np.mean(percentile == 1)
    constant = preprocess_image(image(None, array=np.full((1, 4, 4), 7.0, np.float32)), PreprocessConfig())
    assert np.isfinite(constant).all()


def test_percentiles_can_be_taken_by_channel():
    pixels = np.stack([np.linspace(0, 1, 64), np.linspace(0, 1000, 64)]).reshape(2, 8, 8).astype(np.float32)
    together = preprocess_image(image(None, array=pixels), PreprocessConfig(channels=2))
    apart = preprocess_image(
        image(None, array=pixels), PreprocessConfig(channels=2, intensity=Percentile(by_channel=True))
    )
    assert together[0].max() < 0.01 < 0.99 < apart[0].max()


def test_channels_are_reduced_repeated_or_refused():
    colour = image((3, 5, 5))
    grey = preprocess_image(colour, PreprocessConfig(intensity=RAW))
    assert np.allclose(grey[0], np.tensordot([0.299, 0.587, 0.114], colour.array, 1), atol=1e-6)
    three = preprocess_image(image((1, 5, 5)), PreprocessConfig(channels=3, intensity=RAW))
    assert three.shape == (3, 5, 5) and np.array_equal(three[0], three[2])
    with pytest.raises(DataError, match="2 channels"):
        preprocess_image(image((2, 5, 5)), PreprocessConfig())


def test_boxes_that_shrink_to_nothing_or_are_cropped_away_are_counted(reads):
    reads(image((1, 40, 40)))
    boxes = ((0.0, 0.0, 4.0, 4.0), (10.0, 10.0, 10.0, 20.0), (15.0, 15.0, 25.0, 25.0))
    settings = PreprocessConfig(spacing=(1.0, 1.0), size=(20, 20))
    prepared = preprocess(case((0, 1, 1), boxes), settings, "detection", ("a", "b"))
    assert prepared.lost == 2
    assert prepared.sample["label"].tolist() == [1] and prepared.sample["box"].tolist() == [[5, 5, 15, 15]]


def test_an_image_without_lesions_is_a_sample(reads):
    reads(image((1, 8, 8)))
    sample = preprocess(case((), ()), PreprocessConfig(), "detection", ("a",)).sample
    assert sample["box"].shape == (0, 4) and sample["label"].shape == (0,)


def nan():
    array = RNG.random((1, 8, 8), dtype=np.float32)
    array[0, 3, 3] = np.nan
    return image(None, array=array)


@pytest.mark.parametrize(
    ("picture", "mask", "label", "boxes", "task", "says"),
    [
        (nan(), None, 0, None, "classification", "not finite"),
        (image(None, array=np.full((1, 8, 8), np.inf, np.float32)), None, 0, None, "classification", "64 of 64"),
        (image((1, 8, 8)), None, None, None, "classification", "label"),
        (image((1, 8, 8)), None, 2, None, "classification", "none of the 2 classes"),
        (image((1, 8, 8)), np.zeros((8, 9), np.uint8), Path("/m"), None, "segmentation", "shape"),
        (image((1, 8, 8)), np.full((8, 8), 7, np.uint8), Path("/m"), None, "segmentation", "unknown label values"),
        (image((1, 8, 8)), np.full((8, 8), -1, np.int32), Path("/m"), None, "segmentation", "unknown label values"),
        (image((1, 8, 8)), None, None, None, "segmentation", "mask"),
        (image((1, 8, 8)), None, None, None, "detection", "missing"),
        (image((1, 8, 8)), None, (0,), ((0, 0, 0, 4, 4, 4),), "detection", "4 finite numbers"),
        (image((1, 8, 8)), None, (0,), ((0, 0, float("nan"), 4),), "detection", "finite"),
        (image((1, 8, 8)), None, (0,), ((5, 5, 1, 1),), "detection", "ends before"),
        (image((1, 8, 8)), None, (0, 0), ((0, 0, 1, 1),), "detection", "2 labels"),
        (image((1, 8, 8)), None, (9,), ((0, 0, 1, 1),), "detection", "none of the 2"),
    ],
)
def test_faulty_content_is_a_data_error_that_names_the_case(reads, picture, mask, label, boxes, task, says):
    reads(picture, mask)
    with pytest.raises(DataError, match=says) as found:
        preprocess(case(label, boxes), PreprocessConfig(), task, ("a", "b"))
    assert str(found.value).startswith("k, ")


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(DataError, match="axes"):
        preprocess_image(image((1, 8, 8)), PreprocessConfig(size=(4, 4, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (4,)},
        {"size": (4, 4), "spacing": (1.0, 1.0, 1.0)},
        {"spacing": (0.0, 1.0)},
        {"intensity": {"kind": "window", "lower": 5, "upper": 5}},
        {"intensity": {"kind": "unknown"}},
        {"other": 1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PreprocessConfig.model_validate(wrong)
