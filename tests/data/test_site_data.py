from dataclasses import replace

import numpy as np
import pytest

from medfl.data.augment.base import AugmentConfig
from medfl.data.manifest import load_datalist
from medfl.data.preprocess import PreprocessConfig
from medfl.data.site_data import load_site
from medfl.data.split import assign_splits
from medfl.data.synthetic.base import site_shifts
from medfl.data.synthetic.config import SyntheticSpec
from medfl.data.synthetic.write import write_federation
from medfl.errors import DataError


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    spec = SyntheticSpec(generator="ct", task="detection", size=(32, 32), cases=12)
    datalist = load_datalist(write_federation(tmp_path_factory.mktemp("data") / "d", spec, site_shifts(2), 0))
    return datalist, assign_splits(datalist.cases)


def load(detection, cache, **changes):
    datalist, cases = detection
    arguments = {
        "task": "detection",
        "classes": datalist.classes,
        "preprocess": PreprocessConfig(),
        "augment": AugmentConfig(factor=3),
        "seed": 0,
        "cache_dir": cache,
    }
    return load_site("A-sharp", changes.pop("cases", cases), **arguments | changes)


def test_only_the_train_split_is_augmented_and_other_sites_are_ignored(detection, tmp_path):
    data = load(detection, tmp_path)
    own = [case for case in detection[1] if case.site == "A-sharp"]
    assert data.site == "A-sharp" and set(data.splits) == {"train", "val", "test"}
    for split, samples in data.splits.items():
        assert samples.cases == sum(case.split == split for case in own) == data.facts[split]
        assert len(samples) == samples.cases * (3 if split == "train" else 1)
        keys = {samples.info(i).key for i in range(len(samples))}
        assert keys == {case.key for case in own if case.split == split}
    assert data.facts["read"] == 12 and data.facts["skipped"] == 0
    assert data.facts["patients"] == sum(data.facts[f"{split} patients"] for split in data.splits)


def test_a_bad_file_is_skipped_and_counted(detection, tmp_path):
    cases = list(detection[1])
    broken = next(i for i, case in enumerate(cases) if case.site == "A-sharp" and case.split == "train")
    cases[broken] = replace(cases[broken], image=tmp_path / "absent.png")
    data = load(detection, tmp_path, cases=cases)
    assert [entry.key for entry in data.skipped] == [cases[broken].key]
    assert data.facts["skipped"] == 1 and data.facts["read"] == 11


def test_too_few_training_cases_are_refused_with_every_reason(detection, tmp_path):
    broken = [replace(case, image=tmp_path / "absent.png") for case in detection[1]]
    with pytest.raises(DataError, match="0 training cases") as found:
        load(detection, tmp_path, cases=broken)
    own_train = [case.key for case in broken if case.site == "A-sharp"]
    assert all(key in str(found.value) for key in own_train)
    assert load(detection, tmp_path, cases=broken, minimum_cases=0).splits == {}
    with pytest.raises(DataError, match="100 are needed"):
        load(detection, tmp_path, minimum_cases=100)


def test_cases_without_a_split_are_refused(detection, tmp_path):
    with pytest.raises(DataError, match="medfl data split"):
        load(detection, tmp_path, cases=[replace(case, split="") for case in detection[1]])


def test_lost_boxes_are_a_fact(detection, tmp_path):
    data = load(detection, tmp_path, preprocess=PreprocessConfig(spacing=(1.0, 1.0), size=(2, 2)))
    assert data.facts["lost"] > 0 == load(detection, tmp_path).facts["lost"]


def test_boxes_mark_what_is_bright_or_dark(detection, tmp_path):
    """Nodules are brighter than the lung around them: boxes, images and labels belong together after all steps."""
    samples = load(detection, tmp_path, augment=AugmentConfig(factor=4, flip="all")).splits["train"]
    batch = samples.batch(range(len(samples)))
    inside, shuffled = [], []
    rng = np.random.default_rng(0)
    for image, boxes, labels in zip(batch["image"], batch["box"], batch["label"], strict=True):
        for box in boxes[labels == 0]:
            r0, c0, r1, c1 = np.rint(box).astype(int)
            other = batch["image"][rng.integers(len(samples))][0, ::-1]
            inside.append(image[0, r0:r1, c0:c1].mean() - image[0].mean())
            shuffled.append(other[r0:r1, c0:c1].mean() - other.mean())
    assert len(inside) > 10 and np.mean(inside) > np.mean(shuffled) + 0.05
