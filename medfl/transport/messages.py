"""The round's messages as bytes, in the format of `medfl.update.wire`."""

from dataclasses import fields
from typing import Any

import numpy as np
import zstandard

from medfl.errors import RunError
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.tasks.base import Statistics
from medfl.transport.texts import plain
from medfl.update.base import Payload
from medfl.update.wire import Buffer, pack_arrays, parts, unpack, unpack_arrays

MAX_STATISTICS = 256 * 2**20
"""Bytes, unpacked."""
_LARGEST = 2**53
_TEXT = 200
_PHASES = 32
_REASONS = 64


def order_header(order: TrainOrder, model: Payload) -> dict[str, Any]:
    """What a message says of an order and of the model that comes with it."""
    return {name: getattr(order, name) for name in _ORDER_FIELDS} | {"model": model.header()}


def encode_order(order: TrainOrder, model: Payload) -> list[Buffer]:
    return parts(order_header(order, model), model.buffers)


def encode_reply(reply: TrainReply) -> list[Buffer]:
    header: dict[str, Any] = {name: getattr(reply, name) for name in _REPLY_FIELDS}
    # fixed width, so that equal rounds are equally many bytes
    header["seconds"] = {phase: f"{value:012.6f}" for phase, value in reply.seconds.items()}
    header["skipped"] = dict(reply.skipped)
    buffers: list[Buffer] = []
    for name in _PAYLOADS:
        payload: Payload | None = getattr(reply, name)
        if payload is not None:
            header[name] = payload.described()
            buffers += payload.buffers
    if reply.notice:
        header["notice"] = True
        buffers.append(reply.notice)
    if reply.shared:
        header["shared"] = reply.shared
    return parts(header, buffers)


_ORDER_FIELDS = tuple(field.name for field in fields(TrainOrder))
_PAYLOADS = ("payload", "snapshot", "prototypes")
"""Coded vectors of a reply, in the order of their buffers."""


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
    vectors: dict[str, Any] = _vectors(header, buffers)
    seconds, skipped = _seconds(header.pop("seconds", None)), _skipped(header.pop("skipped", None))
    shared = header.pop("shared", 0)
    wrong = sorted(header.keys() ^ _REPLY_FIELDS.keys()) + ([] if _is(shared, int) else ["shared"])
    wrong += [name for name, kind in _REPLY_FIELDS.items() if name in header and not _is(header[name], kind)]
    if wrong:
        raise RunError.at("reply", f"fields {', '.join(wrong)} are not those of a training reply")
    return TrainReply(**header, seconds=seconds, skipped=skipped, shared=shared, **vectors)


def _vectors(header: dict[str, Any], buffers: list[memoryview]) -> dict[str, Any]:
    """The coded vectors of a reply by field; takes their descriptions off the header."""
    found = dict[str, Payload]()
    for name in _PAYLOADS:
        if (described := header.pop(name, None)) is not None:
            found[name], buffers = Payload.first_of(described, buffers, "reply", f"a {name}")
    told = header.pop("notice", False) is True
    if len(buffers) != told:
        raise RunError.at("reply", f"carries {len(buffers)} buffers that it does not describe")
    return {**dict.fromkeys(_PAYLOADS), **found, "notice": bytes(buffers[0]) if told else b""}


def _is(value: Any, kind: type) -> bool:
    """Whether a field has its type, and a size that can be reckoned and written with. A loss may be NaN."""
    if type(value) not in (kind,):
        return False
    if kind is int:
        return bool(0 <= value < _LARGEST)
    return kind is not str or len(value) <= _TEXT


def _seconds(spent: Any) -> dict[str, float]:
    if not isinstance(spent, dict) or len(spent) > _PHASES:
        raise RunError.at("reply", "field seconds is not one number a phase")
    try:
        seconds = {phase: float(value) for phase, value in spent.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError.at("reply", f"field seconds is not one number a phase: {error}") from error
    if not all(len(phase) <= _TEXT and 0 <= value < _LARGEST for phase, value in seconds.items()):
        raise RunError.at("reply", "field seconds has numbers that are no times")
    return seconds


def _skipped(told: Any) -> dict[str, int]:
    if not isinstance(told, dict) or len(told) > _REASONS or not all(_is(count, int) for count in told.values()):
        raise RunError.at("reply", "field skipped is not one count a reason")
    return {plain(reason): count for reason, count in told.items()}


def encode_statistics(statistics: Statistics) -> bytes:
    """Statistics are mostly empty histograms, so they travel compressed."""
    wide = {name: np.asarray(values, np.float64) for name, values in statistics.items()}
    return zstandard.compress(b"".join(pack_arrays({}, wide)), 1)


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
    if not all(values.dtype == np.float64 for values in arrays.values()):
        # narrower ones would grow when they are widened
        raise RunError.at("statistics", "are not 64-bit numbers")
    return {name: np.array(values) for name, values in arrays.items()}
