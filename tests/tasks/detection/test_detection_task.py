"""The detection task: it learns, evaluates additively, and survives images without boxes and odd sizes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from medfl.data.base import SampleInfo
from medfl.errors import DataError, RunError
from medfl.tasks.base import add
from medfl.tasks.detection import Detection
from medfl.tasks.detection.config import DetectionConfig
from medfl.tasks.detection.detector import Detector

CPU = torch.device("cpu")
INFO = SampleInfo("case", "patient", (1.0, 1.0))


class Discs:
    """Images with bright and dark discs (balls in 3D) on noise: class 0 bright, class 1 dark."""

    def __init__(self, count: int, size: tuple[int, ...], seed: int = 0, *, lesions: bool = True) -> None:
        rng = np.random.default_rng(seed)
        made = [_disc_image(rng, size, lesions) for _ in range(count)]
        self.images, self.boxes, self.classes = ([item[i] for item in made] for i in range(3))

    @property
    def cases(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Mapping[str, Any]:
        return {
            "image": np.stack([self.images[i] for i in indices]),
            "box": [self.boxes[i] for i in indices],
            "label": [self.classes[i] for i in indices],
        }

    def info(self, index: int) -> SampleInfo:
        return INFO

    def labels(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64)


def _disc_image(rng: np.random.Generator, size: tuple[int, ...], lesions: bool) -> tuple[np.ndarray, ...]:
    image = rng.normal(0, 0.3, size)
    grid = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij"))
    boxes, labels = [], []
    for _ in range(int(rng.integers(1, 4)) if lesions else 0):
        radius = rng.uniform(3, 6)
        centre = np.array([rng.uniform(radius, n - radius) for n in size])
        label = int(rng.integers(0, 2))
        inside = ((grid - centre.reshape(-1, *[1] * len(size))) ** 2).sum(axis=0) < radius**2
        image[inside] = (2.0, -2.0)[label]
        boxes.append(np.concatenate([centre - radius, centre + radius]))
        labels.append(label)
    box = np.array(boxes, dtype=np.float32).reshape(-1, 2 * len(size))
    return image[None].astype(np.float32), box, np.array(labels, dtype=np.int64)


def make(nd: int = 2, **settings: Any) -> Detection:
    small = {"backbone": {"layers": (1, 1), "width": 8}, "pyramid_channels": 16, "anchors": ((6.0,) * nd, (8.0,) * nd)}
    return Detection(DetectionConfig(**{"classes": ("bright", "dark"), "spatial_dims": nd, **small, **settings}))


def train(task: Detection, samples: Discs, steps: int, *, batch: int = 8, rate: float = 4e-3) -> torch.nn.Module:
    torch.manual_seed(0)
    network = task.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        loss = task.loss(network, task.to_device(samples.batch(rng.permutation(len(samples))[:batch]), CPU))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def value(task: Detection, network: torch.nn.Module, samples: Discs, name: str) -> float:
    found = task.metrics(task.evaluate(network, samples, CPU))
    return next(m.value for m in found if m.name == name and not m.class_name)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("class_loss", ["bce_hard_negative", "focal"])
def test_it_learns_to_find_discs(class_loss: str) -> None:
    task = make(class_loss=class_loss)
    test = Discs(16, (64, 64), seed=1)
    torch.manual_seed(0)
    assert value(task, task.build(), test, "map_10") < 0.1
    network = train(task, Discs(32, (64, 64)), steps=40)
    assert value(task, network, test, "map_10") > 0.5
    assert value(task, network, test, task.primary) > 0.3


@pytest.mark.parametrize("class_loss", ["bce_hard_negative", "focal"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("nd", [2, 3])
def test_batches_without_any_box_train_every_parameter(nd: int, class_loss: str, box_loss: str) -> None:
    task = make(nd, class_loss=class_loss, box_loss=box_loss)
    network = task.build()
    for kinds in ((False, False), (True, False)):
        parts = [Discs(1, (24,) * nd, lesions=kind).batch([0]) for kind in kinds]
        batch = {"image": np.concatenate([p["image"] for p in parts])}
        batch |= {key: [p[key][0] for p in parts] for key in ("box", "label")}
        network.zero_grad()
        loss = task.loss(network, task.to_device(batch, CPU))
        loss.backward()
        assert loss.ndim == 0 and loss.item() > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_volume_takes_a_training_step() -> None:
    task = make(3)
    samples = Discs(2, (20, 24, 18))
    network = train(task, samples, steps=6, batch=2, rate=2e-3)
    torch.manual_seed(0)
    assert value(task, network, samples, "loss") < value(task, task.build(), samples, "loss")


def test_focal_loss_is_the_sum_over_anchors_by_positives() -> None:
    task = make(class_loss="focal")
    detector = Detector(task.build(), task.config)
    logits = torch.tensor([[[0.5, -1.0], [2.0, -3.0], [-0.2, 0.1]]])
    target = {"box": torch.zeros(1, 4), "label": torch.tensor([1])}
    matched = torch.tensor([-1, 0, 0])
    wanted = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    p = logits[0].sigmoid()
    p_t = torch.where(wanted == 1, p, 1 - p)
    alpha = torch.where(wanted == 1, 0.25, 0.75)
    plain = (-alpha * (1 - p_t) ** 2 * p_t.log()).sum() / 2
    torch.testing.assert_close(detector.compute_cls_loss(logits, [target], [matched]), plain)
    none = detector.compute_cls_loss(
        logits, [{"box": torch.zeros(0, 4), "label": target["label"][:0]}], [matched * 0 - 1]
    )
    torch.testing.assert_close(none, (-0.75 * p**2 * (1 - p).log()).sum())


def test_anchors_are_exactly_those_of_the_study() -> None:
    task = make(anchors=((5.0, 7.0),))
    detector = Detector(task.build(), task.config)
    anchors = detector.outputs(torch.zeros(1, 1, 32, 32)).anchors[0]
    extents = {tuple(extent) for extent in (anchors[:, 2:] - anchors[:, :2]).tolist()}
    assert extents == {(5.0, 7.0), (10.0, 14.0)}
    centres = (anchors[: 16 * 16, 2:] + anchors[: 16 * 16, :2]) / 2
    assert centres.min() == 1 and centres.max() == 31


@pytest.mark.parametrize("size", [(45, 37), (13, 64)])
def test_odd_sizes_are_padded_and_boxes_stay_inside(size: tuple[int, int]) -> None:
    task = make(inference={"score_threshold": 0.0})
    samples = Discs(2, size)
    network = train(task, samples, steps=3, batch=2)
    prediction = task.predict(network, {"image": samples.images[0]}, INFO, CPU)
    boxes = np.array(prediction.data["boxes"])
    assert len(boxes) > 0
    assert (boxes >= 0).all() and (boxes[:, 2:] <= size).all() and (boxes[:, 2:] > boxes[:, :2]).all()


def test_images_of_different_shapes_train_together() -> None:
    task = make()
    parts = [Discs(1, size).batch([0]) for size in ((40, 40), (52, 36))]
    batch = {key: [part[key][0] for part in parts] for key in ("image", "box", "label")}
    loss = task.loss(task.build(), task.to_device(batch, CPU))
    assert loss.isfinite()


def test_boxes_without_area_are_dropped_and_counted() -> None:
    task = make()
    samples = Discs(1, (40, 40))
    network = task.build()
    clean = task.evaluate(network, samples, CPU)
    samples.boxes[0] = np.concatenate([samples.boxes[0], [[4, 4, 4, 9], [9, 9, 3, 20]]]).astype(np.float32)
    samples.classes[0] = np.concatenate([samples.classes[0], [0, 1]])
    assert task.loss(network, task.to_device(samples.batch([0]), CPU)).isfinite()
    statistics = task.evaluate(network, samples, CPU)
    assert statistics.pop("dropped") == 2 and clean.pop("dropped") == 0
    for name, array in clean.items():
        np.testing.assert_array_equal(statistics[name], array)


def test_wrong_labels_are_refused_all_at_once() -> None:
    task = make()
    box = np.array([[0.0, 0.0, 9.0, 9.0]])
    batch = {"image": np.zeros((2, 1, 32, 32)), "box": [box, box], "label": [np.array([2]), np.array([0, 1])]}
    with pytest.raises(DataError) as caught:
        task.to_device(batch, CPU)
    assert [fault.where for fault in caught.value.faults] == ["image 0 of the batch", "image 1 of the batch"]
    assert "0 bright, 1 dark" in str(caught.value)


def test_a_diverged_network_is_a_run_error() -> None:
    task = make()
    network = task.build()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="learning rate"):
        task.loss(network, task.to_device(Discs(1, (32, 32)).batch([0]), CPU))


def test_statistics_of_sites_add_up_to_the_pooled_ones() -> None:
    task = make(inference={"score_threshold": 0.0})
    samples = Discs(6, (48, 40))
    network = train(task, samples, steps=10, batch=4)
    pooled = task.evaluate(network, samples, CPU)
    total = task.empty()
    for part in ([0, 1], [2, 3, 4, 5]):
        add(total, task.evaluate(network, samples, CPU, part))
    assert pooled["found"].sum() > 0
    for name, array in pooled.items():
        np.testing.assert_allclose(total[name], array, rtol=1e-12 if name == "loss" else 0, atol=0)


def test_evaluation_leaves_network_and_generator_alone() -> None:
    task = make()
    samples = Discs(2, (40, 40))
    network = task.build()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = task.evaluate(network, samples, CPU)
    assert network.training and torch.equal(torch.get_rng_state(), before)
    network.eval()
    torch.manual_seed(4)
    second = task.evaluate(network, samples, CPU)
    assert not network.training
    np.testing.assert_array_equal(first["loss"], second["loss"])
    assert first["loss"][1] == 2


def test_prediction_is_json_with_class_names() -> None:
    task = make(inference={"score_threshold": 0.0, "detections": 7})
    prediction = task.predict(task.build(), {"image": Discs(1, (40, 40)).images[0]}, INFO, CPU)
    data = json.loads(json.dumps(prediction.data))
    assert len(data["boxes"]) == len(data["labels"]) == len(data["scores"]) == 7
    assert set(data["labels"]) <= {"bright", "dark"}
    assert data["scores"] == sorted(data["scores"], reverse=True)


class Local(torch.nn.Module):
    """A stand-in network whose outputs depend on nothing outside a cell, so windows must not change them."""

    spatial_dims, num_classes, num_anchors, size_divisible = 2, 2, 2, (4, 4)
    cls_key, box_reg_key = "classification", "box_regression"

    def forward(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        maps = [torch.nn.functional.avg_pool2d(images, stride) for stride in (2, 4)]
        return {
            self.cls_key: [m.repeat(1, 4, 1, 1) for m in maps],
            self.box_reg_key: [m.repeat(1, 8, 1, 1) for m in maps],
        }


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("size", [(72, 40), (33, 90), (16, 70)])
def test_windows_lie_on_the_grid_of_the_maps(size: tuple[int, int], overlap: float) -> None:
    task = make(inference={"patch": (32, 32), "overlap": overlap})
    detector = Detector(Local(), task.config)
    torch.manual_seed(0)
    image = torch.rand(1, 1, *size)
    whole, windows = detector.outputs(image), detector.outputs(image, windows=True)
    assert detector._window(size) is not None
    for key, values in whole.values.items():
        torch.testing.assert_close(windows.values[key], values, rtol=1e-5, atol=1e-5)


def test_images_within_the_patch_are_seen_whole() -> None:
    detector = Detector(Local(), make(inference={"patch": (64, 64)}).config)
    assert detector._window((64, 20)) is None
    assert detector._window((68, 20)) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu() -> None:
    device = torch.device("cuda")
    task = make()
    network = task.build().to(device)
    for lesions in (True, False):
        samples = Discs(2, (40, 40), lesions=lesions)
        loss = task.loss(network, task.to_device(samples.batch([0, 1]), device))
        loss.backward()
        assert loss.device.type == "cuda"
        assert task.evaluate(network, samples, device)["images"] == 2
