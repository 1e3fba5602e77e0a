"""The certificates are what TLS libraries accept, for their purpose and nothing else."""

import ipaddress
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from toys.admission import Clock

from medfl.coordinator.authority import Authority
from medfl.errors import InputError, RunError
from medfl.keys import new_tls_key, to_pem
from medfl.transport.certificates import Subject, signed_by, subject_of
from medfl.transport.peers import AdmissionError

PEER = Subject("north", "site", "ab" * 32)


def files(folder: Path, name: str, key, certificate: x509.Certificate) -> tuple[str, str]:
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(to_pem(key))
    return str(paths[0]), str(paths[1])


def context(purpose: int, authority: Authority, own: tuple[str, str] | None) -> ssl.SSLContext:
    found = ssl.SSLContext(purpose)
    found.verify_mode = ssl.CERT_REQUIRED
    found.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for by itself
    found.load_verify_locations(cadata=authority.pem.decode())
    if own:
        found.load_cert_chain(*own)
    return found


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> dict:
    """A handshake in memory, both ways; the peer's certificate as the server sees it."""
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(a, b, server_side=True), client.wrap_bio(b, a, server_hostname=host)]
    waiting = set(range(2))
    for _ in range(10):
        for number in sorted(waiting):
            try:
                ends[number].do_handshake()
                waiting.discard(number)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    ends[1].write(b"hello")  # in TLS 1.3 a server refuses a certificate only after the client is done
    assert ends[0].read(5) == b"hello"
    return ends[0].getpeercert(binary_form=False)


class Ends:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create("lead")
        key = new_tls_key()
        self.server = files(
            folder, "server", key, self.authority.issue_server(key.public_key(), ["localhost", "127.0.0.1"])
        )
        self.client = self.peer(self.authority)

    def peer(self, authority: Authority) -> tuple[str, str]:
        key = new_tls_key()
        return files(self.folder, f"peer{id(key)}", key, authority.issue(key.public_key(), PEER))

    def shake(self, client=None, server=None, trusted=None, host="localhost") -> dict:
        asked = context(ssl.PROTOCOL_TLS_SERVER, self.authority, server or self.server)
        return shake(asked, context(ssl.PROTOCOL_TLS_CLIENT, trusted or self.authority, client or self.client), host)


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_both_sides_accept_each_other(ends: Ends, host: str):
    seen = ends.shake(host=host)
    subject = dict(pair for group in seen["subject"] for pair in group)
    assert subject == {"organizationalUnitName": "site", "commonName": "north"}
    assert seen["subjectAltName"] == (("URI", f"medfl:identity:{'ab' * 32}"),)


def test_a_peer_of_another_authority_of_the_same_name_is_not_accepted(ends: Ends):
    with pytest.raises(ssl.SSLError):
        ends.shake(client=ends.peer(Authority.create("lead")))


def test_a_coordinator_of_another_authority_is_not_accepted(ends: Ends):
    with pytest.raises(ssl.SSLCertVerificationError):
        ends.shake(trusted=Authority.create("lead"))


def test_a_coordinator_under_another_name_is_not_accepted(ends: Ends):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname"):
        ends.shake(host="example.org")


def test_a_peer_cannot_stand_in_for_the_coordinator(ends: Ends):
    with pytest.raises(ssl.SSLError):
        ends.shake(server=ends.client)


def test_the_coordinators_certificate_lets_nobody_in_as_a_peer(ends: Ends):
    with pytest.raises(ssl.SSLError):
        ends.shake(client=ends.server)


def test_a_peer_cannot_issue_certificates(ends: Ends):
    key = new_tls_key()
    middle = Authority(key, ends.authority.issue(key.public_key(), PEER))
    leaf_key = new_tls_key()
    leaf, path = files(ends.folder, "leaf", leaf_key, middle.issue(leaf_key.public_key(), PEER))
    Path(leaf).write_bytes(Path(leaf).read_bytes() + middle.pem)  # the chain that it would send
    with pytest.raises(ssl.SSLError):
        ends.shake(client=(leaf, path))


def test_what_the_authority_signs(ends: Ends):
    certificate = ends.authority.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc > timedelta(days=3649)
    key = new_tls_key().public_key()
    one, two = (ends.authority.issue(key, PEER) for _ in range(2))
    assert one.serial_number != two.serial_number and signed_by(one, certificate)
    assert subject_of(one) == PEER
    server = ends.authority.issue_server(key, ["fl.example.org", "10.0.0.1", "::1"])
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    addresses = [ipaddress.ip_address(text) for text in ("10.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    with pytest.raises(AdmissionError, match="not a peer's"):
        subject_of(server)


def test_nothing_outlives_the_authority():
    clock = Clock()
    authority, key = Authority.create("lead", clock), new_tls_key().public_key()
    clock.pass_(days=3600)
    assert authority.issue(key, PEER).not_valid_after_utc == authority.issue_server(key, ["x"]).not_valid_after_utc
    clock.pass_(days=50)
    with pytest.raises(RunError, match="ended"):
        authority.issue(key, PEER)


def test_key_and_certificate_must_belong_together(tmp_path: Path):
    one, two = Authority.create("one"), Authority.create("two")
    certificate, key = files(tmp_path, "ca", one.key, two.certificate)
    Path(key).chmod(0o600)
    with pytest.raises(InputError, match="does not belong to the key"):
        Authority.open(Path(key), Path(certificate))
    with pytest.raises(InputError, match="not a certificate"):
        Authority.open(Path(key), Path(key))
