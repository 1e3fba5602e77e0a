"""Sparse ternary compression (Sattler et al., "Robust and Communication-Efficient Federated Learning from Non-IID
Data", IEEE TNNLS 2020): of the k largest magnitudes only the sign travels, and one mean for all of them.

    k = ceil(density * d);   mu = mean |v_i| over the kept;   Q(v)_i = mu sign(v_i)  if kept, else 0

Biased: it needs error_feedback, as in the paper. A kept value costs a sign bit and its position. Positions are coded
by `planes` (bytes of gaps through zstd, which is smaller where large values cluster in few tensors), or as in the
paper by `golomb`, within 1 % of the entropy of positions that are spread evenly: 9.1 bits a value with its sign at
density 0.01, 12.5 at 0.001. At the default density of 0.01, 25.6 million values travel in 0.2 to 0.3 MB in place of
102 MB. The codec keeps no state. Values that are zero never travel.

Golomb code of a gap g with b = 1 + floor(log2(log(phi - 1) / log(1 - k/d))), phi the golden ratio: g div 2^b in unary
and g mod 2^b in b bits. The unary codes lie together, and so does each bit of the remainders, so that all are read at
once.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.indices import Indices, pack_indices, positions, unpack_indices
from medfl.update.codecs.selection import largest
from medfl.update.codecs.sparse import (
    SparseCodec,
    SparseConfig,
    in_vector,
    mean_of,
    pack_bits,
    shared_mean,
    travelling,
    unpack_bits,
)
from medfl.update.wire import Buffer

_GOLDEN = math.log((math.sqrt(5) - 1) / 2)


class StcConfig(SparseConfig):
    kind: Literal["stc"] = "stc"
    coding: Literal["golomb", "planes"] = Field(
        "planes", description="how positions travel: the paper's Golomb code, or bytes of gaps through zstd"
    )


class Stc(SparseCodec):
    Config = StcConfig
    config: StcConfig

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        values = travelling(update)
        chosen = largest(values, self.count(values.size))
        chosen = chosen[values[chosen] != 0]
        kept = values[chosen]
        meta = {"k": chosen.size, "mean": shared_mean(kept)}
        indices, signs = in_vector(update, chosen), pack_bits(kept < 0)
        if self.config.coding == "planes":
            return Payload("stc", update.size, (pack_indices(indices), signs), meta)
        bits = golomb_bits(chosen.size, update.size)
        return Payload("stc", update.size, (*pack_golomb(indices, bits), signs), {**meta, "bits": bits})

    def decode(self, payload: Payload, size: int) -> Update:
        planes = self.config.coding == "planes"
        count, mean = self.announced(payload, size, 2 if planes else 3), mean_of(payload)
        if mean < 0:
            raise RunError.at("update", "has a mean magnitude below zero")
        signs = unpack_bits(payload.buffers[-1], count)
        if planes:
            indices = unpack_indices(payload.buffers[0], count, size)
        else:
            indices = unpack_golomb(payload.buffers[:2], count, size, payload.meta.get("bits"))
        return Update(np.where(signs, -mean, mean), size, indices)


def golomb_bits(count: int, size: int) -> int:
    """Bits of a remainder, best for `count` positions spread evenly over `size`."""
    if not 0 < count < size:
        return 0
    return max(0, 1 + math.floor(math.log2(_GOLDEN / math.log1p(-count / size))))


def pack_golomb(indices: Indices, bits: int) -> tuple[Buffer, Buffer]:
    """Unary codes (zeros, then a one) and remainders (bit after bit, lowest first) of the gaps between the indices."""
    gaps = np.diff(indices, prepend=-1) - 1
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.bool_)
    unary[ends] = True
    remainders = [np.packbits(gaps >> bit & 1) for bit in range(bits)]
    return pack_bits(unary), b"".join(plane.tobytes() for plane in remainders)


def unpack_golomb(buffers: tuple[Buffer, ...], count: int, size: int, bits: object) -> Indices:
    """The `count` indices, strictly increasing and below `size`; RunError for bytes that are not exactly that."""
    if type(bits) is not int or not 0 <= bits <= size.bit_length():
        raise RunError.at("update", "has no number of Golomb bits that fits its size")
    unary, remainders = (np.frombuffer(buffer, np.uint8) for buffer in buffers)
    plane = (count + 7) // 8
    if unary.size > (count + (size >> bits) + 7) // 8 or remainders.size != bits * plane:
        raise RunError.at("update", f"has {unary.size} and {remainders.size} bytes for {count} Golomb codes")
    ends = np.flatnonzero(np.unpackbits(unary).view(np.bool_))
    if ends.size != count or unary.size != (ends[-1] // 8 + 1 if count else 0):
        raise RunError.at("update", f"has {ends.size} Golomb codes, expected {count}")
    gaps = np.diff(ends, prepend=-1) - 1
    gaps <<= bits
    for bit in range(bits):
        row = np.unpackbits(remainders[bit * plane : (bit + 1) * plane], count=count)
        gaps |= row.astype(np.int64) << bit
    return positions(gaps, size)
