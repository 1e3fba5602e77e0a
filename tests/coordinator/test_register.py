"""Who is let in: invitations are used once, certificates count until they do not."""

import base64
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.admission import Applicant, House

from medfl.audit.log import AuditLog
from medfl.coordinator.authority import Authority
from medfl.coordinator.register import Register
from medfl.errors import InputError, RunError
from medfl.keys import new_tls_key
from medfl.transport.certificates import Subject, fingerprint, signing_request, subject_of
from medfl.transport.peers import AdmissionError, Peer


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def request_of(key, name: str = "north") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder(subject_name=subject).sign(key, algorithm).public_bytes(Encoding.PEM)


def forged(request: bytes) -> bytes:
    """The request with one bit of its signature turned."""
    der = bytearray(x509.load_pem_x509_csr(request).public_bytes(Encoding.DER))
    der[-1] ^= 1
    text = base64.encodebytes(bytes(der)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n".encode()


# enrolment


def test_an_invited_peer_is_let_in_under_the_name_it_was_invited_by(house: House):
    peer = Applicant("somebody-else")  # what a request says of itself does not count
    token, _ = house.register.invite("north", "key-holder")
    pem = peer.enrol(house.register, token)
    read = x509.load_pem_x509_certificate(pem)
    assert subject_of(read) == Subject("north", "key-holder", peer.identity)
    assert read.public_key() == peer.key.public_key()
    assert read.not_valid_after_utc == house.clock() + timedelta(days=90)
    assert house.register.admit(pem) == Peer("north", "key-holder", fingerprint(read), peer.identity)
    assert [kind for kind, _ in house.notes] == ["invited", "enrolled"]


def refused(house: House, call, why: str) -> None:
    """Refused without a word of why, which the audit log has."""
    before = len(house.reasons)
    with pytest.raises(AdmissionError) as error:
        call()
    assert str(error.value) == "enrolment: was refused (ask the study lead, whose audit log says why)"
    assert len(house.reasons) == before + 1 and why in house.reasons[-1]


def test_an_unknown_token_is_refused(house: House):
    token, _ = house.register.invite("north")
    other = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    for wrong in (other, "", "é" * 43, "\ud800", token + "\n"):
        refused(house, lambda wrong=wrong: Applicant("north").enrol(house.register, wrong), "unknown")


def test_a_used_token_is_refused_to_everybody_else(house: House):
    token, _ = house.register.invite("north")
    Applicant("north").enrol(house.register, token)
    refused(house, lambda: Applicant("north").enrol(house.register, token), "used by another key")


def test_an_expired_token_is_refused(house: House):
    token, expires = house.register.invite("north", life=timedelta(hours=1))
    house.clock.now = expires - timedelta(seconds=1)
    peer = Applicant("north")
    house.clock.now = expires
    refused(house, lambda: peer.enrol(house.register, token), "expired")
    house.clock.now = expires - timedelta(seconds=1)
    assert peer.enrol(house.register, token)


def test_a_new_invitation_ends_the_one_before(house: House):
    old, _ = house.register.invite("north")
    new, _ = house.register.invite("north")
    refused(house, lambda: Applicant("north").enrol(house.register, old), "withdrawn")
    assert Applicant("north").enrol(house.register, new)


def test_whoever_used_a_token_gets_the_same_certificate_again_while_it_lives(house: House):
    token, expires = house.register.invite("north")
    peer = Applicant("north")
    first = peer.enrol(house.register, token)
    peer.request = signing_request(peer.key, "north")  # signed anew: other bytes, same key
    assert peer.enrol(house.register, token) == first
    thief = Applicant("north")
    wrong = {"identity": thief.identity, "proof": thief.signer.sign(peer.request)}
    refused(house, lambda: peer.enrol(house.register, token, **wrong), "another key")
    house.clock.now = expires
    refused(house, lambda: peer.enrol(house.register, token), "expired")


def test_a_revoked_certificate_is_not_given_again(house: House):
    token, _ = house.register.invite("north")
    peer = Applicant("north")
    peer.enrol(house.register, token)
    house.register.revoke("north")
    refused(house, lambda: peer.enrol(house.register, token), "revoked")


def test_a_request_must_be_signed_by_its_own_key(house: House):
    token, _ = house.register.invite("north")
    peer = Applicant("north")
    request = forged(peer.request)
    refused(
        house, lambda: peer.enrol(house.register, token, request=request, proof=peer.signer.sign(request)), "signed"
    )
    assert peer.enrol(house.register, token), "a refusal must not use the token up"


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p-384", "rsa"],
)
def test_only_keys_that_every_tls_library_takes(house: House, make):
    token, _ = house.register.invite("north")
    peer = Applicant("north")
    peer.request = request_of(make())
    refused(house, lambda: peer.enrol(house.register, token), "P-256")


def test_the_identity_must_sign_the_request(house: House):
    token, _ = house.register.invite("north")
    peer, other = Applicant("north"), Applicant("north")
    cases = {
        "of another request": {"proof": peer.signer.sign(other.request)},
        "of another identity": {"proof": other.signer.sign(peer.request)},
        "none": {"proof": b""},
        "an identity that is none": {"identity": "f" * 63},
        "an identity in capitals": {"identity": peer.identity.upper() + " "},
    }
    for changed in cases.values():
        refused(house, lambda changed=changed: peer.enrol(house.register, token, **changed), "identity")
    assert peer.enrol(house.register, token)


@settings(max_examples=40)
@given(
    damage=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=4),
    other=st.none() | st.binary(max_size=200) | st.just(b"x" * 20000),
)
def test_any_bytes_are_refused_cleanly(house: House, damage, other):
    token, _ = house.register.invite("north")
    peer = Applicant("north")
    damaged = bytearray(peer.request)
    for place, value in damage:
        damaged[place % len(damaged)] = value
    request = bytes(damaged) if other is None else other
    try:
        pem = peer.enrol(house.register, token, request=request, proof=peer.signer.sign(request))
    except AdmissionError:
        return
    # what still parses (a changed line end) must still be for the applicant's key
    assert x509.load_pem_x509_certificate(pem).public_key() == peer.key.public_key()
    house.register.revoke("north")


def race(house: House, entries: list) -> list:
    """The outcomes of entries that start together, each on its own register as if in its own process."""
    outcomes, start = [], threading.Barrier(len(entries))

    def run(enter) -> None:
        register = house.again()
        start.wait()
        try:
            outcomes.append(enter(register))
        except AdmissionError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def winners(house: House, count: int = 6) -> int:
    token, _ = house.register.invite("north")
    peers = [Applicant("north") for _ in range(count)]
    outcomes = race(house, [lambda register, peer=peer: peer.enrol(register, token) for peer in peers])
    house.register.revoke("north")
    return sum(isinstance(outcome, bytes) for outcome in outcomes)


def test_of_several_who_use_one_token_at_once_exactly_one_gets_in(house: House):
    assert [winners(house) for _ in range(5)] == [1] * 5


def test_a_register_that_looks_before_it_writes_lets_several_in(house: House, monkeypatch: pytest.MonkeyPatch):
    """The fake: the token is looked at in one transaction and used up in another, without looking again."""

    def careless(self, token, request, identity, *_):
        from medfl.coordinator import register as module

        with self._transaction() as database:
            row = module._invitation(database, token)
            if row.used_at is not None:
                raise AdmissionError.at("enrolment", "used")
        time.sleep(0.05)
        with self._transaction(writing=True) as database:
            key = module.requested_key(request)
            issued = self._issue(database, key, Subject(row.name, row.role, identity), self._clock())
            database.execute(module.update(module.invitations).values(used_at=self._clock()))
        return issued.public_bytes(Encoding.PEM)

    monkeypatch.setattr(Register, "_enrol", careless)
    assert winners(house) > 1


# names and identities


def test_a_name_stays_with_its_identity_until_it_is_revoked(house: House):
    house.enrolled("north")
    house.clock.pass_(days=200)  # also when its certificate expired long ago
    other = Applicant("north")
    token, _ = house.register.invite("north")
    refused(house, lambda: other.enrol(house.register, token), "another identity")
    house.register.revoke("north")
    token, _ = house.register.invite("north")
    pem = other.enrol(house.register, token)
    assert house.register.admit(pem).identity == other.identity


def test_the_same_identity_comes_back_with_a_new_invitation(house: House):
    peer, old = house.enrolled("north")
    house.clock.pass_(days=200)
    new = peer.enrol(house.register, house.register.invite("north")[0])
    assert new != old and house.register.admit(new).identity == peer.identity


def test_one_identity_has_one_name(house: House):
    peer, _ = house.enrolled("north")
    token, _ = house.register.invite("south")
    refused(house, lambda: peer.enrol(house.register, token), "is that of north")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "../x", "é", "x" * 65, "a\n", "coordinator", "pooled"])
def test_names_that_cannot_be(house: House, name: str):
    with pytest.raises(InputError):
        house.register.invite(name)


def test_a_peer_has_one_role(house: House):
    house.enrolled("north")
    with pytest.raises(InputError, match="enrolled as site, not as auditor"):
        house.register.invite("north", "auditor")


# the door


def shut(register: Register, pem: bytes, why: str) -> None:
    with pytest.raises(AdmissionError, match=why):
        register.admit(pem)


def test_a_revoked_certificate_does_not_count(house: House):
    _, north = house.enrolled("north")
    _, south = house.enrolled("south")
    assert house.register.revoke("north") == 1
    shut(house.register, north, "revoked")
    assert house.register.admit(south).name == "south"


def test_a_revocation_ends_open_invitations_too(house: House):
    token, _ = house.register.invite("north")
    assert house.register.revoke("north") == 0
    refused(house, lambda: Applicant("north").enrol(house.register, token), "withdrawn")
    with pytest.raises(InputError, match="no certificate and no invitation"):
        house.register.revoke("north")


def revoked_elsewhere(house: House) -> bool:
    """Whether a certificate that another process revoked counts no more within a second."""
    _, pem = house.enrolled("north")
    house.register.admit(pem)
    code = (
        "import sys; from pathlib import Path; from medfl.coordinator.register import Register;"
        "Register.open(Path(sys.argv[1])).revoke('north')"
    )
    subprocess.run([sys.executable, "-c", code, str(house.path)], check=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            house.register.admit(pem)
        except AdmissionError:
            return True
    return False


def test_a_revocation_by_another_process_counts_within_a_second(house: House):
    assert revoked_elsewhere(house)


def test_a_register_that_reads_its_file_once_lets_the_revoked_in(house: House, monkeypatch: pytest.MonkeyPatch):
    """The fake: certificates are read when the first peer comes, and kept."""
    whole, kept = Register._certificates, []

    def once(self):
        if not kept:
            kept.append(whole(self))
        return kept[0]

    monkeypatch.setattr(Register, "_certificates", once)
    assert not revoked_elsewhere(house)


def test_an_expired_certificate_does_not_count(house: House):
    _, pem = house.enrolled("north")
    house.clock.pass_(days=90, seconds=-1)
    house.register.admit(pem)
    house.clock.pass_(seconds=1)
    shut(house.register, pem, "expired")


def test_a_replaced_certificate_counts_for_a_week(house: House):
    peer, old = house.enrolled("north")
    house.clock.pass_(days=30)
    key = new_tls_key()
    new = house.register.renew(house.register.admit(old), signing_request(key, "north"))
    assert house.register.admit(new).identity == peer.identity
    assert x509.load_pem_x509_certificate(new).public_key() == key.public_key()
    house.clock.pass_(days=7, seconds=-1)
    # an answer that was lost is asked for again; that lengthens no life
    newer = house.register.renew(house.register.admit(old), signing_request(key, "north"))
    house.clock.pass_(seconds=1)
    shut(house.register, old, "replaced")
    assert house.register.admit(new) and house.register.admit(newer)


def test_a_replaced_certificate_does_not_outlive_itself(house: House):
    _, old = house.enrolled("north")
    house.clock.pass_(days=89)
    house.register.renew(house.register.admit(old), signing_request(new_tls_key(), "north"))
    house.clock.pass_(days=1)
    shut(house.register, old, "expired")


def test_a_peer_that_was_shut_out_meanwhile_renews_nothing(house: House):
    _, pem = house.enrolled("north")
    peer = house.register.admit(pem)
    house.again().revoke("north")
    with pytest.raises(AdmissionError, match="revoked"):
        house.register.renew(peer, signing_request(new_tls_key(), "north"))
    assert house.notes[-1] == ("renewal-refused", {"name": "north", "why": "was revoked"})


def test_a_certificate_of_another_authority_with_the_same_name_does_not_count(house: House):
    peer, _ = house.enrolled("north")
    other = Authority.create("lead", house.clock)
    subject = Subject("north", "site", peer.identity)
    pem = other.issue(peer.key.public_key(), subject).public_bytes(Encoding.PEM)
    shut(house.register, pem, "not in the register")


def test_a_certificate_that_the_register_does_not_know_does_not_count(house: House):
    peer, _ = house.enrolled("north")
    pem = house.authority.issue(peer.key.public_key(), Subject("north", "site", peer.identity))
    shut(house.register, pem.public_bytes(Encoding.PEM), "not in the register")


@pytest.mark.parametrize("column, value", [("name", "south"), ("role", "auditor"), ("identity", "0" * 64)])
def test_a_certificate_and_its_line_must_agree(house: House, column: str, value: str):
    _, pem = house.enrolled("north")
    with sqlite3.connect(house.path) as database:
        database.execute(f"UPDATE certificates SET {column} = ?", (value,))
    shut(house.register, pem, "does not say what the register says")


def test_a_certificate_of_site_a_lets_nobody_in_as_site_b(house: House):
    a, pem_a = house.enrolled("a")
    house.enrolled("b")
    assert house.register.admit(pem_a).name == "a"
    renewed = house.register.renew(house.register.admit(pem_a), signing_request(a.key, "b"))
    assert house.register.admit(renewed).name == "a", "a request cannot choose its name"


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_does_not_count(house: House, pem: bytes):
    shut(house.register, pem, "not a certificate")


def test_a_peer_that_knocks_again_and_again_is_noted_once(house: House):
    _, pem = house.enrolled("north")
    house.register.revoke("north")
    for _ in range(5):
        shut(house.register, pem, "revoked")
    assert house.reasons == ["was revoked"]


def test_the_door_is_quick_and_right_under_many_threads(house: House):
    _, north = house.enrolled("north")
    _, south = house.enrolled("south")
    wrong: list[str] = []

    def knock() -> None:
        for _ in range(100):
            if house.register.admit(south).name != "south":
                wrong.append("another peer")

    threads = [threading.Thread(target=knock) for _ in range(8)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    house.again().revoke("north")
    for thread in threads:
        thread.join()
    assert not wrong and (time.perf_counter() - start) / 800 < 0.01  # seconds; generous for a shared machine
    shut(house.register, north, "revoked")


# what is kept


def test_peers_are_listed_with_their_state(house: House):
    house.enrolled("enrolled")
    house.enrolled("old")
    house.enrolled("revoked", "auditor")
    house.register.revoke("revoked")
    house.register.invite("lapsed", life=timedelta(hours=1))
    house.register.invite("invited")
    house.clock.pass_(hours=2)
    with sqlite3.connect(house.path) as database:
        database.execute("UPDATE certificates SET not_after = '2029-01-01 00:00:00.000000' WHERE name = 'old'")
    found = {peer.name: (peer.state, peer.role) for peer in house.register.peers()}
    assert found == {
        "enrolled": ("enrolled", "site"),
        "invited": ("invited", "site"),
        "lapsed": ("lapsed", "site"),
        "old": ("expired", "site"),
        "revoked": ("revoked", "auditor"),
    }
    for name in ("enrolled", "old", "revoked"):
        house.register.invite(name, found[name][1])
    states = {peer.name: peer.state for peer in house.register.peers()}
    assert [states[name] for name in ("enrolled", "old", "revoked")] == ["enrolled", "invited", "invited"]


def test_tokens_are_kept_nowhere(tmp_path: Path):
    house = House(tmp_path)
    log = AuditLog.open(tmp_path / "audit.log", "coordinator")
    register = house.again(note=log.append)
    used, unused = register.invite("north")[0], register.invite("south")[0]
    Applicant("north").enrol(register, used)
    for name in ("x", "y"):
        with pytest.raises(AdmissionError):
            Applicant(name).enrol(register, used)
    register.close()
    house.register.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"north" in kept and b"used by another key" in kept
    for token in (used, unused):
        assert token.encode() not in kept and token[:20].encode() not in kept
    assert (tmp_path / "registry.db").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_noted_does_not_happen(house: House):
    def full(*_: object) -> None:
        raise RunError.at("audit.log", "the disk is full")

    register = house.again(note=full)
    _, pem = house.enrolled("north")
    token, _ = house.register.invite("south")
    for attempt in (lambda: register.revoke("north"), lambda: Applicant("south").enrol(register, token)):
        with pytest.raises(RunError, match="disk is full"):
            attempt()
    house.register.admit(pem)
    assert Applicant("south").enrol(house.register, token)


def test_without_the_authority_nothing_is_issued_and_no_token_used_up(house: House):
    token, _ = house.register.invite("north")
    peer = Applicant("north")
    with pytest.raises(RunError, match="without the authority"):
        peer.enrol(house.again(authority=None), token)
    assert peer.enrol(house.register, token)


def test_files_that_are_no_register(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        Register.open(tmp_path / "none.db")
    (tmp_path / "x.db").write_bytes(b"hello" * 100)
    with pytest.raises(InputError, match="not a register"):
        Register.open(tmp_path / "x.db")
    house = House(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        Register.create(house.path)
    with sqlite3.connect(house.path) as database:
        database.execute("UPDATE facts SET value = '9'")
    with pytest.raises(InputError, match="schema 9"):
        house.again()


def test_a_register_that_cannot_be_read_lets_nobody_in(house: House):
    _, pem = house.enrolled("north")
    house.register.close()
    house.path.write_bytes(b"x" * 5000)
    with pytest.raises((RunError, InputError)):
        house.again().admit(pem)
