"""The message format: a JSON header and raw buffers, no pickle.

    b"MFL1" | u32 header length | header (UTF-8 JSON, spaces at its end) | buffers, one after the other

The header's reserved key "buffers" holds the buffers' lengths. `parts` gives the pieces without copying, so a
byte count is the sum of what is really sent; `unpack` refuses anything that does not add up.
"""

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError

MAGIC = b"MFL1"
_PREFIX = struct.Struct("<4sI")
_ALIGNMENT = 16
"""Bytes: the first buffer begins at a multiple of it."""
MAX_HEADER = 4 * 2**20
MAX_BUFFERS = 1 << 16
MAX_DIMENSIONS = 32
_LARGEST = 2**48
_DTYPES = frozenset(np.dtype(code).newbyteorder("<").str for code in "?bhiqBHIQefd")

Buffer = bytes | memoryview


def parts(header: dict[str, Any], buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """The message as pieces: prefix and header, then the buffers themselves."""
    text = json.dumps({**header, "buffers": [len(buffer) for buffer in buffers]}).encode()
    # NumPy copies numbers that do not lie at multiples of their size, again and again
    text += b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)
    return [_PREFIX.pack(MAGIC, len(text)) + text, *buffers]


def size(pieces: Sequence[Buffer]) -> int:
    """Bytes of a message."""
    return sum(len(piece) for piece in pieces)


def unpack(message: Buffer) -> tuple[dict[str, Any], list[memoryview]]:
    """Header and buffers (views of `message`). RunError for anything that is not a whole, well-formed message."""
    view = memoryview(message).cast("B")
    if len(view) < _PREFIX.size:
        raise RunError.at("message", f"is cut off after {len(view)} bytes")
    magic, length = _PREFIX.unpack(view[: _PREFIX.size])
    if magic != MAGIC or length > MAX_HEADER:
        raise RunError.at("message", "is not a medfl message of a known version")
    start = _PREFIX.size + length
    header = _header(bytes(view[_PREFIX.size : start]), length)
    lengths = header.pop("buffers")
    if start + sum(lengths) != len(view):
        raise RunError.at("message", f"announces {start + sum(lengths)} bytes and has {len(view)}")
    buffers = []
    for count in lengths:
        buffers.append(view[start : start + count])
        start += count
    return header, buffers


def _header(text: bytes, length: int) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError.at("message", f"has a header that is not JSON: {error}") from error
    lengths = header.get("buffers") if isinstance(header, dict) and len(text) == length else None
    if not isinstance(lengths, list) or not all(type(n) is int and 0 <= n <= _LARGEST for n in lengths):
        raise RunError.at("message", "has a header without buffer lengths")
    if len(lengths) > MAX_BUFFERS:
        raise RunError.at("message", f"has {len(lengths)} buffers, at most {MAX_BUFFERS} are allowed")
    return dict(header)


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy when it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def pack_arrays(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> list[Buffer]:
    """A message that carries named arrays; the reserved header key "arrays" holds name, dtype and shape."""
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    return parts({**header, "arrays": listed}, [as_bytes(array) for array in arrays.values()])


def unpack_arrays(message: Buffer) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Header and arrays (read-only views of `message` where its memory allows). RunError when malformed."""
    header, buffers = unpack(message)
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        for (name, dtype, shape), buffer in zip(header.pop("arrays"), buffers, strict=True):
            if not isinstance(name, str) or name in arrays:
                raise ValueError(f"name {name!r} is not a text of its own")
            arrays[name] = _array(buffer, dtype, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError.at("message", f"carries arrays that do not fit their description: {error}") from error
    return header, arrays


def _array(buffer: memoryview, dtype: Any, shape: Any) -> npt.NDArray[Any]:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not plain numbers")
    flat = np.frombuffer(buffer, np.dtype(dtype))
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("the shape is not a list of a few lengths")
    if not all(type(n) is int and 0 <= n <= _LARGEST for n in shape):
        raise ValueError("the shape has lengths that are none")
    if math.prod(shape) != flat.size:
        raise ValueError(f"shape {shape!r} does not hold {flat.size} values")
    return flat.reshape(shape)
