"""Places that the coordinator names to all sites of a round alike, in the header of their orders."""

import base64
import binascii
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.codecs.indices import pack_indices, unpack_indices
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice

MOST_BYTES = 2 * 2**20
"""Bytes of an order's header that places may take."""


def named(places: npt.NDArray[np.int64]) -> tuple[dict[str, Any], int]:
    """The content of a choice that names these places, and the bytes that they take."""
    packed = pack_indices(places)
    return {"places": base64.b64encode(packed).decode()}, len(packed)


def places_of(choice: Choice, count: int, size: int) -> Coordinates:
    """The `count` places that a choice names in a vector of `size` values; RunError when it names no such."""
    text = choice.content.get("places")
    try:
        packed = base64.b64decode(text if isinstance(text, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        where = f"site {choice.site}, round {choice.round}"
        raise RunError.at(where, "was not told which coordinates are sent") from None
    return Coordinates(unpack_indices(packed, count, size))


def drawing(kind: str, seed: int, round_: int) -> np.random.Generator:
    """The coordinator's generator of a round: the same for all its sites, whoever is asked first."""
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), round_])
