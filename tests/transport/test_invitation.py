"""The file that a person hands over."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.audit.file import rewrite
from medfl.errors import InputError
from medfl.transport.invitation import Invitation, join_address, read_invitation, split_address

GIVEN = {
    "version": 1,
    "coordinator": "chest",
    "address": "fl.example.org:8443",
    "enrol_address": "[::1]:8444",
    "name": "north",
    "role": "site",
    "ca": "-----BEGIN CERTIFICATE-----",
    "token": "t" * 43,
    "expires": "2030-01-01T00:00:00Z",
}


def read(path: Path, **changed: object) -> Invitation:
    rewrite(path, json.dumps({**GIVEN, **changed}).encode())
    return read_invitation(path)


def test_it_comes_back_and_hides_its_token(tmp_path: Path):
    found = read(tmp_path / "x")
    assert found.token == "t" * 43 and "tttt" not in repr(found) + str(found)
    assert found.expired(datetime(2030, 1, 1, tzinfo=UTC)) and not found.expired(datetime(2029, 12, 31, tzinfo=UTC))


def test_all_faults_at_once_and_none_repeats_the_token(tmp_path: Path):
    with pytest.raises(InputError) as error:
        read(tmp_path / "x", token="s" * 42, role="boss", version=2, address="nowhere", expires="2030-01-01", extra=1)
    places = {fault.where.rpartition(": ")[2] for fault in error.value.faults}
    assert {"token", "role", "version", "address", "extra"} <= places and "sss" not in str(error.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path):
    read(tmp_path / "x")
    (tmp_path / "x").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_invitation(tmp_path / "x")


@settings(max_examples=50)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_cleanly(tmp_path: Path, content: bytes):
    rewrite(tmp_path / "x", content)
    with pytest.raises(InputError):
        read_invitation(tmp_path / "x")


@pytest.mark.parametrize(
    "text, host, port",
    [
        ("fl.example.org", "fl.example.org", None),
        ("fl.example.org:8443", "fl.example.org", 8443),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("::1", "::1", None),
        ("[::1]:65535", "::1", 65535),
        ("[::1]", "::1", None),
    ],
)
def test_addresses(text: str, host: str, port: int | None):
    assert split_address(text) == (host, port)
    if port:
        assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "a:0", "a:65536", "a:x", "a:٣", "a b", "[::1", "[::1]x", "-a", "a/b", "é", "*"]
)
def test_addresses_that_are_none(text: str):
    with pytest.raises(ValueError):
        split_address(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_fault(text: str):
    try:
        host, port = split_address(text)
    except ValueError:
        return
    if port is not None:
        assert split_address(join_address(host, port)) == (host, port)
