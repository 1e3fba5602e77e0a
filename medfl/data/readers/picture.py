"""PNG, JPEG, BMP and TIFF by Pillow; 16-bit colour by OpenCV, which Pillow would cut to 8 bits."""

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from medfl.data.base import Array, Image
from medfl.data.readers.base import Reader, integers, limit_size, reading
from medfl.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
GREY = ("1", "L", "I;16", "I;16L", "I;16B", "I", "F")
MAX_PIXELS = 2**28
"""Larger than any pathology tile or mammogram; Pillow's own limit is an eighth of it for its warning."""

Pillow.MAX_IMAGE_PIXELS = MAX_PIXELS
# What Pillow finds odd is repaired or becomes a DataError; its warnings would only repeat header content.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


class PictureReader(Reader):
    """Space is (row, column) as a viewer shows it: an EXIF orientation is applied. Alpha is dropped."""

    def accepts(self, path: Path, head: bytes) -> bool:
        # A DICOM preamble may be anything, a TIFF header included (dual-personality files).
        if head[128:132] == b"DICM":
            return False
        return head.startswith(SIGNATURES) or (not path.is_dir() and path.suffix.lower() in SUFFIXES)

    def read(self, path: Path, *, index: int | None = None, array: str = "") -> Image:
        with reading(path, "a picture"):
            if _is_deep_colour(path):
                return Image(_deep_colour(path).astype(np.float32), (1.0, 1.0))
            with _open(path) as picture:
                turned, notes = _turned(picture)
                pixels, more = _pixels(turned)
            return Image(_channels_first(pixels).astype(np.float32), (1.0, 1.0), None, (*notes, *more))

    def read_mask(self, path: Path) -> Image:
        """As `read`, but a palette's indices are the labels, not its colours."""
        with reading(path, "a picture"), _open(path) as picture:
            turned, notes = _turned(picture)
            if turned.mode in ("LA", "RGBA", "PA"):
                turned = turned.convert({"LA": "L", "RGBA": "RGB", "PA": "P"}[turned.mode])
            pixels = _channels_first(np.asarray(turned))
            return Image(integers(path, pixels), (1.0, 1.0), None, notes)


def _open(path: Path) -> Pillow.Image:
    picture = Pillow.open(path, formats=FORMATS)
    limit_size(path, picture.width * picture.height * len(picture.getbands()))
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        picture.close()
        raise DataError.at(path, f"holds {frames} pictures", "store each as a file of its own")
    return picture


def _turned(picture: Pillow.Image) -> tuple[Pillow.Image, tuple[str, ...]]:
    orientation = picture.getexif().get(0x0112, 1)
    if orientation not in range(2, 9):
        picture.load()
        return picture, ()
    turned = ImageOps.exif_transpose(picture)
    return turned, (f"turned as its EXIF orientation {orientation} says",)


def _pixels(picture: Pillow.Image) -> tuple[Array, list[str]]:
    """Pixels [row, column] or [row, column, channel] as grey or RGB, and what was changed."""
    notes = []
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        notes.append("transparency ignored")
    if picture.mode in ("LA",):
        return np.asarray(picture.getchannel("L")), notes
    if picture.mode in GREY:
        return np.asarray(picture), notes
    colours = np.asarray(picture.convert("RGB"))
    if picture.mode in ("P", "PA") and np.ptp(colours, axis=-1).max() == 0:
        return colours[..., 0], notes
    return colours, notes


def _channels_first(pixels: Array) -> Array:
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels[None])
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _is_deep_colour(path: Path) -> bool:
    """Whether this is a PNG with 16 bits a channel and more than one channel (PNG specification, IHDR)."""
    with path.open("rb") as file:
        head = file.read(26)
    return len(head) == 26 and head.startswith(SIGNATURES[0]) and head[24] == 16 and head[25] in (2, 4, 6)


def _deep_colour(path: Path) -> Array:
    """uint16 [channel, row, column] without alpha. Pillow has verified the file's checksums first."""
    import cv2

    with Pillow.open(path, formats=("PNG",)) as picture:
        width, height = picture.size
        limit_size(path, width * height * 4)
        picture.load()
    with path.open("rb") as file:
        (kind,) = struct.unpack("25xB", file.read(26))
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError.at(path, "is a damaged 16-bit PNG", "export the image again")
    channels = _channels_first(pixels)
    return channels[:1] if kind == 4 else channels[2::-1]
