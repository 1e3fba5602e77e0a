"""One loss weight a sample against class imbalance, from the label counts of one site."""

from typing import Literal

import numpy as np
import numpy.typing as npt

EFFECTIVE_BETA = 0.999
"""Cui et al. 2019 (arXiv 1901.05555) use 0.9 to 0.9999; a class of 1/(1 - beta) samples counts as well covered."""

LARGEST_RATIO = 20.0
"""A class of a few cases must not own the gradient: no sample counts more than so many of the largest class."""


def sample_weights(
    labels: npt.NDArray[np.int64], classes: int, scheme: Literal["effective", "inverse"]
) -> npt.NDArray[np.float32]:
    """Weights [N] of samples with labels [N], with mean 1 over the site.

    "inverse": w_c = 1 / n_c. "effective": w_c = (1 - beta) / (1 - beta^n_c). Classes without samples take no part, so
    a site with a single class gets ones; no weight is more than LARGEST_RATIO times that of the largest class.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    size = np.maximum(counts, 1.0)
    weight = 1.0 / size if scheme == "inverse" else (1.0 - EFFECTIVE_BETA) / (1.0 - EFFECTIVE_BETA**size)
    weight = np.minimum(weight, LARGEST_RATIO * weight[counts.argmax()])
    chosen: npt.NDArray[np.float32] = weight.astype(np.float32)[labels]
    return chosen / chosen.mean() if len(chosen) else chosen
