"""Training patches: exact size, where they lie, and that boxes and masks move along."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow
from pydantic import ValidationError

from medfl.data.augment.base import AugmentConfig, augment
from medfl.data.augment.patches import cut_patch
from medfl.data.base import Case
from medfl.data.cache import Recipe, SampleCache
from medfl.data.preprocess import PreprocessConfig
from medfl.data.site_data import load_site
from medfl.errors import DataError

STILL = {"flip": "none", "shift": 0.0, "rotation": 0.0, "scale": 0.0, "shear": 0.0, "crop": 0.0}
SHAPES = {2: (90, 70), 3: (40, 50, 34)}
PATCHES = {2: (32, 24), 3: (16, 20, 12)}
DIMS = pytest.mark.parametrize("dims", [2, 3])


def lesions(dims, count=4, seed=0):
    """Bright boxes, each of a value of its own, that do not touch: image, mask of class 1, boxes."""
    rng, shape = np.random.default_rng(seed), SHAPES[dims]
    image, taken = np.zeros((1, *shape), np.float32), np.zeros(shape, bool)
    boxes = []
    while len(boxes) < count:
        size = rng.integers(3, 7, dims)
        start = rng.integers(0, np.array(shape) - size, endpoint=True)
        place = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        if not taken[place].any():
            taken[place] = True
            image[(0, *place)] = len(boxes) + 1
            boxes.append([*start, *(start + size)])
    return image, (image[0] > 0).astype(np.uint8), np.array(boxes, np.float32)


def detection(dims, **kwargs):
    image, _, boxes = lesions(dims, **kwargs)
    return {"image": image, "box": boxes, "label": np.arange(1, len(boxes) + 1)}


def segmentation(dims, **kwargs):
    image, mask, _ = lesions(dims, **kwargs)
    return {"image": image, "label": mask}


def draws(sample, dims, count=150, foreground=0.67):
    return [cut_patch(sample, PATCHES[dims], foreground, np.random.default_rng(n)) for n in range(count)]


def misplaced(sample):
    """How many boxes are not the bounds of the pixels that carry their label."""
    dims = sample["image"].ndim - 1
    wrong = 0
    for box, label in zip(sample["box"], sample["label"], strict=True):
        inside = np.argwhere(sample["image"][0] == label)
        wrong += not len(inside) or not np.array_equal(box, [*inside.min(0), *(inside.max(0) + 1)])
    assert sample["box"].shape == (len(sample["label"]), 2 * dims)
    return wrong


@DIMS
def test_boxes_are_those_of_the_pixels(dims):
    whole = detection(dims)
    patches = draws(whole, dims)
    assert sum(len(patch["box"]) for patch in patches) > 100
    assert sum(misplaced(patch) for patch in patches) == 0
    # The fake that forgets to shift the boxes.
    assert sum(misplaced(patch | {"box": whole["box"][patch["label"] - 1]}) for patch in patches) > 100


@DIMS
def test_a_box_goes_when_little_of_it_is_left(dims):
    whole = detection(dims)
    sizes = [np.count_nonzero(whole["image"] == label) for label in whole["label"]]
    shares = {True: [], False: []}
    for patch in draws(whole, dims):
        assert (patch["box"][:, dims:] > patch["box"][:, :dims]).all()
        for label, size in enumerate(sizes, 1):
            shares[label in patch["label"]].append(np.count_nonzero(patch["image"] == label) / size)
    assert min(shares[True]) >= 0.3 > max(shares[False]) > 0
    assert min(shares[True]) < 0.9


@DIMS
def test_the_mask_moves_with_the_image(dims):
    whole = segmentation(dims)
    for patch in draws(whole, dims):
        assert patch["label"].dtype == np.uint8 and patch["label"].shape == PATCHES[dims]
        assert np.array_equal(patch["label"], patch["image"][0] > 0)


@DIMS
@pytest.mark.parametrize("make", [detection, segmentation])
def test_the_share_of_patches_with_foreground_is_as_asked(dims, make):
    whole = make(dims, count=1)

    def share(foreground, count=400):
        found = draws(whole, dims, count, foreground)
        # A box counts when all of it is inside, a mask with a single voxel.
        least = np.count_nonzero(whole["image"]) if make is detection else 1
        return np.mean([np.count_nonzero(patch["image"]) >= least for patch in found])

    assert share(1.0) == 1.0
    by_chance = share(0.0)
    assert by_chance < 0.4
    assert abs(share(0.67) - (0.67 + 0.33 * by_chance)) < 0.08


@DIMS
def test_foreground_does_not_always_lie_in_the_same_place(dims):
    middle = np.array(SHAPES[dims]) // 2
    whole = {"image": np.ones((1, *SHAPES[dims]), np.float32), "label": np.array([0])}
    whole["box"] = np.array([[*middle, *(middle + 3)]], np.float32)
    starts = np.array([patch["box"][0, :dims] for patch in draws(whole, dims, 150, 1.0)])
    # Anywhere from the patch's first pixel to the last that leaves room for the box.
    assert (starts.min(0) == 0).all() and (starts.max(0) == np.array(PATCHES[dims]) - 3).all()


def test_each_class_is_met_as_often():
    mask = np.zeros(SHAPES[2], np.uint8)
    mask[:40] = 1
    mask[88, 68] = 2
    sample = {"image": mask[None].astype(np.float32), "label": mask}
    met = np.mean([(patch["label"] == 2).any() for patch in draws(sample, 2, 300, 1.0)])
    assert 0.4 < met < 0.6


def test_a_box_larger_than_the_patch_fills_it():
    whole = {"image": np.ones((1, 90, 70), np.float32), "box": np.array([[5.5, 3, 60, 40.5]], np.float32)}
    for patch in draws(whole | {"label": np.array([0])}, 2, 40, 1.0):
        # 32 x 24 of 54.5 x 37.5 are more than 0.3.
        assert np.prod(patch["box"][0, 2:] - patch["box"][0, :2]) > 31 * 23


@DIMS
@pytest.mark.parametrize("make", [detection, segmentation])
def test_without_foreground_patches_lie_anywhere(dims, make):
    image = np.arange(1, np.prod(SHAPES[dims]) + 1, dtype=np.float32).reshape(1, *SHAPES[dims])
    empty = {"image": image, "label": np.zeros(SHAPES[dims], np.uint8)}
    if make is detection:
        empty |= {"box": np.zeros((0, 2 * dims), np.float32), "label": np.zeros(0, np.int64)}
    patches = draws(empty, dims, 300)
    corners = np.array([np.unravel_index(int(patch["image"].min()) - 1, SHAPES[dims]) for patch in patches])
    room = np.array(SHAPES[dims]) - PATCHES[dims]
    assert (corners.min(0) == 0).all() and (corners.max(0) == room).all()
    assert np.allclose(corners.mean(0), room / 2, rtol=0.15)
    assert all(patch["image"].shape[1:] == PATCHES[dims] for patch in patches)
    if make is detection:
        assert all(patch["box"].shape == (0, 2 * dims) and patch["label"].shape == (0,) for patch in patches)


@DIMS
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_smaller_image_is_padded_with_zeros(dims, share):
    whole = detection(dims)
    patch = tuple(n + extra for n, extra in zip(SHAPES[dims], (13, -6, 8), strict=False))
    for seed in range(10):
        found = cut_patch(whole, patch, share, np.random.default_rng(seed))
        assert found["image"].shape == (1, *patch) and misplaced(found) == 0
        # 13 pixels are missing on the first axis: 6 before the image and 7 behind it.
        inside = found["image"][:, 6:-7]
        assert (
            inside.shape[1] == SHAPES[dims][0] and not found["image"][:, :6].any() and not found["image"][:, -7:].any()
        )
        assert np.count_nonzero(inside) == np.count_nonzero(found["image"])
        masked = cut_patch(segmentation(dims), patch, share, np.random.default_rng(seed))
        assert np.array_equal(masked["label"], masked["image"][0] > 0) and masked["label"].any()


@DIMS
def test_every_variant_is_a_patch_that_seed_key_and_number_decide(dims):
    whole = segmentation(dims)
    before = whole["image"].copy()
    config = AugmentConfig(patch=PATCHES[dims], foreground=1.0)
    made = {
        (seed, key, variant): augment(whole, config, seed, key, variant)
        for seed, key, variant in [(0, "k", 0), (0, "k", 1), (0, "k", 2), (1, "k", 0), (0, "other", 0)]
    }
    for (seed, key, variant), sample in reversed(made.items()):
        again = augment(whole, config, seed, key, variant)
        assert all(np.array_equal(sample[name], again[name]) for name in sample)
        assert sample["image"].shape == (1, *PATCHES[dims]) and sample["image"].dtype == np.float32
        assert sample["label"].shape == PATCHES[dims]
    assert len({sample["image"].tobytes() for sample in made.values()}) == len(made)
    assert np.array_equal(before, whole["image"])
    # Variant 0 is cut and nothing else; so is variant 1 when all operations are off.
    values = set(np.unique(before))
    assert set(np.unique(made[0, "k", 0]["image"])) <= values
    assert not set(np.unique(made[0, "k", 1]["image"])) <= values
    still = augment(whole, AugmentConfig(patch=PATCHES[dims], foreground=1.0, **STILL), 0, "k", 1)
    assert np.allclose(still["image"][0] > 0.5, still["label"])


@DIMS
def test_every_variant_knows_the_statistics_of_the_whole_image(dims):
    whole = segmentation(dims)
    expected = [whole["image"].mean(), whole["image"].std()]
    for variant in range(3):
        sample = augment(whole, AugmentConfig(patch=PATCHES[dims]), 0, "k", variant)
        assert sample["statistics"].dtype == np.float32 and np.allclose(sample["statistics"], expected)


@DIMS
def test_boxes_stay_on_their_lesions_after_all_operations(dims):
    whole = detection(dims, count=1)
    config = AugmentConfig(patch=PATCHES[dims], foreground=1.0)
    kept = 0
    for variant in range(1, 30):
        sample = augment(whole, config, 0, "k", variant)
        for box in sample["box"]:
            centre = tuple(((box[:dims] + box[dims:]) / 2).astype(int))
            assert sample["image"][(0, *centre)] > 0.4
            kept += 1
    assert kept > 20


def test_what_cannot_be_cut_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="classification"):
        cut_patch({"image": np.ones((1, 9, 9), np.float32), "label": np.int64(1)}, (4, 4), 0.5, rng)
    with pytest.raises(DataError, match="2 space axes, augment"):
        cut_patch(segmentation(2), (4, 4, 4), 0.5, rng)
    for wrong in ({"patch": (4,)}, {"patch": (4, 0)}, {"patch": (4, 4, 4, 4)}, {"foreground": 1.1}):
        with pytest.raises(ValidationError):
            AugmentConfig(**wrong)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several sizes, one smaller than the patch, with boxes; half of them for validation."""
    cases = []
    for number, shape in enumerate([(60, 50), (40, 64), (20, 70), (60, 50), (40, 64), (33, 33)]):
        pixels = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Pillow.fromarray(pixels).save(path)
        os.utime(path, (1e9, 1e9))
        boxes = ((2.0, 3.0, 12.0, 11.0), (10.0, 20.0, 18.0, 30.0)) if number % 3 else ()
        split = "train" if number < 3 else "val"
        cases.append(Case(path.name, path, (0,) * len(boxes), boxes, f"p{number}", "s", split))
    return cases


def test_the_cache_holds_patches_of_one_shape_for_training_alone(pictures, tmp_path):
    config = AugmentConfig(factor=4, patch=(32, 24))
    arguments = {"task": "detection", "classes": ["a"], "preprocess": PreprocessConfig(), "seed": 3}
    data = load_site("s", pictures, augment=config, cache_dir=tmp_path / "cache", **arguments)
    train, val = data.splits["train"], data.splits["val"]
    assert (len(train), train.cases, len(val), val.cases) == (12, 3, 3, 3)
    again = load_site("s", pictures, augment=config, cache_dir=tmp_path / "cache", **arguments).splits["train"]
    batch = train.batch(range(12))
    assert isinstance(batch["image"], np.ndarray) and batch["image"].shape == (12, 1, 32, 24)
    assert np.array_equal(batch["image"], again.batch(range(12))["image"])
    assert train.labels().tolist() == [len(np.unique(labels)) for labels in batch["label"]]
    assert train.info(5).key == "1.png" and all(len(labels) == 0 for labels in batch["label"][:4])
    assert sum(len(labels) for labels in batch["label"]) >= 5
    assert [image.shape[1:] for image in val.batch([0, 1, 2])["image"]] == [(60, 50), (40, 64), (33, 33)]


def test_the_patch_decides_the_key(pictures, tmp_path):
    cache = SampleCache(tmp_path / "cache")
    recipe = Recipe("detection", ("a",), PreprocessConfig(), AugmentConfig(factor=2))
    for number, change in enumerate([{}, {"patch": (32, 24)}, {"patch": (24, 32)}, {"foreground": 0.5}], 1):
        cache.load(pictures[:3], replace(recipe, augment=AugmentConfig(factor=2, **change)))
        assert len(list((cache.folder / "packs").iterdir())) == number


def test_classification_with_patches_says_why_no_case_is_left(pictures, tmp_path):
    cases = [replace(case, label=0, boxes=None) for case in pictures]
    with pytest.raises(DataError, match="need not hold for a patch"):
        load_site(
            "s",
            cases,
            task="classification",
            classes=["a"],
            preprocess=PreprocessConfig(),
            augment=AugmentConfig(patch=(8, 8)),
            seed=0,
            cache_dir=tmp_path / "cache",
        )
