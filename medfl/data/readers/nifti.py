"""NIfTI-1 and -2 by nibabel, reoriented to the closest RAS axes."""

import gzip
import logging
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Image
from medfl.data.readers.base import Reader, integers, limit_size, reading
from medfl.data.readers.geometry import canonical
from medfl.errors import DataError

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
GZIP = b"\x1f\x8b"
DEFLATE_LIMIT = 1100
"""A gzip stream cannot grow by more than 1032 (RFC 1951); a header that declares more than this lies."""

# nibabel logs what it finds odd in a header; a reader says it by DataError or by a note.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


class NiftiReader(Reader):
    """`.nii`, `.nii.gz` and `.hdr`/`.img`; 3D (or 2D, axes as stored), one channel or NIfTI's own RGB type."""

    def accepts(self, path: Path, head: bytes) -> bool:
        magic = head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
        return magic or (not path.is_dir() and path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")))

    def read(self, path: Path, *, index: int | None = None, array: str = "") -> Image:
        with reading(path, "NIfTI"):
            image = _open(path)
            return _oriented(path, image, _voxels(path, image).astype(np.float32, copy=False))

    def read_mask(self, path: Path) -> Image:
        with reading(path, "NIfTI"):
            image = _open(path)
            return _oriented(path, image, integers(path, _voxels(path, image)))


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    if packed:
        return _unpack(path)
    # No memory map: a file that shrinks later would end the process instead of raising.
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.nifti1.Nifti1Pair):
        raise DataError.at(path, f"is {type(image).__name__}, not NIfTI", "convert it to NIfTI")
    size = Path(image.file_map["image"].filename).stat().st_size
    # A packed .img beside a plain .hdr is small on disk; only the stream itself can tell.
    declared = _declared(path, image.header)
    if declared > size * (DEFLATE_LIMIT if image.file_map["image"].filename.endswith(".gz") else 1):
        raise DataError.at(path, f"ends after {size} of {declared} bytes", "copy or export the file again")
    return image


def _unpack(path: Path) -> Any:
    """A gzipped file, read to its end: the checksum there is what finds corruption."""
    with gzip.open(path) as file:
        head = file.read(540)
        kind = nib.Nifti2Image if b"n+2" in head[4:7] else nib.Nifti1Image
        size = kind.header_class.sizeof_hdr
        declared = _declared(path, kind.header_class(head[:size], check=False))
        if declared > path.stat().st_size * DEFLATE_LIMIT:
            raise DataError.at(path, f"declares {declared} bytes, more than it can hold", "export the file again")
        content = head + file.read(max(declared - len(head), 0))
        while file.read(2**20):
            pass
    if len(content) < declared:
        raise DataError.at(path, f"ends after {len(content)} of {declared} bytes", "copy or export the file again")
    return kind.from_bytes(content)


def _declared(path: Path, header: Any) -> int:
    count = math.prod(int(size) for size in header.get_data_shape())
    limit_size(path, count)
    return int(header.get_data_offset()) + count * int(header.get_data_dtype().itemsize)


def _voxels(path: Path, image: Any) -> Array:
    """Scaled voxels [channel, *space] before reorientation; integers stay integers where the file has no scale."""
    shape, kind = _space(path, image.shape), image.header.get_data_dtype()
    if kind.kind == "c":
        raise DataError.at(path, "holds complex numbers", "store the magnitude")
    if kind.fields is not None:
        raw = np.asarray(image.dataobj.get_unscaled())
        return np.stack([raw[name].reshape(shape) for name in ("R", "G", "B")])
    if image.dataobj.slope == 1 and image.dataobj.inter == 0:
        return np.asarray(image.dataobj.get_unscaled()).reshape(1, *shape)
    return np.asarray(image.dataobj, dtype=np.float32).reshape(1, *shape)


def _space(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing axes of one."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 3:
        raise DataError.at(
            path,
            f"has {len(shape)} axes {tuple(shape)}; an image has 2 or 3",
            "store each time point or contrast as a file of its own",
        )
    return tuple(shape)


def _oriented(path: Path, image: Any, array: Array) -> Image:
    header = image.header
    notes = []
    scale = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    if scale != 1.0:
        notes.append(f"spacing converted from {header.get_xyzt_units()[0]} to millimetres")
    if array.ndim == 3:
        spacing = tuple(abs(float(size)) * scale or 1.0 for size in header.get_zooms()[:2])
        if not all(map(math.isfinite, spacing)):
            raise DataError.at(path, f"has spacing {spacing}", "correct the header")
        return Image(np.ascontiguousarray(array), spacing, None, tuple(notes))
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        notes.append("the header gives no orientation: axes are taken as stored")
    affine: npt.NDArray[np.float64] = np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    return canonical(path, array, affine, notes)
