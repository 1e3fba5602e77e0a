"""Whatever bytes arrive: a clean refusal, in bounded memory."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tenseal")

from medfl.privacy.channels.he import blobs, memory
from medfl.privacy.channels.he.memory import MemoryFile
from medfl.privacy.channels.he.scheme import DEGREE, Bfv, Ckks, Scheme
from medfl.privacy.channels.he.sums import RunningSum, decrypted

SCHEMES: dict[str, Scheme] = {"bfv": Bfv(), "ckks": Ckks()}


def sample(scheme: Scheme, value: int = 1) -> tuple[Any, bytes]:
    key = scheme.secret_key()
    return key, next(scheme.encrypted("symmetric", key, iter([np.full(DEGREE, value)])))


BLOBS = {name: sample(scheme)[1] for name, scheme in SCHEMES.items()}


@given(data=st.binary(max_size=200))
def test_any_bytes_split_or_are_refused(data: bytes) -> None:
    try:
        parts = list(blobs.split([data]))
    except blobs.BadBlobError:
        return
    assert b"".join(parts) == data


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=100)
@given(at=st.integers(0, 27_000), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_ciphertexts_load_or_are_refused(name: str, at: int, bit: int, cut: bool) -> None:
    """Damage that still is a ciphertext is the signature's business; no other error escapes."""
    scheme, blob = SCHEMES[name], bytearray(BLOBS[name])
    blob[at] ^= 1 << bit
    with MemoryFile() as file:
        try:
            loaded = scheme.load(file, bytes(blob[:at] if cut else blob), scheme.form(seeded=True))
        except blobs.BadBlobError:
            return
    assert (loaded.size(), loaded.parms_id()) == (2, scheme.context.first_parms_id())


def bomb(size: int) -> bytes:
    """A small object that inflates to `size` bytes."""
    body = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
    header = bytearray(BLOBS["bfv"][:16])
    header[8:16] = (16 + len(body)).to_bytes(8, "little")
    return bytes(header) + body


@pytest.mark.parametrize("known", [False, True])
def test_bombs_are_not_inflated(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if known:
        compressor = zstandard.ZstdCompressor
        monkeypatch.setattr(zstandard, "ZstdCompressor", lambda write_content_size: compressor())
    blob = bomb(1 << 28)
    assert len(blob) < 1 << 16
    with pytest.raises(blobs.BadBlobError, match=r"inflated|larger"):
        blobs.inflate(blob, 70_000)
    scheme = SCHEMES["bfv"]
    with MemoryFile() as file, pytest.raises(blobs.BadBlobError):
        scheme.load(file, blob, scheme.form(seeded=True))


def test_nested_object_cannot_ask_for_compression() -> None:
    scheme = SCHEMES["bfv"]
    form = scheme.form(seeded=True)
    members = bytearray(blobs.inflate(BLOBS["bfv"], form.size))
    for place in (73 + 5, form.size - 81 + 5):
        assert members[place] == 0  # the nested header's kind of compression
        changed = members.copy()
        changed[place] = 2
        with pytest.raises(blobs.BadBlobError, match="not a ciphertext of the round's scheme"):
            form.open(blobs.plain_header(bytes(changed), form.version) + bytes(changed))


def test_schemes_and_sizes_are_told_apart() -> None:
    with MemoryFile() as file:
        for name, other in (("bfv", "ckks"), ("ckks", "bfv")):
            with pytest.raises(blobs.BadBlobError, match="not a ciphertext of the round's scheme"):
                SCHEMES[name].load(file, BLOBS[other], SCHEMES[name].form(seeded=True))
        with pytest.raises(blobs.BadBlobError):
            SCHEMES["bfv"].load(file, BLOBS["bfv"], SCHEMES["bfv"].form(seeded=False))


@pytest.mark.parametrize("name", SCHEMES)
def test_wrong_key_is_noticed(name: str) -> None:
    scheme = SCHEMES[name]
    total = RunningSum(scheme, DEGREE - 1, seeded=True)
    key, blob = sample(scheme, 5)
    total.add([blob])
    assert np.array_equal(next(decrypted(scheme, key, total.save(), 1)), np.full(DEGREE, 5))
    with pytest.raises(blobs.BadBlobError, match="a wrong key or data"):
        next(decrypted(scheme, scheme.secret_key(), total.save(), 1))
    total.add([sample(scheme)[1]])  # under another key
    with pytest.raises(blobs.BadBlobError, match="a wrong key or data"):
        next(decrypted(scheme, key, total.save(), 1))


def test_file_without_memfd_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(memory.os, "memfd_create", raising=False)
    monkeypatch.setattr(memory.tempfile, "tempdir", str(tmp_path))
    scheme = SCHEMES["bfv"]
    with MemoryFile() as file:
        (path,) = tmp_path.iterdir()
        assert sys.platform == "win32" or path.stat().st_mode & 0o077 == 0
        loaded = scheme.load(file, BLOBS["bfv"], scheme.form(seeded=True))
        assert len(file.save(loaded.save)) > 50_000
    assert list(tmp_path.iterdir()) == []
