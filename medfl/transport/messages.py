"""The round's messages as bytes, in the format of `medfl.update.wire`."""

from dataclasses import asdict
from typing import Any

import numpy as np
import zstandard

from medfl.errors import RunError
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.tasks.base import Statistics
from medfl.update.base import Payload
from medfl.update.wire import Buffer, pack_arrays, parts, unpack, unpack_arrays

MAX_STATISTICS = 256 * 2**20


def encode_order(order: TrainOrder, model: Payload) -> list[Buffer]:
    header = {**asdict(order), "model": model.header()}
    return parts(header, model.buffers)


def encode_reply(reply: TrainReply) -> list[Buffer]:
    header: dict[str, Any] = {name: getattr(reply, name) for name in _REPLY_FIELDS}
    # fixed width, so that equal rounds are equally many bytes
    header["seconds"] = {phase: f"{value:012.6f}" for phase, value in reply.seconds.items()}
    if reply.payload is None:
        return parts(header)
    return parts({**header, "payload": reply.payload.header()}, reply.payload.buffers)


_REPLY_FIELDS: dict[str, type] = {
    "site": str,
    "round": int,
    "cases": int,
    "steps": int,
    "epochs": int,
    "loss_start": float,
    "loss": float,
    "ledger": str,
}


def decode_reply(message: Buffer) -> TrainReply:
    """The reply of a received message; RunError naming every field that is missing, unknown or of a wrong type."""
    header, buffers = unpack(message)
    described = header.pop("payload", None)
    spent = header.pop("seconds", None)
    wrong = sorted(header.keys() ^ _REPLY_FIELDS.keys())
    wrong += [name for name, kind in _REPLY_FIELDS.items() if name in header and type(header[name]) is not kind]
    if wrong:
        raise RunError.at("reply", f"fields {', '.join(wrong)} are not those of a training reply")
    try:
        seconds = {str(phase): float(value) for phase, value in spent.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise RunError.at("reply", f"field seconds is not one number a phase: {error}") from error
    return TrainReply(**header, seconds=seconds, payload=Payload.of(described, buffers) if described else None)


def encode_statistics(statistics: Statistics) -> bytes:
    """Statistics are mostly empty histograms, so they travel compressed."""
    return zstandard.compress(b"".join(pack_arrays({}, dict(statistics))), 1)


def decode_statistics(message: Buffer) -> Statistics:
    """RunError for anything that is not a set of statistics, or is larger than MAX_STATISTICS when unpacked."""
    try:
        # what a frame says of its size is the sender's word: read no further than the limit
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(message) as reader:
            plain = reader.read(MAX_STATISTICS + 1)
    except zstandard.ZstdError as error:
        raise RunError.at("statistics", f"cannot be unpacked: {error}") from error
    if len(plain) > MAX_STATISTICS:
        raise RunError.at("statistics", f"are larger than {MAX_STATISTICS} bytes when unpacked")
    _, arrays = unpack_arrays(plain)
    return {name: np.array(values, np.float64) for name, values in arrays.items()}
