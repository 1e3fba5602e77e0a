"""The overlay shows predictions, truth and, for volumes, the slice that most boxes cross."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfl.tasks.base import Prediction
from medfl.tasks.detection import Detection
from medfl.tasks.detection.config import DetectionConfig
from medfl.tasks.detection.overlay import most_crossed

BACKBONE = {"layers": (1, 1), "width": 8}


def drawn(
    tmp_path: Path, image: np.ndarray, boxes: list[list[float]], truth: dict[str, np.ndarray] | None
) -> np.ndarray:
    task = Detection(DetectionConfig(classes=("a", "b"), spatial_dims=image.ndim - 1, backbone=BACKBONE))
    data = {"boxes": boxes, "labels": ["b"] * len(boxes), "scores": [0.75] * len(boxes)}
    path = tmp_path / "deep" / "overlay.png"
    task.overlay(image, Prediction(data), truth, path)
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)


def coloured(pixels: np.ndarray) -> np.ndarray:
    """Which pixels are not grey."""
    return (pixels.max(axis=2) - pixels.min(axis=2)) > 60


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_box_is_drawn_where_it_lies(tmp_path: Path, channels: int) -> None:
    image = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(1, 40, 60).repeat(channels, axis=0)
    assert not coloured(drawn(tmp_path, image, [], None)).any()
    pixels = coloured(drawn(tmp_path, image, [[30.0, 2.0, 38.0, 12.0]], None))
    rows, columns = np.nonzero(pixels)
    assert rows.min() > pixels.shape[0] / 2 and columns.max() < pixels.shape[1] / 2, "rows and columns are swapped"


def test_truth_is_dashed(tmp_path: Path) -> None:
    image, box = np.zeros((1, 40, 40), dtype=np.float32), [4.0, 4.0, 36.0, 36.0]
    truth = {"box": np.array([box]), "label": np.array([1])}
    solid = coloured(drawn(tmp_path, image, [box], None)).sum()
    dashed = coloured(drawn(tmp_path, image, [], truth)).sum()
    assert 0.3 * solid < dashed < 0.9 * solid


def test_a_volume_shows_only_boxes_of_its_slice(tmp_path: Path) -> None:
    image = np.zeros((1, 20, 30, 10), dtype=np.float32)
    deep = [[2.0, 2, 6, 8, 8, 9], [10.0, 10, 7, 15, 15, 9]]
    both = coloured(drawn(tmp_path, image, deep, None)).sum()
    shallow = coloured(drawn(tmp_path, image, [*deep, [3.0, 3, 0, 18, 28, 2]], None)).sum()
    assert both > 0 and abs(shallow - both) < 0.1 * both


def test_the_slice_that_most_boxes_cross() -> None:
    boxes = [np.array([0, 0, low, 5, 5, high], dtype=float) for low, high in ((0, 4), (3, 9), (3.2, 6))]
    assert most_crossed(boxes, 10) in (4, 5)
    assert most_crossed(boxes[:2], 10) == 3
    assert most_crossed([], 10) == 5
