"""Discrete Gaussian noise: integers x with probability proportional to exp(-x^2 / (2 sigma^2)).

C. Canonne, G. Kamath, T. Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020 (arXiv 2004.00010):
on integer vectors it gives the zero-concentrated guarantee of continuous Gaussian noise of the same sigma, without the
leaks of floating-point noise (I. Mironov, CCS 2012).

What is exact. The law is that of the `sigma` given, read as the rational number that the float is, on all integers: no
tail is cut. The only source of error is that AES-256-CTR stands in for ideal random bits. Rejection sampling in two
stages (after C. Karney, "Sampling Exactly from the Normal Distribution", ACM TOMS 2016): a block j of 2^k integers with
probability proportional to exp(-(j 2^k)^2 / (2 sigma^2)), a uniform x in the block, kept with probability
exp(-(x^2 - (j 2^k)^2) / (2 sigma^2)), and a sign. Each choice compares an unbounded random binary fraction with a real
number. Its first bits are compared with the number's float64 value, and decide unless they are within 2^-40 of it
(float64 arithmetic is thousands of times more precise); what they leave open is decided by further random bits against
the number in as many digits as it takes. Floating point can so cost time, and never changes an outcome.
"""

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from secrets import token_bytes
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.privacy.keystream import KEY_BYTES, Keystream
from medfl.privacy.ledger.base import Permit, Randomness

IntVector = npt.NDArray[np.int64]

SIGMA_RANGE = (2.0**-16, 2.0**30)
"""Below it the noise is 0 but for one draw in 10^900 million, above it products of the sampler could pass 64 bits."""
_FINE = 16
_BLOCK = 1 << 14
_CELL_BITS = 16
_MORE_BITS = 64
_TABLE_BITS = _CELL_BITS + _MORE_BITS
_COIN_BITS = 32
_COIN = float(1 << _COIN_BITS)
_MARGIN = _COIN * 2.0**-40


class NoiseSource(ABC):
    """Where noise gets its randomness: a fresh key for every draw."""

    randomness: ClassVar[Randomness]

    @abstractmethod
    def key(self) -> bytes:
        """A key [32 bytes] that was never given before."""


class SystemNoise(NoiseSource):
    """Keys from the operating system's generator; no process, fork or draw repeats another's noise."""

    randomness = "system"

    def key(self) -> bytes:
        return token_bytes(KEY_BYTES)


class SeededNoise(NoiseSource):
    """Repeatable noise for tests. It protects nobody, and taints a ledger that it is charged to."""

    randomness = "insecure-test"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0

    def key(self) -> bytes:
        self._draws += 1
        return hashlib.sha256(f"medfl test noise {self._seed} {self._draws}".encode()).digest()


system = SystemNoise()


def draw(permit: Permit, sigma: float, size: int, source: NoiseSource = system) -> IntVector:
    """Discrete Gaussian noise [size] of standard deviation `sigma` in grid units.

    Uses up the permit. RunError when it was used before, when it was charged for another kind of randomness than the
    source's, or when sigma is not in SIGMA_RANGE.
    """
    charge = permit.use()
    if charge.randomness != source.randomness:
        raise RunError.at(
            f"round {charge.round}",
            f"the noise was charged as {charge.randomness!r} and would be drawn as {source.randomness!r}",
            "charge what is drawn",
        )
    low, high = SIGMA_RANGE
    if not low <= sigma <= high:
        raise RunError.at(
            f"round {charge.round}",
            f"noise of standard deviation {sigma:g} grid units cannot be drawn",
            f"use a grid on which it is between {low:g} and {high:g}",
        )
    return _sample(sigma, size, Keystream(source.key()))


def _sample(sigma: float, size: int, stream: Keystream) -> IntVector:
    law = _law(Fraction(sigma) ** 2)
    noise = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        kept = _candidates(law, stream)[: size - filled]
        noise[filled : filled + kept.size] = kept
        filled += kept.size
    return noise


@dataclass(frozen=True, eq=False, slots=True)
class _Law:
    """shift: k, blocks have 2^k integers. rate: (2^k)^2 / (2 sigma^2). scale: 1 / (2 sigma^2), variance: sigma^2.
    blocks: by the first 16 bits of a fraction the block it lies in, -1 where they do not decide. cumulative: of the
    blocks, see `_cumulative`."""

    shift: int
    rate: Fraction
    scale: float
    variance: Fraction
    blocks: npt.NDArray[np.int64]
    cumulative: list[int]


@lru_cache(maxsize=8)
def _law(variance: Fraction) -> _Law:
    shift = 0
    while variance >= (_FINE << (shift + 1)) ** 2:
        shift += 1
    rate = (1 << shift) ** 2 / (2 * variance)
    cumulative = _cumulative(rate, _TABLE_BITS)
    width = 1 << _MORE_BITS
    cells = (_locate(cumulative, cell * width, (cell + 1) * width) for cell in range(1 << _CELL_BITS))
    blocks = np.fromiter((-1 if cell is None else cell for cell in cells), np.int64, 1 << _CELL_BITS)
    return _Law(shift, rate, float(1 / (2 * variance)), variance, blocks, cumulative)


def _candidates(law: _Law, stream: Keystream) -> IntVector:
    """The accepted of one batch of candidates, in order."""
    cells = stream.take(_BLOCK, np.uint16)
    block = law.blocks[cells]
    for i in np.flatnonzero(block < 0):
        block[i] = _block(law.rate, law.cumulative, int(cells[i]), stream)
    bits = stream.take(_BLOCK, np.uint32)
    start = block << law.shift
    offset = (bits & np.uint32((1 << law.shift) - 1)).astype(np.int64)
    value = start + offset
    # value^2 - start^2, below 2^63
    excess = offset * (start + value)
    coins = stream.take(_BLOCK, np.uint32)
    # how far the acceptance probability lies above the lower end of the coin's interval, in units of its width
    above = np.exp(excess * -law.scale) * _COIN - coins
    kept = above >= 1 + _MARGIN
    for i in np.flatnonzero(~kept & (above > -_MARGIN)):
        kept[i] = _coin(int(excess[i]) / (2 * law.variance), int(coins[i]), _COIN_BITS, stream)
    negative = bits >> np.uint32(31) == 1
    # zero has one sign only
    kept &= ~(negative & (value == 0))
    np.negative(value, out=value, where=negative)
    accepted: IntVector = value[kept]
    return accepted


def _block(rate: Fraction, cumulative: list[int], cell: int, stream: Keystream) -> int:
    """The block of the fraction that begins with the 16 bits `cell`, by as many further bits as it takes."""
    bits, prefix = _TABLE_BITS, cell << _MORE_BITS | _more(stream)
    while (block := _locate(cumulative, prefix, prefix + 1)) is None:
        bits, prefix = bits + _MORE_BITS, prefix << _MORE_BITS | _more(stream)
        cumulative = _cumulative(rate, bits)
    return block


def _coin(exponent: Fraction, prefix: int, bits: int, stream: Keystream) -> bool:
    """Whether the fraction that begins with the `bits` bits of `prefix` is below exp(-exponent)."""
    if exponent == 0:
        return True
    while True:
        bits, prefix = bits + _MORE_BITS, prefix << _MORE_BITS | _more(stream)
        probability = _scaled(exponent, bits)
        if abs(prefix - probability) >= 2:
            return prefix < probability


def _scaled(exponent: Fraction, bits: int) -> int:
    context = _context(bits)
    return int(context.multiply(_exp(exponent, context), Decimal(1 << bits)))


def _more(stream: Keystream) -> int:
    return int(stream.take(1, np.uint64)[0])


def _locate(cumulative: list[int], low: int, high: int) -> int | None:
    """The block of every fraction in [low, high), in the units of `cumulative`; None when there are several, or when
    the rounding of `cumulative` leaves it open."""
    first, last = bisect_right(cumulative, low - 2), bisect_left(cumulative, high + 1)
    return first if first == last else None


@lru_cache(maxsize=8)
def _cumulative(rate: Fraction, bits: int) -> list[int]:
    """2^bits P(block <= j) for j = 0, 1, .., within one unit below and two above, up to where less than a unit is left;
    P(block = j) is proportional to exp(-rate j^2)."""
    context = _context(bits)
    floor = context.power(2, -bits - 20)
    weights = [Decimal(1)]
    while weights[-1] > floor:
        weights.append(_exp(rate * len(weights) ** 2, context))
    sums = [Decimal(0)]
    for weight in weights:
        sums.append(context.add(sums[-1], weight))
    unit = context.divide(context.power(2, bits), sums[-1])
    return [int(context.multiply(value, unit)) for value in sums[1:]]


def _exp(exponent: Fraction, context: Context) -> Decimal:
    """exp(-exponent), to the context's digits but for the few that the exponent itself has before the point."""
    value = context.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator))
    return context.exp(value)


def _context(bits: int) -> Context:
    # a bit is 0.302 digits; 25 more absorb the rounding of a few hundred operations and the digits of the exponents
    return Context(prec=int(0.302 * bits) + 25, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
