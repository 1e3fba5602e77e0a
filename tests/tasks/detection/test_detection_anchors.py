"""Fitted anchors overlap the boxes more than unfitted ones; wrong boxes are refused."""

import numpy as np
import pytest

from medfl.errors import DataError
from medfl.tasks.detection.anchors import fit_anchors, shape_iou


def overlap(extents: np.ndarray, anchors: tuple[tuple[float, ...], ...], scales: tuple[float, ...]) -> float:
    shapes = np.concatenate([np.array(anchors) * scale for scale in scales])
    return float(shape_iou(extents, shapes).max(axis=1).mean())


@pytest.mark.parametrize("nd", [2, 3])
def test_fitted_shapes_overlap_more(nd: int) -> None:
    rng = np.random.default_rng(0)
    kinds = np.array([[8.0, 24.0, 6.0], [20.0, 20.0, 12.0]])[:, :nd]
    extents = kinds[rng.integers(0, 2, 200)] * rng.uniform(0.9, 1.1, (200, 1))
    start = rng.uniform(0, 100, (200, nd))
    fitted = fit_anchors(np.concatenate([start, start + extents], axis=1), 2, scales=(1.0,))
    assert overlap(extents, fitted, (1.0,)) > 0.85
    assert overlap(extents, ((6.0,) * nd, (9.0,) * nd), (1.0, 2.0)) < 0.7
    assert fitted == fit_anchors(np.concatenate([start, start + extents], axis=1), 2, scales=(1.0,))


def test_scales_share_the_work() -> None:
    boxes = np.array([[0, 0, side, side] for side in (8.0, 16.0, 32.0)])
    (shape,) = fit_anchors(boxes, 1, scales=(1.0, 2.0, 4.0))
    assert shape == pytest.approx((8.0, 8.0), abs=0.11)


def test_wrong_boxes_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 boxes have no area"):
        fit_anchors([[0, 0, 4, 4], [0, 0, 0, 4]], 1)
    with pytest.raises(DataError, match=r"\(0,\)"):
        fit_anchors([], 1)
