"""TenSEAL's high-level `ckks_vector`, as other federated systems use it: for exchange with them and for comparison.

It is 8 times larger and several times slower than the channel's own packing, and approximate. Parameters: those of
NVIDIA FLARE's HE example (degree 8192, moduli of 60, 40, 40 bits, scale 2^40).
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.privacy.channels.he.scheme import sealapi
from medfl.update.vector import FloatVector
from medfl.update.wire import Buffer

DEGREE = 8192
BITS = (60, 40, 40)
SCALE = 2.0**40
SLOTS = DEGREE // 2
"""Values a vector. TenSEAL would take more, with a warning on stdout from C++ and one protobuf of at most 2 GiB."""
_LARGEST = 2.0**48


class CkksVectors:
    """A vector as a stream of serialised CKKSVectors of SLOTS values each."""

    def __init__(self, context: Any) -> None:
        sealapi()
        self._tenseal: Any = import_module("tenseal")
        self._context = context

    @classmethod
    def generate(cls) -> "CkksVectors":
        """With a new key pair."""
        sealapi()
        tenseal: Any = import_module("tenseal")
        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(BITS))
        context.global_scale = SCALE
        return cls(context)

    def public(self) -> "CkksVectors":
        """Without the secret key, for the coordinator."""
        blob = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        return CkksVectors(self._tenseal.context_from(blob))

    @property
    def has_secret(self) -> bool:
        return bool(self._context.has_secret_key())

    def encrypt(self, values: FloatVector) -> Iterator[bytes]:
        """The ciphertexts of `values` [size]."""
        for start in range(0, values.size, SLOTS):
            chunk = values[start : start + SLOTS].tolist()
            yield self._tenseal.ckks_vector(self._context, chunk).serialize()

    def add(self, first: Iterable[Buffer], second: Iterable[Buffer]) -> Iterator[bytes]:
        """The ciphertexts of the sum; ValueError when their numbers differ."""
        for one, other in zip(first, second, strict=True):
            total = self._load(one)
            total += self._load(other)
            yield total.serialize()

    def decrypt(self, blobs: Iterable[Buffer], step: float) -> FloatVector:
        """The values [size], rounded to multiples of `step`: what CKKS decrypts to as it is reveals the key to those
        who hold the ciphertexts. RunError when values are far from the grid, as with a wrong key."""
        values = np.concatenate([np.array(self._load(blob).decrypt()) for blob in blobs]) / step
        rounded = np.rint(values)
        # beyond the precision of float64 everything looks like an integer
        if not (np.max(np.abs(values)) < _LARGEST and np.max(np.abs(values - rounded)) < 0.25):
            raise RunError.at("ckks vector", f"decrypts to values off the grid of {step:g}", "check key and step")
        result: FloatVector = (rounded * step).astype(np.float32)
        return result

    def _load(self, blob: Buffer) -> Any:
        return self._tenseal.ckks_vector_from(self._context, bytes(blob))
