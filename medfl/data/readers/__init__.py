"""Readers: `read_image`, `read_path` and `read_mask` for NIfTI, DICOM, PNG, JPEG and npz."""

from pathlib import Path
from typing import cast

from medfl.data.base import Case, Image
from medfl.data.readers.base import HEAD, READERS, Reader, reading
from medfl.errors import DataError


def read_image(case: Case) -> Image:
    """The image of a case, float32 `[channel, *space]`; DataError when it cannot be read."""
    return read_path(case.image, index=case.index, array=case.array)


def read_path(path: Path, *, index: int | None = None, array: str = "") -> Image:
    """The image at `path`, float32 `[channel, *space]` in the file's own value scale.

    path: a NIfTI, DICOM, PNG, JPEG, BMP, TIFF or npz file, or the folder of a DICOM series.
    index, array: for npz the entry and the array's name; for a DICOM folder with several series `array` is the
        `Series.id` of one of them.

    Raises DataError, and nothing else, for whatever the file may contain.
    """
    return _reader(path).read(path, index=index, array=array)


def read_mask(path: Path) -> Image:
    """The label map at `path`, integers `[1, *space]` (uint8 where they fit, else int32); DataError as `read_path`."""
    return _reader(path).read_mask(path)


def _reader(path: Path) -> Reader:
    head = b""
    with reading(path, "an image"):
        if not path.is_dir():
            with path.open("rb") as file:
                head = file.read(HEAD)
    for kind in READERS.targets:
        reader = cast(type[Reader], READERS.load(kind))()
        if reader.accepts(path, head):
            return reader
    raise DataError.at(
        path,
        "is empty" if not head and path.is_file() else "is in no format that medfl reads",
        f"give one of: {', '.join(READERS.targets)}",
    )
