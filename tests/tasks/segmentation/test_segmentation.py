"""Segmentation: known Dice and distances, the policy for empty masks, exact sums, student and teacher."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medfl.data.base import SampleInfo
from medfl.errors import DataError
from medfl.tasks.base import TASKS, Metric, Statistics, add
from medfl.tasks.networks.blocks import parameter_count
from medfl.tasks.segmentation import Segmentation, metrics
from medfl.tasks.segmentation.config import SegmentationConfig

CPU = torch.device("cpu")
CLASSES = ("background", "liver", "lesion")
Mask = npt.NDArray[np.uint8]


def task(**changes: Any) -> Segmentation:
    settings: dict[str, Any] = {"classes": CLASSES, "network": {"width": 4, "depth": 2}, "hausdorff": True}
    return Segmentation(SegmentationConfig.model_validate(settings | changes))


class Volumes:
    """Samples in memory, of any sizes."""

    def __init__(self, labels: Sequence[Mask], images: Sequence[Any] | None = None, mm: float = 1.0) -> None:
        self.truth, self.mm, self.cases = list(labels), mm, len(labels)
        self.images = [label[None].astype(np.float32) for label in labels] if images is None else list(images)

    def __len__(self) -> int:
        return len(self.truth)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, Any]:
        found: dict[str, Any] = {"image": [self.images[i] for i in indices], "label": [self.truth[i] for i in indices]}
        alike = len({image.shape for image in found["image"]}) == 1
        return {name: np.stack(arrays) for name, arrays in found.items()} if alike else found

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), str(index), (self.mm,) * self.truth[index].ndim)

    def labels(self) -> npt.NDArray[np.int64]:
        return np.array([len(np.unique(mask[mask > 0])) for mask in self.truth])


class Oracle(nn.Module):
    """A network that reads the mask off the image: class 1 where it is 1, and so on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20.0 * nn.functional.one_hot(x[:, 0].round().long(), 3).movedim(-1, 1).float()


@pytest.fixture
def raw_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Oracle reads class numbers, so it must see the image as it is."""
    monkeypatch.setattr(
        "medfl.tasks.images.network_input", lambda images, device, *_: torch.from_numpy(images).to(device)
    )


def cuboid(shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], number: int = 1) -> Mask:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = number
    return mask


def discs(count: int, seed: int) -> Volumes:
    """Bright discs of class 1, some with a dark core of class 2, under noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:24, :24]
    masks, images = [], []
    for _ in range(count):
        centre, radius = rng.uniform(8, 16, 2), rng.uniform(5, 7)
        distance = np.hypot(rows - centre[0], columns - centre[1])
        mask = (distance < radius).astype(np.uint8) + (distance < radius / 2)
        masks.append(mask.astype(np.uint8))
        images.append((np.array([0.0, 1.0, -1.0])[mask] + rng.normal(0, 0.3, mask.shape))[None].astype(np.float32))
    return Volumes(masks, images)


def named(found: Sequence[Metric]) -> dict[tuple[str, str], Metric]:
    assert len({(m.name, m.class_name) for m in found}) == len(found)
    return {(m.name, m.class_name): m for m in found}


def compare(predicted: Mask, truth: Mask, spacing: Sequence[float]) -> dict[tuple[str, str], Metric]:
    return named(metrics.metrics(metrics.of_image(predicted, truth, 0.5, 3, True, spacing), CLASSES))


@pytest.mark.usefixtures("raw_values")
def test_a_perfect_prediction() -> None:
    truth = cuboid((12, 12), (2, 2), (6, 6)) + cuboid((12, 12), (4, 4), (2, 2))
    found = named(task().metrics(task().evaluate(Oracle(), Volumes([truth, truth]), CPU)))
    for name in ("dice", "iou", "global_dice"):
        assert found[name, ""].value == found[name, "liver"].value == found[name, "lesion"].value == 1.0
    assert found["hd95", ""].value == 0.0
    assert found["dice", "lesion"].n == found["dice", ""].n == found["loss", ""].n == 2
    assert found["loss", ""].value < 0.01


@pytest.mark.parametrize(("axis", "mm"), [(0, 3.0), (1, 1.0), (2, 0.5)])
def test_a_known_shift_in_millimetres(axis: int, mm: float) -> None:
    """A cube of side 8 moved by 2 voxels: overlap 6/8, and two faces that lie 2 voxels of that axis apart."""
    start = tuple(3 + 2 * (a == axis) for a in range(3))
    found = compare(cuboid((16, 16, 16), start, (8, 8, 8)), cuboid((16, 16, 16), (3, 3, 3), (8, 8, 8)), (3.0, 1.0, 0.5))
    assert found["dice", "liver"].value == pytest.approx(0.75)
    assert found["iou", "liver"].value == pytest.approx(0.6)
    assert found["hd95", "liver"].value == pytest.approx(2 * mm)


def test_the_order_of_the_overall_metrics_and_nothing_but_what_was_asked() -> None:
    statistics = task(hausdorff=False).empty()
    names = [(m.name, m.class_name) for m in task(hausdorff=False).metrics(statistics)]
    assert names[:4] == [("dice", ""), ("iou", ""), ("global_dice", ""), ("loss", "")]
    assert "hd95" not in statistics and not any(name == "hd95" for name, _ in names)
    assert Segmentation.primary == "dice"


def test_both_empty_does_not_count_and_one_empty_is_a_miss() -> None:
    blank, seen = np.zeros((6, 8), dtype=np.uint8), cuboid((6, 8), (1, 1), (2, 2))
    diagonal = math.hypot(6 * 2.0, 8 * 1.0)
    neither = compare(blank, blank, (2.0, 1.0))
    assert all(math.isnan(neither[n, c].value) and not neither[n, c].n for n, c in neither if n != "loss")
    for predicted, truth in ((blank, seen), (seen, blank)):
        missed = compare(predicted, truth, (2.0, 1.0))
        assert missed["dice", "liver"].value == 0.0 and missed["dice", "liver"].n == 1
        assert missed["hd95", "liver"].value == pytest.approx(diagonal)
        assert missed["dice", "lesion"].n == 0
        assert missed["dice", ""].value == 0.0 and missed["dice", ""].n == 1


@pytest.mark.usefixtures("raw_values")
def test_sums_over_sites_are_exact_where_a_mean_of_sites_is_not() -> None:
    oracle, segmentation = Oracle(), task()
    full, half = cuboid((8, 8), (0, 0), (8, 8)), cuboid((8, 8), (0, 0), (8, 4))
    good, bad = Volumes([full] * 3), Volumes([full], [half[None].astype(np.float32)])
    parts = [segmentation.evaluate(oracle, site, CPU) for site in (good, bad)]
    total = segmentation.empty()
    for part in parts:
        add(total, part)
    everyone = Volumes([full] * 4, [*good.images, *bad.images])
    together = segmentation.evaluate(oracle, everyone, CPU)
    for name, sums in together.items():
        np.testing.assert_allclose(total[name], sums, rtol=1e-6, err_msg=name)

    def dice(statistics: Statistics) -> float:
        return named(segmentation.metrics(statistics))["dice", "liver"].value

    assert dice(total) == pytest.approx((3 + 2 / 3) / 4)
    assert abs(np.mean([dice(part) for part in parts]) - dice(total)) > 0.05


def test_the_global_dice_counts_voxels_and_the_dice_counts_images() -> None:
    small_miss = metrics.of_image(np.zeros((32, 32), np.uint8), cuboid((32, 32), (0, 0), (2, 2)), 0.0, 3, False, (1, 1))
    large_hit = metrics.of_image(*[cuboid((32, 32), (0, 0), (30, 30))] * 2, 0.0, 3, False, (1, 1))
    add(small_miss, large_hit)
    found = named(metrics.metrics(small_miss, CLASSES))
    assert found["dice", "liver"].value == 0.5
    assert found["global_dice", "liver"].value > 0.99


@pytest.mark.parametrize("dims", [2, 3])
def test_the_student_is_ten_times_smaller(dims: int) -> None:
    segmentation = task(spatial_dims=dims, teacher={"width": 16, "depth": 2})
    student, teacher = segmentation.build(), segmentation.build_local()
    assert teacher is not None
    assert parameter_count(teacher) >= 10 * parameter_count(student)
    image = torch.zeros(1, 1, *[8] * dims)
    assert student(image).shape == teacher(image).shape == (1, 3, *[8] * dims)
    assert task().build_local() is None


def test_a_teacher_that_is_too_small_is_refused_with_both_sizes() -> None:
    small = SegmentationConfig(classes=CLASSES, network={"width": 4, "depth": 2})
    size = small.parameters(small.network)
    with pytest.raises(ValidationError, match=rf"network {size}: the teacher must have at least 10"):
        task(teacher={"width": 8, "depth": 2})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": ("a", "a")}, "a twice"),
        ({"classes": ("a",)}, "at least 2"),
        ({"inference": {"patch": (8, 8, 8)}}, "give 2 lengths"),
        ({"network": {"width": 4, "depth": 0}}, "depth"),
        ({"network": {"width": 4, "norm": "batch"}}, "norm"),
        ({"student": {}}, "student"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        task(**wrong)


def test_all_faults_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        task(classes=("a", "a"), teacher={"width": 4, "depth": 2}, inference={"patch": (1,)})
    assert all(word in str(caught.value) for word in ("twice", "teacher", "patch"))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_loss_is_cross_entropy_plus_soft_dice_of_the_foreground(batch_dice: bool) -> None:
    segmentation = task(batch_dice=batch_dice)
    rng = np.random.default_rng(0)
    arrays = {"image": np.zeros((2, 1, 6, 6)), "label": rng.integers(0, 3, (2, 6, 6))}
    batch = segmentation.to_device(arrays, CPU)
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = nn.functional.one_hot(batch.label, 3).movedim(-1, 1).double()
    probability = logits.detach().double().softmax(1)
    axes = (0, 2, 3) if batch_dice else (2, 3)
    dice = (2 * (probability * truth).sum(axes) + 1e-5) / (probability.sum(axes) + truth.sum(axes) + 1e-5)
    expected = -(probability.log() * truth).sum(1).mean() + 1 - dice[..., 1:].mean()
    loss = segmentation.supervised(logits, batch)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.usefixtures("raw_values")
def test_volumes_of_different_sizes_share_a_batch_and_keep_their_metrics() -> None:
    masks = [cuboid((9, 10, 8), (1, 1, 1), (4, 4, 4)), cuboid((12, 8, 9), (2, 2, 2), (4, 4, 4), 2)]
    segmentation, samples = task(spatial_dims=3), Volumes(masks)
    batch = segmentation.to_device(samples.batch([0, 1]), CPU)
    assert batch.image.shape == (2, 1, 12, 10, 9) and batch.label.shape == (2, 12, 10, 9)
    assert int((batch.label[0] == 1).sum()) == 64 and int(batch.label[0, 9:].sum()) == 0
    assert float(batch.image[0, 0, -1, -1, -1]) == pytest.approx(float(samples.images[0].mean()))
    assert torch.isfinite(segmentation.loss(segmentation.build(), batch))
    found = named(segmentation.metrics(segmentation.evaluate(Oracle(), samples, CPU)))
    assert found["dice", ""].value == 1.0 and found["dice", ""].n == 2 and found["dice", "liver"].n == 1


def test_a_mask_with_an_unknown_class_is_refused() -> None:
    with pytest.raises(DataError, match="from 0 to 3"):
        task().to_device({"image": np.zeros((1, 1, 4, 4)), "label": np.full((1, 4, 4), 3) * np.eye(4, dtype=int)}, CPU)


class Recorder(Oracle):
    """Remembers the sizes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape[2:]))
        return super().forward(x)


@pytest.mark.usefixtures("raw_values")
def test_images_larger_than_the_patch_are_seen_by_windows() -> None:
    truth = cuboid((20, 20), (3, 3), (9, 12))
    for patch, expected in (((8, 8), {(8, 8)}), ((20, 24), {(20, 20)}), (None, {(20, 20)})):
        network = Recorder()
        found = task(inference={"patch": patch}).evaluate(network, Volumes([truth]), CPU)
        assert set(network.seen) == expected
        assert named(metrics.metrics(found, CLASSES))["dice", "liver"].value == 1.0


@pytest.mark.parametrize("width", [4, 8])
def test_narrow_students_learn_from_every_seed(width: int) -> None:
    """GroupNorm with one channel a group left some narrow networks undertrained."""
    samples, unseen = discs(24, seed=0), discs(6, seed=1)
    for seed in range(2):
        torch.manual_seed(seed)
        segmentation = task(network={"width": width, "depth": 2}, hausdorff=False)
        network = segmentation.build()
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for step in range(45):
            batch = segmentation.to_device(samples.batch(range(step % 3, 24, 3)), CPU)
            optimizer.zero_grad()
            segmentation.supervised(segmentation.logits(network, batch), batch).backward()
            optimizer.step()
        found = named(segmentation.metrics(segmentation.evaluate(network, unseen, CPU)))
        assert found["dice", "liver"].value > 0.7 and found["dice", "lesion"].value > 0.7
        assert network.training


@pytest.mark.parametrize("shape", [(14, 11), (12, 10, 9)])
@pytest.mark.usefixtures("raw_values")
def test_predictions_and_their_picture(shape: tuple[int, ...], tmp_path: Path) -> None:
    segmentation = task(spatial_dims=len(shape))
    truth = cuboid(shape, (1,) * len(shape), (5,) * len(shape)) + cuboid(shape, (2,) * len(shape), (2,) * len(shape))
    sample = {"image": truth[None].astype(np.float32), "label": truth}
    prediction = segmentation.predict(Oracle(), sample, SampleInfo("a", "p", (1.0,) * len(shape)), CPU)
    np.testing.assert_array_equal(prediction.mask, truth)
    assert prediction.mask is not None and prediction.mask.dtype == np.uint8
    assert prediction.data["voxels"] == dict(zip(CLASSES, np.bincount(truth.ravel()).tolist(), strict=True))
    path = tmp_path / "pictures" / "a.png"
    written = set()
    for shown in (sample, None):
        segmentation.overlay(sample["image"], prediction, shown, path)
        written.add(path.read_bytes())
    assert len(written) == 2


def test_the_study_finds_it() -> None:
    assert TASKS.load("segmentation") is Segmentation
