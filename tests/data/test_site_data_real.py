"""Real images through the whole chain; skipped where the folder is absent."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from medfl.data.augment.base import AugmentConfig
from medfl.data.base import Case
from medfl.data.preprocess import PreprocessConfig
from medfl.data.site_data import load_site

DATA = Path(os.environ.get("MEDFL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real images in {DATA}")


def test_chest_x_rays_from_an_npz(tmp_path):
    path = DATA / "pneumonia_mnist" / "pneumoniamnist.npz"
    with np.load(path, allow_pickle=False) as stored:
        labels, images = stored["val_labels"][:, 0], stored["val_images"]
    cases = [Case(str(i), path, int(n), None, "", "s", "train", "val_images", i) for i, n in enumerate(labels)]
    settings = PreprocessConfig(intensity={"kind": "none"})
    data = load_site(
        "s",
        cases,
        task="classification",
        classes=("normal", "pneumonia"),
        preprocess=settings,
        augment=None,
        seed=0,
        cache_dir=tmp_path,
    )
    batch = data.splits["train"].batch([0, 300])
    assert data.facts["read"] == 524 and np.array_equal(batch["image"][:, 0], images[[0, 300]])
    assert np.array_equal(data.splits["train"].labels(), labels)


def test_hippocampus_volumes_keep_their_voxels(tmp_path):
    folder = DATA / "hippocampus"
    rows = list(csv.DictReader((folder / "volumes.csv").open()))[:6]
    cases = [
        Case(row["file"], folder / row["file"], folder / row["mask"], None, row["patient"], "s", "train")
        for row in rows
    ]
    data = load_site(
        "s",
        cases,
        task="segmentation",
        classes=("background", "anterior", "posterior"),
        preprocess=PreprocessConfig(spacing=(1.0, 1.0, 1.0), size=(48, 64, 48)),
        augment=AugmentConfig(factor=2),
        seed=0,
        cache_dir=tmp_path,
    )
    train = data.splits["train"]
    batch = train.batch(range(0, 12, 2))
    assert batch["image"].shape == (6, 1, 48, 64, 48) and data.facts["lost"] == 0
    for row, mask in zip(rows, batch["label"], strict=True):
        counts = np.bincount(mask.ravel(), minlength=3)
        assert counts[1:].tolist() == [int(row["anterior_voxels"]), int(row["posterior_voxels"])]
