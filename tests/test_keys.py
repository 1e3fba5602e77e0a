"""Key files are their owner's alone, and say how to mend what is wrong with them."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.audit.file import rewrite
from medfl.errors import InputError
from medfl.keys import (
    is_protected,
    load_signing_key,
    load_tls_key,
    make_private_folder,
    new_tls_key,
    read_passphrase,
    to_pem,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "site.key"
    rewrite(found, to_pem(new_tls_key()))
    return found


def test_a_key_comes_back_with_and_without_a_passphrase(path: Path):
    key = new_tls_key()
    rewrite(path, to_pem(key))
    assert load_tls_key(path).private_numbers() == key.private_numbers() and not is_protected(path)
    rewrite(path, to_pem(key, b"open sesame"))
    assert is_protected(path) and b"ENCRYPTED" in path.read_bytes()
    assert load_tls_key(path, lambda _: b"open sesame").private_numbers() == key.private_numbers()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("passphrase", [b"wrong", b"", b"open sesame "])
def test_a_wrong_passphrase(path: Path, passphrase: bytes):
    rewrite(path, to_pem(new_tls_key(), b"open sesame"))
    with pytest.raises(InputError, match="cannot be opened with this passphrase"):
        load_tls_key(path, lambda _: passphrase)
    with pytest.raises(InputError, match="--passphrase-file"):
        load_tls_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_key_that_others_can_open_is_refused_with_what_mends_it(path: Path, mode: int):
    path.chmod(mode)
    with pytest.raises(InputError) as error:
        load_tls_key(path)
    (fault,) = error.value.faults
    assert f"mode {mode:o}" in fault.what and fault.remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    load_tls_key(path)
    path.chmod(0o400)
    load_tls_key(path)


def test_other_keys_and_other_files(path: Path):
    rewrite(path, to_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(InputError, match="P-256"):
        load_tls_key(path)
    rewrite(path, to_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(InputError, match="P-256"):
        load_tls_key(path)
    with pytest.raises(InputError, match="Ed25519"):
        load_signing_key(path)
    with pytest.raises(InputError, match="does not exist"):
        load_tls_key(path.with_name("none"))
    rewrite(path, b"x" * 70000)
    with pytest.raises(InputError, match="larger"):
        load_tls_key(path)


@settings(max_examples=30)
@given(content=st.binary(max_size=300), protected=st.booleans())
def test_any_bytes_are_refused_cleanly(path: Path, content: bytes, protected: bool):
    rewrite(path, (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" if protected else b"") + content)
    with pytest.raises(InputError):
        load_tls_key(path, lambda _: b"x")


def test_a_passphrase_is_the_first_line_of_a_private_file(path: Path):
    rewrite(path, b"open sesame\r\nsecond line\n")
    assert read_passphrase(path) == b"open sesame"
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_passphrase(path)
    rewrite(path, b"\nx")
    with pytest.raises(InputError, match="no passphrase"):
        read_passphrase(path)


def test_folders(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    make_private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o750)
    with pytest.raises(InputError, match=f"chmod 700 {folder}"):
        make_private_folder(folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        make_private_folder(tmp_path / "file")
