"""From preprocessed arrays to what a network sees: each whole image to mean 0 and variance 1.

Done before any window is cut out, so that windows look like the images that training saw, and per image, so that gain
and offset of a scanner do not matter. Networks fed with values in 0..1 take several times as many steps.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


def network_input(
    images: npt.NDArray[Any], device: torch.device, statistics: npt.NDArray[np.float32] | None = None
) -> Tensor:
    """The images [B, C, *space] as float32 on the device, each to mean 0 and variance 1 over all its values.

    statistics [B, 2]: for patches, mean and standard deviation of the whole images, which prediction goes by.
    """
    contiguous = np.ascontiguousarray(images, dtype=np.float32)
    # torch warns about read-only memory, which memory-mapped images are
    tensor = torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
    if statistics is None:
        return F.group_norm(tensor.to(device), 1, eps=1e-10)
    mean, deviation = (torch.from_numpy(column).view(-1, *[1] * (tensor.ndim - 1)) for column in statistics.T.copy())
    return ((tensor - mean) / (deviation**2 + 1e-10).sqrt()).to(device)
