"""What a local training leaves to be sent: finite, or not at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import MedflError, RunError
from medfl.learning.messages import PROTOTYPES, TrainOrder
from medfl.update.base import Payload
from medfl.update.wire import as_bytes


def prototypes_of(scratch: Mapping[str, Any], order: TrainOrder) -> Payload | None:
    """What a rule left to be sent beside the update, without loss; None where there is nothing."""
    if PROTOTYPES not in scratch:
        return None
    found = scratch[PROTOTYPES].cpu().numpy()
    check_finite({"prototypes": found}, order)
    return Payload("fp32", found.size, (as_bytes(found),)) if found.size else None


def check_finite(arrays: Mapping[str, npt.NDArray[Any]], order: TrainOrder) -> None:
    """RunError that names every array with a value that is not finite."""
    wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise not_finite(wrong, order)


def not_finite(wrong: Sequence[str], order: TrainOrder) -> MedflError:
    """About arrays by name."""
    return RunError.at(
        f"site {order.site}, round {order.round}",
        f"training left values that are not finite in {', '.join(wrong)}",
        "lower the learning rates or set local.gradient_clip",
    )
