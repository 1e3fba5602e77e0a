"""Encryption of integers such that sums come back exact: BFV and CKKS at ring degree 4096 by `tenseal.sealapi`.

BFV: J. Fan, F. Vercauteren, "Somewhat Practical Fully Homomorphic Encryption", ePrint 2012/144. Exact.
CKKS: J. H. Cheon et al., "Homomorphic Encryption for Arithmetic of Approximate Numbers", ASIACRYPT 2017. Its errors
reveal the secret key to whoever holds the ciphertexts (B. Li, D. Micciancio, EUROCRYPT 2021), so a decrypted value
never leaves `decrypt` but rounded to the integer that it stands for.

Both keep log q of the key within the 109 bits of SEAL's 128-bit security table for this degree (88 and 106 bits).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from medfl.errors import StudyError
from medfl.privacy.channels.he.blobs import BadBlobError, Form, inflate, plain_header, version
from medfl.privacy.channels.he.memory import MemoryFile
from medfl.update.wire import Buffer

Integers = npt.NDArray[np.int64]
SchemeName = Literal["bfv", "ckks"]
KeyKind = Literal["symmetric", "public"]

DEGREE = 4096
"""Degree of the ring, and integers that one ciphertext carries."""
LEAST_BUDGET = 5
"""Bits of noise budget below which a BFV decryption is refused: attacks start from decryptions that can fail
(ePrint 2024/127)."""
_MOST_KEY = 1 << 20


def sealapi() -> Any:
    """The bindings of SEAL; StudyError when they are not installed."""
    try:
        return import_module("tenseal.sealapi")
    except ImportError as error:
        raise StudyError.at(
            "channel 'he'", f"needs TenSEAL, which cannot be imported: {error}", "pip install 'medfl[he]'"
        ) from error


class Scheme(ABC):
    """A scheme with its parameters. capacity: largest absolute value that a sum can have."""

    name: ClassVar[SchemeName]
    bits: ClassVar[tuple[int, ...]]
    capacity: ClassVar[int]

    def __init__(self) -> None:
        self.seal = sealapi()
        parameters = self.seal.EncryptionParameters(getattr(self.seal.SCHEME_TYPE, self.name.upper()))
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(self.seal.CoeffModulus.Create(DEGREE, list(self.bits)))
        self._choose(parameters)
        self.context = self.seal.SEALContext(parameters, True, self.seal.SEC_LEVEL_TYPE.TC128)
        self.evaluator = self.seal.Evaluator(self.context)
        self._forms: dict[bool, Form] = {}

    @abstractmethod
    def _choose(self, parameters: Any) -> None:
        """Set what this scheme has beyond degree and moduli."""

    @abstractmethod
    def encode(self, values: Integers) -> Any:
        """The plaintext of `values` [DEGREE], each at most `capacity` in absolute value."""

    @abstractmethod
    def decrypt(self, decryptor: Any, ciphertext: Any) -> Integers:
        """The exact integers [DEGREE]; BadBlobError when they cannot be told for sure."""

    def secret_key(self) -> Any:
        """A fresh secret key from the system's generator."""
        return self.seal.KeyGenerator(self.context).secret_key()

    def public_key(self, secret: Any) -> Any:
        public = self.seal.PublicKey()
        self.seal.KeyGenerator(self.context, secret).create_public_key(public)
        return public

    def load_key(self, kind: KeyKind, blob: Buffer) -> Any:
        """A secret ("symmetric") or public key from its bytes; BadBlobError when they are none of this scheme."""
        key = self.seal.SecretKey() if kind == "symmetric" else self.seal.PublicKey()
        members = inflate(blob, _MOST_KEY)
        with MemoryFile() as file:
            _read(key, self.context, file, plain_header(members, version(blob)), members)
        return key

    def form(self, seeded: bool) -> Form:
        """What ciphertexts of a site with the secret key (`seeded`), or all others, look like."""
        if seeded not in self._forms:
            encryptor = self.seal.Encryptor(self.context, self.secret_key())
            plaintext = self.encode(np.ones(DEGREE, np.int64))
            ciphertext = self.seal.Ciphertext()
            encryptor.encrypt_symmetric(plaintext, ciphertext)
            sample = encryptor.encrypt_symmetric(plaintext) if seeded else ciphertext
            self._forms[seeded] = Form.of(dump(sample), DEGREE)
        return self._forms[seeded]

    def load(self, file: MemoryFile, blob: Buffer, form: Form) -> Any:
        """The ciphertext in `blob`; BadBlobError when it is not a whole one of this form and scheme."""
        ciphertext = self.seal.Ciphertext()
        _read(ciphertext, self.context, file, *form.open(blob))
        return ciphertext

    def encrypted(self, kind: KeyKind, key: Any, chunks: Iterator[Integers]) -> Iterator[bytes]:
        """The saved ciphertext of each chunk [DEGREE]; half the size when the key is secret (a seed stands for the
        random half)."""
        encryptor = self.seal.Encryptor(self.context, key)
        with MemoryFile() as file:
            for chunk in chunks:
                plaintext = self.encode(chunk)
                if kind == "symmetric":
                    sealed = encryptor.encrypt_symmetric(plaintext)
                else:
                    sealed = self.seal.Ciphertext()
                    encryptor.encrypt(plaintext, sealed)
                yield file.save(sealed.save)


class Bfv(Scheme):
    """Plain modulus: the largest 24-bit prime that batches, 16,760,833. A sum of 100 updates leaves a budget
    of 12 bits with symmetric keys, 9 with public ones."""

    name = "bfv"
    bits = (44, 44)
    capacity = 8_380_416

    def __init__(self) -> None:
        super().__init__()
        self._encoder = self.seal.BatchEncoder(self.context)
        self._modulus = self.context.first_context_data().parms().plain_modulus().value()

    def _choose(self, parameters: Any) -> None:
        parameters.set_plain_modulus(self.seal.PlainModulus.Batching(DEGREE, 24))

    def encode(self, values: Integers) -> Any:
        plaintext = self.seal.Plaintext()
        residues = values + ((values >> 63) & self._modulus)  # the modulus is added to what is negative
        self._encoder.encode(residues.tolist(), plaintext)
        return plaintext

    def decrypt(self, decryptor: Any, ciphertext: Any) -> Integers:
        budget = decryptor.invariant_noise_budget(ciphertext)
        if budget < LEAST_BUDGET:
            raise BadBlobError(f"has a noise budget of {budget} bits, {LEAST_BUDGET} are needed: a wrong key or data")
        plaintext = self.seal.Plaintext()
        decryptor.decrypt(ciphertext, plaintext)
        return np.array(self._encoder.decode_int64(plaintext), np.int64)


class Ckks(Scheme):
    """Integers as real and imaginary parts at scale 2^28: a fresh ciphertext errs by about 2e-6 of the distance between
    two integers, and `capacity` fills 52 of the 54 bits."""

    name = "ckks"
    bits = (54, 52)
    capacity = 1 << 23
    scale = 2.0**28
    tolerance = 0.01
    """Largest distance from an integer; a wrong key gives 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = self.seal.CKKSEncoder(self.context)

    def _choose(self, parameters: Any) -> None:
        """Nothing."""

    def encode(self, values: Integers) -> Any:
        half = DEGREE // 2
        plaintext = self.seal.Plaintext()
        self._encoder.encode((values[:half] + 1j * values[half:]).tolist(), self.scale, plaintext)
        return plaintext

    def decrypt(self, decryptor: Any, ciphertext: Any) -> Integers:
        plaintext = self.seal.Plaintext()
        decryptor.decrypt(ciphertext, plaintext)
        complex_values = np.array(self._encoder.decode_complex(plaintext))
        values = np.concatenate([complex_values.real, complex_values.imag])
        rounded = np.rint(values)
        if not np.max(np.abs(values - rounded)) <= self.tolerance:
            raise BadBlobError("decrypts to values off the grid: a wrong key or data")
        integers: Integers = rounded.astype(np.int64)
        return integers


def scheme_of(name: SchemeName) -> Scheme:
    return Bfv() if name == "bfv" else Ckks()


def dump(saveable: Any) -> bytes:
    """The bytes of a SEAL object."""
    with MemoryFile() as file:
        return file.save(saveable.save)


def _read(target: Any, context: Any, file: MemoryFile, *parts: Buffer) -> None:
    try:
        file.load(lambda path: target.load(context, path), *parts)
    except (RuntimeError, ValueError) as error:  # what SEAL's exceptions become
        raise BadBlobError(f"is refused by SEAL: {error}") from error
