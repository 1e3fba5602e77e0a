"""Secrets split among parties so that any `threshold` of them can rebuild it and fewer learn nothing.

A. Shamir, "How to Share a Secret", CACM 1979: shares are values of a random polynomial over a prime field.
"""

from collections.abc import Sequence
from secrets import randbelow

from medfl.errors import RunError

PRIME = 2**521 - 1
SHARE_BYTES = 66
SECRET_BYTES = 32


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """The shares [66 bytes each] of a secret [32 bytes] at distinct points from 1."""
    polynomial = [int.from_bytes(secret, "big"), *(randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in points]


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def weights(points: Sequence[int]) -> list[int]:
    """Lagrange's weights: the secret is the sum of weight times share over exactly `threshold` distinct points."""
    found = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def combine(weights: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """The secret [32 bytes] of shares in the order of their weights; RunError when they are not of one secret. (Wrong
    shares are found out only nearly always: compare the secret with a commitment.)"""
    values = [int.from_bytes(share, "big") for share in shares]
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    if secret.bit_length() > 8 * SECRET_BYTES:
        raise RunError.at("shares", "do not belong to one secret")
    return secret.to_bytes(SECRET_BYTES, "big")
