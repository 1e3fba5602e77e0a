"""B. Li, D. Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021.

Whoever holds a CKKS ciphertext (c0, c1) and its decryption m = c0 + c1 s as it is, errors included, solves for the
secret key: s = (m - c0) / c1. The attack works on what a plain CKKS library returns, and not on what medfl releases.
"""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tenseal")

from medfl.privacy.channels.he.memory import MemoryFile
from medfl.privacy.channels.he.scheme import DEGREE, Ckks

HALF = DEGREE // 2


class Encrypted:
    """A sum of four updates, with what the coordinator has of it and what the key holder has."""

    def __init__(self) -> None:
        self.scheme = Ckks()
        self.secret = self.scheme.secret_key()
        self.values = np.random.default_rng(0).integers(-80_000, 80_000, (4, DEGREE))
        with MemoryFile() as file:
            blobs = self.scheme.encrypted("symmetric", self.secret, iter(self.values))
            parts = [self.scheme.load(file, blob, self.scheme.form(seeded=True)) for blob in blobs]
        self.ciphertext = parts[0]
        for part in parts[1:]:
            self.scheme.evaluator.add_inplace(self.ciphertext, part)
        self.decryptor = self.scheme.seal.Decryptor(self.scheme.context, self.secret)

    @property
    def modulus(self) -> int:
        return int(self.scheme.context.first_context_data().parms().coeff_modulus()[0].value())

    def raw(self) -> np.ndarray:
        """What a plain CKKS library returns: the decoded slots with their errors."""
        plaintext = self.scheme.seal.Plaintext()
        self.decryptor.decrypt(self.ciphertext, plaintext)
        return np.array(self.scheme._encoder.decode_complex(plaintext))

    def released(self) -> np.ndarray:
        """What medfl releases, as slots again."""
        integers = self.scheme.decrypt(self.decryptor, self.ciphertext)
        return integers[:HALF] + 1j * integers[HALF:]


def recovered(encrypted: Encrypted, slots: np.ndarray) -> float:
    """The share of the secret key's values (its number-theoretic transform, one to one with its coefficients) that the
    attack finds from the ciphertext and `slots`."""
    scheme, modulus = encrypted.scheme, encrypted.modulus
    message = scheme.seal.Plaintext()
    scheme._encoder.encode(slots.tolist(), scheme.scale, message)
    coefficients = encrypted.ciphertext.dyn_array()
    truth = encrypted.secret.data()
    right = 0
    for place in range(DEGREE):
        c0, c1 = coefficients.at(place), coefficients.at(DEGREE + place)
        key = (message.data(place) - c0) * pow(c1, -1, modulus) % modulus
        right += key == truth.data(place)
    return right / DEGREE


@pytest.mark.parametrize(
    ("given", "share"),
    [(Encrypted.raw, 1.0), (Encrypted.released, 0.0)],
    ids=["a plain library's decryption", "what medfl releases"],
)
def test_key_recovery(given: Callable[[Encrypted], np.ndarray], share: float) -> None:
    encrypted = Encrypted()
    assert recovered(encrypted, given(encrypted)) == share


def test_released_sum_is_exact() -> None:
    encrypted = Encrypted()
    expected = encrypted.values.sum(axis=0)
    assert np.array_equal(encrypted.released(), expected[:HALF] + 1j * expected[HALF:])
