"""The reader contract: a file or folder in, an `Image` out, and never anything but DataError in between.

A reader is chosen by the first bytes of a file, not by its name alone. Image files come from many devices and
through many hands; whatever a decoding library raises about one of them becomes a DataError that names the file.
No reader allocates more than the file can honestly need: the declared size is compared with `MAX_VOXELS` and
with the size of the file before memory is taken.

Third parties add readers by the entry-point group `medfl.readers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Image
from medfl.errors import DataError, MedflError
from medfl.plugins import PluginPoint

MAX_VOXELS = 2**30
"""The largest image, in numbers (voxels times channels), that a reader makes: 4 GiB as float32."""

HEAD = 352
"""Bytes of a file that `Reader.accepts` sees: enough for a NIfTI-1 header's magic and DICOM's preamble."""


class Reader(ABC):
    """One image format."""

    @abstractmethod
    def accepts(self, path: Path, head: bytes) -> bool:
        """Whether this reader is the one for the file; `head` holds its first HEAD bytes, none for a folder."""

    @abstractmethod
    def read(self, path: Path, *, index: int | None = None, array: str = "") -> Image:
        """The image, float32 `[channel, *space]` in the file's own value scale. Raises DataError."""

    def read_mask(self, path: Path) -> Image:
        """The file as a label map, integers `[1, *space]`. Raises DataError, also for labels that are no integers."""
        image = self.read(path)
        return Image(integers(path, image.array), image.spacing, image.affine, image.notes)


READERS = PluginPoint(
    "reader",
    "medfl.readers",
    {
        "nifti": "medfl.data.readers.nifti:NiftiReader",
        "picture": "medfl.data.readers.picture:PictureReader",
        "npz": "medfl.data.readers.npz:NpzReader",
        "dicom": "medfl.data.readers.dicom:DicomReader",
    },
)
"""Asked in this order; DICOM comes last because old files have no signature."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a decoding library raises about `path` into a DataError with the library's own words.

    what: the format in words ("NIfTI"). Also catches MemoryError, which is what a forged size ends in.
    """
    try:
        yield
    except MedflError:
        raise
    except FileNotFoundError as error:
        raise DataError.at(path, "does not exist", "correct the path") from error
    except PermissionError as error:
        raise DataError.at(path, "the file may not be read", "give this user read access") from error
    except MemoryError as error:
        raise DataError.at(path, f"the {what} file needs more memory than there is", "check the file") from error
    except BaseException as error:
        # A panic in a decoder written in Rust arrives as a BaseException of no public class.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError.at(
            path, f"cannot be read as {what}: {reason}", "export the image again or leave it out"
        ) from error


def limit_size(path: Path, count: int) -> None:
    """Refuse an image of more than MAX_VOXELS numbers before memory is taken."""
    if count > MAX_VOXELS:
        raise DataError.at(
            path, f"declares {count} numbers, more than the limit of {MAX_VOXELS}", "check the file, or crop the image"
        )
    if count <= 0:
        raise DataError.at(path, "holds no pixels", "leave it out")


def integers(path: Path, array: Array) -> Array:
    """A label map as uint8, or int32 where labels do not fit; DataError for fractions, NaN or several channels."""
    if array.shape[0] != 1:
        if not all(np.array_equal(array[0], channel) for channel in array[1:]):
            raise DataError.at(
                path,
                f"has {array.shape[0]} different channels, so it is a picture and not a label map",
                "store one class number a pixel",
            )
        array = array[:1]
    rounded = _rounded(path, array)
    low, high = int(rounded.min()), int(rounded.max())
    if low < -(2**31) or high >= 2**31:
        raise DataError.at(path, f"has label values up to {max(abs(low), high)}", "store one class number a pixel")
    return rounded.astype(np.uint8 if low >= 0 and high <= 255 else np.int32)


def _rounded(path: Path, array: Array) -> npt.NDArray[Any]:
    if array.dtype.kind in "iub":
        return array
    rounded = np.rint(array)
    wrong = ~(np.abs(array - rounded) <= 1e-3)
    if wrong.any():
        value = array[wrong].flat[0]
        raise DataError.at(
            path,
            f"has labels that are not whole numbers, such as {value:.6g}, at {int(wrong.sum())} of {array.size} pixels",
            "resample masks with nearest neighbour and store integers",
        )
    return rounded
