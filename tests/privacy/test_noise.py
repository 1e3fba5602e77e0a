"""Discrete Gaussian noise: the exact law, never the same twice, and never without a charge."""

import itertools
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm

from medfl.errors import RunError
from medfl.privacy import noise
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.keystream import Keystream
from medfl.privacy.ledger.base import Charge, Permit, Randomness
from medfl.privacy.noise import NoiseSource, SeededNoise, SystemNoise, draw, system

Noise = npt.NDArray[np.int64]


def permit(randomness: Randomness = "system", round_: int = 3) -> Permit:
    event = GaussianEvent(1.0)
    charge = Charge("s", "r", round_, "model", "site", "d", "gaussian", event, 1.0, 1.0, randomness=randomness)
    return Permit(charge, "entry")


def seeded(sigma: float, size: int, seed: int = 1) -> Noise:
    return draw(permit("insecure-test"), sigma, size, SeededNoise(seed))


def rounded(sigma: float, size: int, seed: int = 1) -> Noise:
    """The fake: seeded continuous noise, rounded."""
    return np.rint(np.random.default_rng(seed).normal(0, sigma, size)).astype(np.int64)


def fits(values: Noise, sigma: float) -> bool:
    """Chi-square against the exact probabilities (one in 10^5 false alarms)."""
    reach = int(20 * sigma + 20)
    points = np.arange(-reach, reach + 1)
    weight = np.exp(-(points**2) / (2 * sigma**2))
    expected = weight / weight.sum() * values.size
    counts = np.bincount(values + reach, minlength=points.size)
    assert counts.size == points.size
    common = expected >= 10
    rest = values.size - counts[common].sum(), values.size - expected[common].sum()
    statistic = ((counts[common] - expected[common]) ** 2 / expected[common]).sum()
    if rest[1] >= 1:
        statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    elif rest[0] > 10:
        return False
    return bool(statistic < chi2.isf(1e-5, common.sum()))


# widths of blocks change at 32, 64, ..
@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.5, 15.9, 31.999, 32.0, 33.3, 100.0, 300.0])
def test_small_sigma_has_the_exact_probabilities(sigma: float) -> None:
    assert fits(seeded(sigma, 400_000), sigma)


def test_the_chi_square_test_rejects_what_is_wrong() -> None:
    assert not fits(rounded(0.5, 400_000), 0.5)
    assert not fits(rounded(1.0, 400_000), 1.0)
    assert not fits(seeded(2.5, 400_000), 2.52)
    one_sided = np.abs(seeded(32.0, 400_000))
    assert not fits(one_sided, 32.0)
    assert not fits(seeded(32.0, 400_000) // 2 * 2, 32.0)


def test_the_slow_decisions_have_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every choice decided by further bits and arbitrary precision, as 1 in 10^9 otherwise is."""
    monkeypatch.setattr(noise, "_MARGIN", 2.0**33)
    monkeypatch.setattr(noise, "_law", _undecided)
    assert fits(seeded(40.0, 12_000), 40.0)


def _undecided(variance: Fraction, law: Callable[[Fraction], noise._Law] = noise._law) -> noise._Law:
    known = law(variance)
    return noise._Law(
        known.shift, known.rate, known.scale, known.variance, np.full_like(known.blocks, -1), known.cumulative
    )


@pytest.mark.parametrize("sigma", [1e3, 1e5, 1e7])
def test_large_sigma_is_gaussian_in_body_tails_and_low_bits(sigma: float) -> None:
    values = seeded(sigma, 1_000_000)
    scaled = values / sigma
    assert kstest(scaled[:200_000], norm.cdf).pvalue > 1e-5
    assert abs(scaled.mean()) < 5e-3
    assert abs(scaled.var() - 1) < 5 * np.sqrt(2 / values.size)
    assert abs((scaled**4).mean() - 3) < 5 * np.sqrt(96 / values.size)
    for bound in (2.0, 3.0, 4.0):
        expected = 2 * norm.sf(bound) * values.size
        assert abs((np.abs(scaled) > bound).sum() - expected) < 5 * np.sqrt(expected)
    low = np.bincount(values % 64, minlength=64)
    assert ((low - low.mean()) ** 2 / low.mean()).sum() < chi2.isf(1e-5, 63)
    # neighbours do not know of each other
    assert abs((scaled[1:] * scaled[:-1]).mean()) < 5 / np.sqrt(values.size)


class Words:
    """A keystream that gives 64-bit words of a test's choice, then zeros."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = list(words)

    def take(self, count: int, _dtype: npt.DTypeLike) -> npt.NDArray[np.uint64]:
        assert count == 1
        return np.array([self._words.pop(0) if self._words else 0], np.uint64)


WORD = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1])


def exact_exp(exponent: Fraction) -> Fraction:
    with localcontext() as context:
        context.prec = 400
        return Fraction((-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp())


@given(st.fractions(0, 3, max_denominator=10**12), st.integers(-1, 1), st.integers(0, 3), st.integers(-2, 2), WORD)
def test_a_coin_compares_exactly(exponent: Fraction, near: int, words: int, off: int, last: int) -> None:
    """Fractions that agree with the probability in their first bits, and leave it late or hardly at all."""
    probability = exact_exp(exponent)
    prefix = min(max(int(probability * 2**32) + near, 0), 2**32 - 1)
    digits = max(int(probability * 2 ** (32 + 64 * words)) + off, 0)
    more = [digits >> 64 * (words - i - 1) & (2**64 - 1) for i in range(words)] + [last]
    fraction = Fraction(prefix, 2**32)
    fraction += sum((Fraction(word, 2 ** (32 + 64 * (i + 1))) for i, word in enumerate(more)), Fraction())
    stream = Words(more)
    assert noise._coin(exponent, prefix, 32, stream) == (fraction < probability)  # type: ignore[arg-type]


DIGITS = 1000
EDGES = {
    # sums of the blocks' weights in units of 2^-1000
    rate: list(itertools.accumulate(int(exact_exp(rate * j * j) * 2**DIGITS) for j in range(600)))
    for rate in (Fraction(1, 2), Fraction(1, 512), Fraction(9, 7))
}


@given(st.sampled_from(sorted(EDGES)), st.integers(0, 5), st.integers(-2, 2), WORD)
def test_a_block_is_found_exactly(rate: Fraction, index: int, off: int, last: int) -> None:
    edges = EDGES[rate]
    digits = min((edges[index] << 80) // edges[-1] + off, 2**80 - 1)
    fraction = digits << 64 | last
    expected = bisect_right(edges, fraction * edges[-1] >> 144)
    stream = Words([digits & (2**64 - 1), last])
    found = noise._block(rate, noise._cumulative(rate, 80), digits >> 64, stream)  # type: ignore[arg-type]
    assert found == expected


def test_the_table_of_blocks_agrees_with_the_slow_decision() -> None:
    law = noise._law(Fraction(100) ** 2)
    decided = np.flatnonzero(law.blocks >= 0)
    assert 0.99 < decided.size / law.blocks.size < 1
    for cell in decided[:: decided.size // 200]:
        for word in (0, 2**64 - 1):
            stream = Words([word])
            found = noise._block(law.rate, law.cumulative, int(cell), stream)  # type: ignore[arg-type]
            assert found == law.blocks[cell]


def never_equal(draws: Sequence[bytes]) -> bool:
    return len(set(draws)) == len(draws)


def test_no_two_draws_are_equal_whatever_is_seeded() -> None:
    draws, fakes = [], []
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        draws.append(draw(permit(), 100.0, 50).tobytes())
        draws.append(draw(permit(), 100.0, 50, SystemNoise()).tobytes())
        fakes.append(rounded(100.0, 50).tobytes())
    assert never_equal(draws)
    assert not never_equal(fakes)


SCRIPT = """
import os, numpy as np
from medfl.privacy.noise import _sample, system
from medfl.privacy.keystream import Keystream
np.random.seed(0)
child = os.fork()
os.write(1, f"{_sample(100.0, 8, Keystream(system.key())).tolist()}\\n".encode())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_no_two_processes_draw_the_same() -> None:
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True).stdout for _ in range(2)]
    lines = [line for run in runs for line in run.splitlines()]
    assert len(lines) == 4
    assert never_equal(lines)


def test_seeded_noise_repeats_by_seed_and_not_within_a_source() -> None:
    np.testing.assert_array_equal(seeded(9.0, 100, seed=5), seeded(9.0, 100, seed=5))
    assert not np.array_equal(seeded(9.0, 100, seed=5), seeded(9.0, 100, seed=6))
    source = SeededNoise(5)
    assert source.key() != source.key()


def test_noise_is_drawn_once_for_a_charge() -> None:
    once = permit()
    draw(once, 5.0, 4)
    with pytest.raises(RunError, match="round 3: its noise was drawn already"):
        draw(once, 5.0, 4)


@pytest.mark.parametrize(("charged", "source"), [("system", SeededNoise(1)), ("insecure-test", system)])
def test_noise_is_of_the_randomness_that_was_charged(charged: Randomness, source: NoiseSource) -> None:
    refused = permit(charged)
    with pytest.raises(RunError, match=f"round 3: the noise was charged as '{charged}'"):
        draw(refused, 5.0, 4, source)
    with pytest.raises(RunError, match="drawn already"):
        refused.use()


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 2.0**31, 1e-9])
def test_sigma_that_cannot_be_drawn(sigma: float) -> None:
    with pytest.raises(RunError, match="round 3: noise of standard deviation"):
        draw(permit(), sigma, 4)


@pytest.mark.parametrize("sigma", [2.0**-16, 0.05, 2.0**30])
def test_the_ends_of_the_range(sigma: float) -> None:
    values = seeded(sigma, 20_000)
    assert values.dtype == np.int64 and values.shape == (20_000,)
    if sigma < 1:
        assert not values.any()
    else:
        assert abs(values.std() / sigma - 1) < 0.03
    assert draw(permit(), sigma, 0).size == 0


def test_a_stream_is_read_on_not_again() -> None:
    stream = Keystream(bytes(32))
    assert not np.array_equal(noise._sample(9.0, 100, stream), noise._sample(9.0, 100, stream))
