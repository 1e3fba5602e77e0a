"""Anchor shapes that fit given boxes, to be written into a study.

In a federation all sites need the same anchors, so shapes are fitted once, on public or pilot boxes, and the study
names them; nothing here runs during training.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfl.errors import DataError

_MOST_BOXES = 2000


def fit_anchors(
    boxes: npt.ArrayLike, count: int, scales: Sequence[float] = (1.0, 2.0, 4.0), seed: int = 0
) -> tuple[tuple[float, ...], ...]:
    """`count` shapes of the finest level, such that with all `scales` they fit the boxes best, smallest first.

    boxes: [N, 2 * nd] in pixels of the preprocessed images. Minimises the mean of -(1 - IoU)^2 log IoU, with IoU that
    of concentric boxes and the best anchor of each box, by differential evolution (Zlocha et al. 2019, arXiv
    1906.02283; there ratios and scales of one square, here free shapes). Of more than 2000 boxes 2000 are drawn.
    """
    from scipy.optimize import differential_evolution

    extent = _extents(boxes)
    if len(extent) > _MOST_BOXES:
        extent = np.random.default_rng(seed).choice(extent, _MOST_BOXES, replace=False)
    nd = extent.shape[1]
    factors = np.asarray(scales, dtype=np.float64)
    logs = np.log(extent)
    low, high = logs.min(axis=0) - np.log(factors.max()), logs.max(axis=0) - np.log(factors.min())
    bounds = [(low[axis], high[axis] + 1e-6) for _ in range(count) for axis in range(nd)]

    def misfit(values: npt.NDArray[np.float64]) -> float:
        shapes = np.exp(values).reshape(count, 1, nd) * factors[None, :, None]
        iou = shape_iou(extent, shapes.reshape(-1, nd)).max(axis=1)
        return float(np.mean(-((1 - iou) ** 2) * np.log(iou)))

    fitted = differential_evolution(misfit, bounds, seed=seed, maxiter=200, popsize=10, tol=1e-4, polish=False)
    rounded = np.maximum(np.exp(fitted.x).reshape(count, nd).round(1), 0.1)
    return tuple(sorted((tuple(float(v) for v in shape) for shape in rounded), key=lambda s: (float(np.prod(s)), s)))


def shape_iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IoU of concentric boxes with the extents [N, nd] and [M, nd], as [N, M]."""
    common = np.prod(np.minimum(a[:, None], b[None]), axis=2)
    iou: npt.NDArray[np.float64] = common / (np.prod(a, axis=1)[:, None] + np.prod(b, axis=1)[None] - common)
    return iou


def _extents(boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (4, 6) or not len(array):
        raise DataError.at("boxes", f"an array of shape {array.shape} was given", "give [N, 4] or [N, 6] with N > 0")
    nd = array.shape[1] // 2
    extent = array[:, nd:] - array[:, :nd]
    if not (extent > 0).all():
        bad = int((~(extent > 0).all(axis=1)).sum())
        raise DataError.at("boxes", f"{bad} of {len(array)} boxes have no area", "leave them out")
    return extent
