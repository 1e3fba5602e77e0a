"""zstd frames from a peer, expanded within a bound."""

import zstandard

from medfl.errors import RunError
from medfl.update.wire import Buffer

_REMEDY = "the site must encode with the same version of medfl"


def inflate(packed: Buffer, least: int, most: int, streamed: bool = False) -> bytes:
    """The content of one zstd frame. RunError, before it is expanded, unless it declares least..most bytes; and when
    it is not a whole frame of what it declares. streamed: a frame may also declare nothing, and brings `most` bytes at
    most."""
    try:
        declared = zstandard.frame_content_size(packed)
        unknown = streamed and declared < 0
        if not (unknown or least <= declared <= most):
            raise RunError.at("update", f"would expand to {declared} bytes, expected {least} to {most}", _REMEDY)
        # a frame that declares nothing inside must not bring more: zero would mean "no limit"
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=max(1, most), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RunError.at("update", f"has bytes that do not decompress: {error}", _REMEDY) from error
