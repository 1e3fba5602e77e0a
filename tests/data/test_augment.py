import numpy as np
import pytest

from medfl.data.augment.base import AugmentConfig, augment
from medfl.data.augment.volume import draw_affine, move_boxes

SHAPES = {2: ((64, 80), (20, 24, 38, 44)), 3: ((40, 48, 36), (12, 14, 10, 24, 28, 22))}
OFF = {"flip": "none", "shift": 0.0, "rotation": 0.0, "scale": 0.0, "shear": 0.0, "crop": 0.0}
STRONG = AugmentConfig(flip="all", rotation=25)


def ellipsoid(shape, box):
    dims = len(shape)
    low, high = np.array(box[:dims]), np.array(box[dims:])
    centre, half = (low + high) / 2, (high - low) / 2
    grid = np.indices(shape) + 0.5
    return sum(((grid[i] - centre[i]) / half[i]) ** 2 for i in range(dims)) <= 1


def bounds(mask):
    inside = np.argwhere(mask)
    return np.concatenate([inside.min(0), inside.max(0) + 1])


def iou(a, b):
    dims = len(a) // 2
    shared = np.prod(np.clip(np.minimum(a[dims:], b[dims:]) - np.maximum(a[:dims], b[:dims]), 0, None))
    return shared / (np.prod(a[dims:] - a[:dims]) + np.prod(b[dims:] - b[:dims]) - shared)


def lesion(dims):
    shape, box = SHAPES[dims]
    mask = ellipsoid(shape, box)
    return mask[None].astype(np.float32), mask.astype(np.uint8), np.array([box], np.float32)


@pytest.mark.parametrize("dims", [2, 3])
def test_box_and_mask_move_with_the_image(dims):
    image, mask, box = lesion(dims)
    found, forgotten = [], []
    for variant in range(1, 16):
        detected = augment({"image": image, "box": box, "label": np.array([3])}, STRONG, 0, "k", variant)
        segmented = augment({"image": image, "label": mask}, STRONG, 0, "k", variant)
        assert np.array_equal(detected["image"], segmented["image"])
        assert np.mean((detected["image"][0] > 0.5) != segmented["label"]) < 0.006
        assert detected["box"].shape == (1, 2 * dims) and detected["label"].tolist() == [3]
        truth = bounds(segmented["label"])
        found.append(iou(truth, detected["box"][0]))
        forgotten.append(iou(truth, box[0]))
    assert min(found) > 0.7 and np.mean(found) > 0.85
    # The fake that leaves the boxes where they were.
    assert np.mean(forgotten) < 0.6


@pytest.mark.parametrize("dims", [2, 3])
def test_variants_keep_shape_and_type_and_never_alter_their_source(dims):
    image, mask, _ = lesion(dims)
    image = np.repeat(image, 3, axis=0) * 900 - 500
    before = image.copy()
    for variant in range(1, 4):
        result = augment({"image": image, "label": mask}, STRONG, 0, "k", variant)
        assert result["image"].shape == image.shape and result["image"].dtype == np.float32
        assert result["label"].shape == mask.shape and result["label"].dtype == np.uint8
        assert set(np.unique(result["label"])) <= {0, 1}
        assert result["image"].flags.c_contiguous and result["image"].min() < -400
    assert np.array_equal(image, before)


@pytest.mark.parametrize("dims", [2, 3])
def test_variant_zero_is_the_original_and_the_rest_depends_on_seed_key_and_number(dims):
    image, _, _ = lesion(dims)
    sample = {"image": image, "label": np.int64(1)}
    assert augment(sample, STRONG, 0, "k", 0) is sample

    def pixels(*which):
        result = augment(sample, STRONG, *which)
        assert result["label"] == 1
        return result["image"]

    assert np.array_equal(pixels(0, "k", 1), pixels(0, "k", 1))
    for other in ((1, "k", 1), (0, "l", 1), (0, "k", 2)):
        assert not np.array_equal(pixels(0, "k", 1), pixels(*other))


@pytest.mark.parametrize("dims", [2, 3])
def test_images_without_boxes_stay_without(dims):
    image, _, _ = lesion(dims)
    sample = {"image": image, "box": np.zeros((0, 2 * dims), np.float32), "label": np.zeros(0, np.int64)}
    result = augment(sample, STRONG, 0, "k", 1)
    assert result["box"].shape == (0, 2 * dims) and result["label"].shape == (0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_operation_can_be_switched_off(dims):
    image, mask, _box = lesion(dims)
    same = augment({"image": image, "label": mask}, AugmentConfig(**OFF), 0, "k", 1)
    assert np.allclose(same["image"], image, atol=1e-4) and np.array_equal(same["label"], mask)
    for switch in ({"shift": 0.2}, {"rotation": 40.0}, {"scale": 0.4}, {"shear": 30.0}, {"crop": 0.4}):
        config = AugmentConfig(**OFF | switch)
        moved = [augment({"image": image, "label": mask}, config, 0, "k", v)["image"] for v in range(1, 5)]
        assert max(np.abs(each - image).max() for each in moved) > 0.5, switch


@pytest.mark.parametrize(("dims", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_only_the_allowed_axes_are_mirrored(dims, axis):
    ramp = np.indices(SHAPES[dims][0]).astype(np.float32)
    config = AugmentConfig(**OFF | {"flip": (axis,)})
    results = [augment({"image": ramp, "label": np.int64(0)}, config, 0, "k", v)["image"] for v in range(1, 12)]
    outcomes = {np.allclose(result, np.flip(ramp, axis + 1), atol=1e-3) for result in results}
    assert outcomes == {True, False}
    assert all(
        np.allclose(result, np.flip(ramp, axis + 1), atol=1e-3) or np.allclose(result, ramp, atol=1e-3)
        for result in results
    )


def test_left_right_is_the_columns_of_a_picture_and_the_first_axis_of_a_volume():
    assert AugmentConfig().flip_axes(2) == (1,) and AugmentConfig().flip_axes(3) == (0,)
    assert AugmentConfig(flip="none").flip_axes(3) == () and AugmentConfig(flip="all").flip_axes(2) == (0, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_box_of_which_too_little_is_left_is_dropped_with_its_label(dims):
    shape, _ = SHAPES[dims]
    corner, middle = (0,) * dims + (6,) * dims, tuple(n // 2 - 5 for n in shape) + tuple(n // 2 + 5 for n in shape)
    sample = {
        "image": np.zeros((1, *shape), np.float32),
        "box": np.array([corner, middle], np.float32),
        "label": np.array([7, 8]),
    }
    config = AugmentConfig(**OFF | {"shift": 0.2})
    results = [augment(sample, config, 0, "k", v) for v in range(1, 30)]
    assert {tuple(result["label"].tolist()) for result in results} >= {(7, 8), (8,)}
    for result in results:
        assert len(result["box"]) == len(result["label"])
        assert (result["box"] >= 0).all() and (result["box"].reshape(-1, 2, dims) <= shape).all()


def test_three_tenths_of_the_volume_is_the_limit():
    shape, offset = (20, 20, 20), np.zeros(3)
    boxes = np.array([[-7, 0, 0, 3, 4, 4], [-7.1, 0, 0, 2.9, 4, 4], [0, 0, 0, 4, 4, 4]], np.float32)
    moved, kept = move_boxes(boxes, shape, np.eye(3), offset)
    assert kept.tolist() == [0, 2]
    assert moved[0].tolist() == [0, 0, 0, 3, 4, 4]


def test_a_drawn_map_stays_within_its_magnitudes():
    config = AugmentConfig(**OFF | {"rotation": 20.0})
    for seed in range(20):
        linear, offset = draw_affine(config, (10, 10, 10), np.random.default_rng(seed))
        assert np.allclose(linear @ linear.T, np.eye(3)) and np.linalg.det(linear) > 0
        assert not offset.any()
    with_shift = AugmentConfig(**OFF | {"shift": 0.1})
    offsets = [draw_affine(with_shift, (10, 20, 30), np.random.default_rng(s))[1] for s in range(50)]
    assert (np.abs(offsets) <= [1, 2, 3]).all() and (np.ptp(offsets, axis=0) > [1, 2, 3]).all()
