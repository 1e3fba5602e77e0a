import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from medfl.data.manifest import load_datalist
from medfl.data.readers import read_image, read_mask
from medfl.data.synthetic.base import SITE_SHIFTS, phantoms, scan, site_shifts, upsample
from medfl.data.synthetic.chest import chest
from medfl.data.synthetic.config import SiteShift, SyntheticSpec
from medfl.data.synthetic.ct import ct
from medfl.data.synthetic.write import write_federation
from medfl.errors import DataError


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(str(f.relative_to(folder)).encode() + f.read_bytes() for f in files)).hexdigest()


PLAIN = SiteShift()


def draw(generator, size, count, shift=PLAIN, seed=0):
    return list(phantoms(generator, shift, count, size, np.random.default_rng(seed)))


@pytest.mark.parametrize("size", [(48, 56), (24, 28, 32)])
def test_ct_boxes_masks_and_labels_agree(size):
    found = draw(ct, size, 12, SiteShift(prevalence=1.0, vessels=2))
    assert any(len(phantom.boxes) for phantom, _ in found)
    for phantom, image in found:
        assert image.shape == (1, *size) and image.dtype == np.float32 and np.isfinite(image).all()
        assert phantom.label == (len(phantom.boxes) > 0) and len(phantom.types) == len(phantom.boxes)
        covered = np.zeros(size, bool)
        for box in phantom.boxes:
            start, stop = np.split(box, 2)
            assert (start >= 0).all() and (start < stop).all() and (stop <= size).all()
            covered[tuple(map(slice, start, stop))] = True
        # Lesions below 2^nd voxels have no box and no mask, so every lesion voxel is in a box.
        assert not (phantom.mask == 3)[~covered].any()
        assert set(np.unique(phantom.mask)) <= {0, 1, 2, 3}


def test_liver_target_has_liver_lesions_and_no_lung_nodules():
    nodules = draw(ct, (64, 64), 10, SiteShift(prevalence=1.0, type_mix=(1, 0)))
    lesions = draw(ct, (64, 64), 10, SiteShift(prevalence=1.0, type_mix=(0, 1)))
    assert not any(phantom.liver[phantom.mask == 3].any() for phantom, _ in nodules)
    assert all(phantom.liver[phantom.mask == 3].all() for phantom, _ in lesions)


def test_hounsfield_units_of_the_organs_are_plausible():
    phantom = draw(ct, (64, 64), 1, SiteShift(prevalence=0.0))[0][0]
    hu = phantom.clean * 1500 - 1000
    assert np.median(hu[phantom.mask == 1]) == pytest.approx(-800, abs=80)
    assert 60 < np.median(hu[phantom.mask == 2]) < 180
    assert hu[0, 0] == pytest.approx(-1000, abs=10)


def test_anatomy_lies_as_a_radiologist_expects():
    """The liver is on the patient's right: image left in a slice, high index in a RAS volume; low in the body."""
    flat = draw(ct, (64, 64), 1, SiteShift(prevalence=0.0))[0][0]
    assert np.argwhere(flat.mask == 2)[:, 1].mean() < 32
    deep = draw(ct, (32, 32, 32), 1, SiteShift(prevalence=0.0))[0][0]
    liver, lung = np.argwhere(deep.mask == 2).mean(0), np.argwhere(deep.mask == 1).mean(0)
    assert liver[0] > 16 and liver[2] < lung[2] and liver[1] < lung[1]


@pytest.mark.parametrize("generator", [ct, chest])
def test_prevalence_is_what_was_asked(generator):
    for prevalence in (0.0, 0.5, 1.0):
        shift = SiteShift(prevalence=prevalence, vessels=0, radius=(6, 8))
        mean = np.mean([phantom.label for phantom, _ in draw(generator, (32, 32), 100, shift)])
        assert mean == pytest.approx(prevalence, abs=0.15 if 0 < prevalence < 1 else 0)


def test_flipped_labels_are_wrong_labels():
    clean = draw(chest, (32, 32), 20, SiteShift(prevalence=1.0))
    flipped = draw(chest, (32, 32), 20, SiteShift(prevalence=1.0, flip_labels=1.0))
    assert all(phantom.label == 1 for phantom, _ in clean) and all(phantom.label == 0 for phantom, _ in flipped)


def test_pneumonia_brightens_the_lungs_beyond_the_healthy_spread():
    shifts = [SiteShift(prevalence=p, noise=0, flip_labels=0) for p in (0.0, 1.0)]
    healthy, ill = (np.mean([image for _, image in draw(chest, (48, 48), 30, shift)], axis=(0, 1)) for shift in shifts)
    lungs = (slice(12, 30), slice(10, 20))
    assert ill[lungs].mean() > healthy[lungs].mean() + 0.02


def test_each_scanner_parameter_changes_the_picture_as_it_says():
    flat = np.full((64, 64), 0.4, np.float32)

    def scanned(**changes):
        quiet = {"noise": 0.0, "blur": 0.0, **changes}
        return scan(flat, SiteShift(**quiet), np.random.default_rng(0))

    assert np.allclose(scanned(), 0.4, atol=1e-6)
    assert np.allclose(scanned(gain=1.1, offset=-0.05), 0.39, atol=1e-6)
    assert np.allclose(scanned(gamma=2.0), 0.16, atol=1e-6)
    assert scanned(noise=0.05).std() == pytest.approx(0.05, rel=0.05)
    assert 0.05 < np.ptp(scanned(bias_field=0.2)) < 0.17
    rough, fine = (scanned(noise=0.05, noise_correlation=c) for c in (2.0, 0.3))
    step = [np.abs(np.diff(x, axis=0)).mean() for x in (rough, fine)]
    assert step[0] < 0.6 * step[1]
    edge = np.repeat(np.float32([0, 1]), 32)[None].repeat(64, 0)
    soft = scan(edge, SiteShift(noise=0.0, blur=2.0), np.random.default_rng(0))
    assert np.abs(np.diff(soft, axis=1)).max() < 0.5


def test_zoom_shrinks_the_body():
    area = [np.mean([(p.clean > 0.2).mean() for p, _ in draw(ct, (64, 64), 8, SiteShift(zoom=z))]) for z in (1.0, 1.15)]
    assert area[1] == pytest.approx(area[0] / 1.15**2, rel=0.08)


def test_upsampling_is_linear_and_keeps_corners():
    lattice = np.float32([[0, 1], [2, 3]])
    result = upsample(lattice, (5, 9))
    assert np.allclose(result, np.add.outer(np.linspace(0, 2, 5), np.linspace(0, 1, 9)), atol=1e-6)


def test_presets_follow_the_table_and_repeat_under_new_names():
    assert SITE_SHIFTS["C-thick"].zoom == 1.15 and SITE_SHIFTS["C-thick"].radius == (3.0, 6.0)
    assert SITE_SHIFTS["D-oldtube"].contrast == 0.8 and SITE_SHIFTS["B-lowdose"].noise_correlation == 0.9
    assert list(site_shifts(6))[-1] == "A-sharp-2"


SPECS = [
    SyntheticSpec(cases=6, size=(32, 32)),
    SyntheticSpec(cases=6, size=(32, 32), format="dicom"),
    SyntheticSpec(generator="ct", task="detection", cases=6, size=(40, 32)),
    SyntheticSpec(generator="ct", task="segmentation", cases=4, size=(32, 40), format="nifti", organs="liver"),
    SyntheticSpec(generator="ct", task="detection", cases=3, size=(24, 32, 28), format="dicom", prevalence=1.0),
    SyntheticSpec(generator="ct", task="segmentation", cases=3, size=(24, 32, 28), format="dicom"),
    SyntheticSpec(generator="ct", task="segmentation", cases=3, size=(24, 32, 28), format="nifti"),
    SyntheticSpec(generator="ct", cases=3, size=(24, 32), format="dicom"),
]


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.generator}-{spec.task}-{spec.format}-{len(spec.size)}d"
)
def test_files_read_back_as_what_was_drawn(tmp_path, spec):
    shifts = {"C-thick": SITE_SHIFTS["C-thick"], "A-sharp": SITE_SHIFTS["A-sharp"]}
    datalist = load_datalist(write_federation(tmp_path / "out", spec, shifts, seed=3))
    assert datalist.classes == spec.classes and datalist.task == spec.task
    assert len(datalist.cases) == 2 * spec.cases and {case.site for case in datalist.cases} == set(shifts)
    for case in datalist.cases:
        image = read_image(case)
        assert image.array.shape == (1, *spec.size)
        if spec.format != "png":
            assert image.spacing == pytest.approx((shifts[case.site].zoom,) * len(spec.size))
        if spec.task == "segmentation":
            mask = read_mask(case.label).array[0]
            assert mask.shape == spec.size and mask.max() < len(spec.classes)
            if spec.organs == "all" and spec.format == "nifti":
                lung, mirrored = (np.median(image.array[0][m == 1]) for m in (mask, np.flip(mask, 1)))
                assert lung < -400 and lung < mirrored
        if spec.task == "detection":
            for box in case.boxes:
                assert len(box) == 2 * len(spec.size) and np.less_equal(box[len(spec.size) :], spec.size).all()


def test_dicom_and_nifti_hold_the_same_volume(tmp_path):
    arrays = []
    for kind in ("dicom", "nifti"):
        spec = SyntheticSpec(generator="ct", task="segmentation", cases=1, size=(24, 28, 20), format=kind)
        datalist = load_datalist(write_federation(tmp_path / kind, spec, {"s": SiteShift(zoom=1.2)}, seed=1))
        arrays.append(read_image(datalist.cases[0]))
    assert np.array_equal(arrays[0].array, arrays[1].array)
    assert np.ptp(arrays[0].array) > 500


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[4], SPECS[6]], ids=["png", "dicom", "nifti"])
def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path, spec):
    shifts = site_shifts(2)
    backwards = dict(reversed(shifts.items()))
    folders = [tmp_path / name for name in "abcd"]
    for folder, order, seed in zip(folders, (shifts, shifts, shifts, backwards), (1, 1, 2, 1), strict=True):
        write_federation(folder, spec, order, seed)
    assert digest(folders[0]) == digest(folders[1]) != digest(folders[2])
    # A site's images do not depend on which other sites there are, nor on their order.
    assert digest(folders[0] / "A-sharp") == digest(folders[3] / "A-sharp")


def test_some_patients_have_two_images_of_one_anatomy(tmp_path):
    spec = SyntheticSpec(cases=40, size=(32, 32))
    datalist = load_datalist(write_federation(tmp_path / "out", spec, {"s": SiteShift(noise=0.01)}, seed=0))
    by_patient = itertools.groupby(datalist.cases, key=lambda case: case.patient)
    pairs = [group for _, items in by_patient if len(group := list(items)) == 2]
    assert pairs
    other = read_image(datalist.cases[-1]).array
    for first, second in pairs[:3]:
        a, b = read_image(first).array, read_image(second).array
        assert not np.array_equal(a, b)
        assert np.abs(a - b).mean() < 0.5 * np.abs(a - other).mean()
        assert first.label == second.label


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    import medfl.data.synthetic.write as module

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_datalist", fail)
    with pytest.raises(OSError, match="disk full"):
        write_federation(tmp_path / "out", SPECS[0], site_shifts(1), 0)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_federation(tmp_path, SPECS[0], site_shifts(1), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"generator": "chest", "task": "detection"},
        {"size": (32, 32, 32)},
        {"generator": "ct", "size": (32, 32, 32), "format": "png"},
        {"size": (8, 8)},
        {"unknown": 1},
    ],
)
def test_impossible_specs_are_refused(wrong):
    with pytest.raises(ValidationError):
        SyntheticSpec.model_validate(wrong)


def mean_intensity_auc(images, labels):
    from sklearn.metrics import roc_auc_score

    auc = roc_auc_score(labels, images.mean(axis=(1, 2)))
    return max(auc, 1 - auc)


def test_pneumonia_can_be_learnt_but_not_from_the_brightness():
    """Logistic regression on coarse pixels generalises; the mean intensity alone says little."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    found = draw(chest, (32, 32), 500, SiteShift(), seed=5)
    images = np.stack([image[0] for _, image in found])
    labels = np.array([phantom.label for phantom, _ in found])
    features = images.reshape(len(images), 16, 2, 16, 2).mean(axis=(2, 4)).reshape(len(images), -1)
    model = LogisticRegression(C=0.3, max_iter=500).fit(features[:350] - 0.5, labels[:350])
    learnt = roc_auc_score(labels[350:], model.decision_function(features[350:] - 0.5))
    assert learnt > 0.75
    assert mean_intensity_auc(images[350:], labels[350:]) < learnt - 0.05
    shuffled = np.random.default_rng(0).permutation(labels)
    fake = LogisticRegression(C=0.3, max_iter=500).fit(features[:350] - 0.5, shuffled[:350])
    assert roc_auc_score(labels[350:], fake.decision_function(features[350:] - 0.5)) < 0.7


def test_a_shift_is_frozen():
    with pytest.raises(ValidationError):
        SiteShift().noise = 1.0
