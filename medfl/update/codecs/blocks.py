"""What the quantisers share: a vector in blocks, a few numbers a block and a small code a value.

A payload is one buffer, the numbers of all blocks and then the codes; with `compress` it is one zstd frame of that,
with a byte a code. A vector with a value that is not finite, or so large that its block's numbers overflow (above
about 1e33), is sent as one that is not finite: no buffer, and `"finite": false` in the header; it is decoded to NaN,
so that the coordinator sees it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec, dense_values
from medfl.update.codecs.packing import Codes, pack, packed_length, unpack
from medfl.update.codecs.rotation import SEEDS, Rotation, Rows, seed_of
from medfl.update.inflate import inflate
from medfl.update.vector import FloatVector
from medfl.update.wire import Buffer, as_bytes

# values a piece: the piece, its copy and its codes stay in the second-level cache
PIECE = 1 << 16
_ZSTD_LEVEL = 1
_TINY = np.finfo(np.float32).tiny


class Quantiser(ABC):
    """Codes for the values of a block. Settings are fixed; what depends on the vector is in the block's numbers.

    block: values a block, a multiple of 8. bits: of a code. numbers: how many numbers a block travel.
    short: whether they travel as bfloat16 instead of float32.
    """

    block: int
    bits: int
    numbers: int
    short: bool = False

    @abstractmethod
    def omega(self, count: int, rotated: bool) -> float:
        """`Codec.omega` for one block of `count` values, at least one; of one that was rotated, over the rotations."""

    @abstractmethod
    def measure(self, rows: Rows, work: Rows) -> Rows:
        """The numbers [k, m] of the blocks `rows` [k, n], with m >= `numbers`: what travels first, and the last of it
        never negative. A number is not finite where a value is not. `work` [k, n] is for use."""

    @abstractmethod
    def quantise(self, rows: Rows, numbers: Rows, codes: Codes, work: Rows, rng: np.random.Generator) -> None:
        """Write the codes [k, n]; only their lower `bits` bits travel."""

    @abstractmethod
    def restore(self, codes: Codes, numbers: Rows, out: Rows) -> None:
        """Write the values [k, n] of codes [k, n]."""

    def lengths(self, size: int, padded: bool, plain: bool) -> tuple[int, int]:
        """Bytes of the numbers and of the codes of a vector. padded: the last block is whole; plain: a byte a code."""
        blocks = -(-size // self.block)
        count = blocks * self.block if padded else size
        return blocks * self.numbers * (2 if self.short else 4), packed_length(count, 8 if plain else self.bits)


class BlockCodec(Codec):
    """A codec by a quantiser. rotate: whether each block is rotated first. compress: whether zstd follows."""

    quantiser: Quantiser
    rotate: bool = False
    compress: bool = False

    def omega(self, size: int) -> float:
        count = self.quantiser.block if self.rotate else min(size, self.quantiser.block)
        return self.quantiser.omega(count, self.rotate) if size else 0.0

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        return self.encode_by(self.quantiser, update, rng, {})

    def decode(self, payload: Payload, size: int) -> Update:
        return self.decode_by(self.quantiser, payload, size)

    def encode_by(
        self, quantiser: Quantiser, update: Update, rng: np.random.Generator, meta: dict[str, Any]
    ) -> Payload:
        """The payload of an update; `meta` is what its header says beside what the codec adds."""
        values = dense_values(update)
        rotation = None
        if self.rotate:
            meta = {**meta, "seed": int(rng.integers(SEEDS))}
            rotation = Rotation(meta["seed"], quantiser.block, _scratch(values.size, quantiser.block))
        with np.errstate(over="ignore", invalid="ignore"):
            coded = self._encode(quantiser, values, rotation, rng)
        if coded is None:
            return Payload(self.config.kind, update.size, (), {"finite": False})
        if not self.compress:
            return Payload(self.config.kind, update.size, (as_bytes(coded),), meta)
        return Payload(self.config.kind, update.size, (zstandard.compress(as_bytes(coded), _ZSTD_LEVEL),), meta)

    def _encode(
        self, quantiser: Quantiser, values: FloatVector, rotation: Rotation | None, rng: np.random.Generator
    ) -> Codes | None:
        """The numbers and codes as bytes; None when a value is not finite."""
        bits = 8 if self.compress else quantiser.bits
        head, body = quantiser.lengths(values.size, self.rotate, self.compress)
        coded = np.empty(head + body, np.uint8)
        numbers = coded[:head].view("<u2" if quantiser.short else "<f4").reshape(-1, max(1, quantiser.numbers))
        scratch = _scratch(values.size, quantiser.block)
        work, codes = np.empty(scratch, np.float32), np.empty(scratch, np.uint8)
        for start, stop in _pieces(values.size, quantiser.block):
            piece = values[start:stop]
            rows = rotation.forward(piece) if rotation else piece.reshape(-1, min(quantiser.block, piece.size))
            count, first = rows.size, start // quantiser.block
            found = quantiser.measure(rows, work[:count].reshape(rows.shape))
            if not np.isfinite(found).all():
                return None
            if quantiser.numbers:
                numbers[first : first + len(found)] = _travelling(found[:, : quantiser.numbers], quantiser.short)
            quantiser.quantise(rows, found, codes[:count].reshape(rows.shape), work[:count].reshape(rows.shape), rng)
            place = head + packed_length(start, bits)
            pack(codes[:count], bits, coded[place : place + packed_length(count, bits)])
        return coded

    def decode_by(self, quantiser: Quantiser, payload: Payload, size: int) -> Update:
        """The update of a payload; RunError when it is none of a vector of `size` values."""
        if says_not_finite(payload):
            self.check(payload, size, ())
            return Update(np.full(size, np.nan, np.float32), size)
        head, body = quantiser.lengths(size, self.rotate, self.compress)
        coded = np.frombuffer(self._buffer(payload, size, head + body), np.uint8)
        rotation = None
        if self.rotate:
            rotation = Rotation(seed_of(payload.meta.get("seed")), quantiser.block, _scratch(size, quantiser.block))
        with np.errstate(over="ignore", invalid="ignore"):
            return Update(self._decode(quantiser, coded[:head], coded[head:], size, rotation), size)

    def _decode(
        self, quantiser: Quantiser, head: Codes, body: Codes, size: int, rotation: Rotation | None
    ) -> FloatVector:
        bits = 8 if self.compress else quantiser.bits
        numbers = _numbers(head, -(-size // quantiser.block), quantiser)
        values = np.empty(size, np.float32)
        work = np.empty(_scratch(size, quantiser.block) if rotation else 0, np.float32)
        for start, stop in _pieces(size, quantiser.block):
            columns = quantiser.block if rotation else min(quantiser.block, stop - start)
            first, last = start // quantiser.block, -(-stop // quantiser.block)
            count = (last - first) * columns
            place = packed_length(start, bits)
            codes = unpack(body[place : place + packed_length(count, bits)], bits, count).reshape(-1, columns)
            rows = (work[:count] if rotation else values[start:stop]).reshape(-1, columns)
            quantiser.restore(codes, numbers[first:last], rows)
            if rotation:
                values[start:stop] = rotation.inverse(rows)[: stop - start]
        return values

    def _buffer(self, payload: Payload, size: int, length: int) -> Buffer:
        """The payload's numbers and codes, exactly `length` bytes; RunError before anything is taken for more."""
        if not self.compress:
            self.check(payload, size, (length,))
            return payload.buffers[0]
        self.check(payload, size, tuple(len(buffer) for buffer in payload.buffers[:1]) or (length,))
        return inflate(payload.buffers[0], length, length)


def says_not_finite(payload: Payload) -> bool:
    """Whether the sender's vector was not finite."""
    return payload.meta.get("finite") is False


def stochastic(values: Rows, rng: np.random.Generator) -> None:
    """Round in place to one of the two neighbouring integers, so that the mean is the value.

    16 random bits a value are as fine as a float32 between 64 and 128; integers stay what they are.
    """
    words = rng.integers(0, 2**64 - 1, -(-values.size // 4), np.uint64, endpoint=True)
    dither = np.multiply(words.view(np.uint16)[: values.size], np.float32(2**-16))
    dither += np.float32(2**-17)
    values += dither.reshape(values.shape)
    np.floor(values, out=values)


def reciprocal(scale: Rows) -> Rows:
    """1 / scale, or 0 where the scale is too small for that: such values are sent as zeros."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale >= _TINY)


def _pieces(size: int, block: int) -> Iterator[tuple[int, int]]:
    """Start and stop of pieces: whole blocks, and last what is left."""
    whole, step = size - size % block, _scratch(size, block)
    for start in range(0, whole, step):
        yield start, min(start + step, whole)
    if whole < size:
        yield whole, size


def _scratch(size: int, block: int) -> int:
    """Values of the largest piece, in whole blocks."""
    return block * max(1, min(PIECE // block, -(-size // block)))


def _travelling(numbers: Rows, short: bool) -> npt.NDArray[Any]:
    """The numbers as they travel. Quantisers with short numbers give ones that bfloat16 holds."""
    return np.ascontiguousarray(numbers).view(np.uint32) >> 16 if short else numbers


def _numbers(head: Codes, blocks: int, quantiser: Quantiser) -> Rows:
    """The blocks' numbers [blocks, numbers] as float32; RunError when one of them cannot be one."""
    if quantiser.short:
        numbers = (head.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = head.view("<f4").astype(np.float32, copy=False)
    numbers = numbers.reshape(-1, quantiser.numbers) if quantiser.numbers else np.empty((blocks, 0), np.float32)
    if quantiser.numbers and not (np.isfinite(numbers).all() and (numbers[:, -1] >= 0).all()):
        raise RunError.at("update", "has blocks whose numbers are negative or not finite")
    return numbers
