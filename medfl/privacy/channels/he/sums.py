"""Vectors under encryption: a running sum of what arrives, and the values of a sum under its key."""

from collections.abc import Iterator, Sequence
from typing import Any

from medfl.privacy.channels.he import blobs
from medfl.privacy.channels.he.chunks import chunks_of, count
from medfl.privacy.channels.he.memory import MemoryFile
from medfl.privacy.channels.he.scheme import Integers, Scheme
from medfl.update.wire import Buffer


class RunningSum:
    """The sum of sealed vectors of `size` values. One sum is held, whatever the number of sites; seeded: whether what
    arrives comes from sites with the secret key."""

    def __init__(self, scheme: Scheme, size: int, seeded: bool) -> None:
        self._scheme, self._seeded = scheme, seeded
        self._chunks = count(size)
        self._ciphertexts: list[Any] = []

    def add(self, buffers: Sequence[Buffer]) -> None:
        """Add every ciphertext, or none: BadBlobError, and the sum is as before."""
        first, added = not self._ciphertexts, 0
        try:
            for ciphertext in loaded(self._scheme, buffers, self._chunks, self._seeded):
                if first:
                    self._ciphertexts.append(ciphertext)
                else:
                    self._scheme.evaluator.add_inplace(self._ciphertexts[added], ciphertext)
                added += 1
        except blobs.BadBlobError:
            self._undo(buffers, first, added)
            raise

    def add_plain(self, values: Integers) -> None:
        """Add values [size] that are not encrypted."""
        for ciphertext, chunk in zip(self._ciphertexts, chunks_of(values), strict=True):
            self._scheme.evaluator.add_plain_inplace(ciphertext, self._scheme.encode(chunk))

    def save(self) -> tuple[bytes, ...]:
        """The sum as buffers; no buffers when nothing was added."""
        with MemoryFile() as file:
            return blobs.join(file.save(ciphertext.save) for ciphertext in self._ciphertexts)

    def _undo(self, buffers: Sequence[Buffer], first: bool, added: int) -> None:
        # subtraction in the ring is exact, so that nothing remains of what is taken back
        if first:
            self._ciphertexts = []
            return
        form = self._scheme.form(self._seeded)
        with MemoryFile() as file:
            for total, blob in zip(self._ciphertexts[:added], blobs.split(buffers), strict=False):
                self._scheme.evaluator.sub_inplace(total, self._scheme.load(file, blob, form))


def loaded(scheme: Scheme, buffers: Sequence[Buffer], chunks: int, seeded: bool) -> Iterator[Any]:
    """Exactly `chunks` ciphertexts from `buffers`, one at a time; BadBlobError when they are others."""
    form = scheme.form(seeded)
    number = 0
    with MemoryFile() as file:
        for blob in blobs.split(buffers):
            if number == chunks:
                raise blobs.BadBlobError(f"has more than {chunks} ciphertexts")
            yield scheme.load(file, blob, form)
            number += 1
    if number != chunks:
        raise blobs.BadBlobError(f"has {number} ciphertexts, {chunks} are needed")


def decrypted(scheme: Scheme, secret: Any, buffers: Sequence[Buffer], chunks: int) -> Iterator[Integers]:
    """The exact integers [DEGREE] of each chunk of a sum; BadBlobError when they cannot be had."""
    decryptor = scheme.seal.Decryptor(scheme.context, secret)
    for ciphertext in loaded(scheme, buffers, chunks, seeded=False):
        yield scheme.decrypt(decryptor, ciphertext)
