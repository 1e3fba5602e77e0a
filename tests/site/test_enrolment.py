"""A peer gets its certificates, whatever breaks off on the way."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from toys.admission import Clock, House

from medfl.coordinator.authority import Authority
from medfl.errors import InputError, MedflError, RunError
from medfl.keys import load_tls_key
from medfl.site import enrolment
from medfl.site.enrolment import Credentials, enrol, load_credentials, read_connection, renew
from medfl.transport.certificates import Subject, requested_key
from medfl.transport.invitation import Invitation
from medfl.transport.peers import AdmissionError


class Client:
    """The coordinator without a network. lose: so many answers are lost on their way back."""

    def __init__(self, house: House, own: bytes = b"", lose: int = 0) -> None:
        self._house, self._own = house, own
        self.lose = lose

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        return self._answered(self._house.register.enrol(token, request, identity, proof))

    def renew(self, request: bytes) -> bytes:
        register = self._house.register
        return self._answered(register.renew(register.admit(self._own), request))

    def _answered(self, pem: bytes) -> bytes:
        if self.lose:
            self.lose -= 1
            raise RunError.at("coordinator", "the line went dead")
        return pem


class Hospital:
    """One hospital and its study lead."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.folder = folder
        self.home = folder / "home"
        self.site = folder / "north.yaml"
        self.site.write_text("name: north\n")

    def invitation(self, name: str = "north", role: str = "site", **changed: object) -> Invitation:
        token, expires = self.house.register.invite(name, role)
        values = {"coordinator": "lead", "address": "fl:8443", "enrol_address": "fl:8444", "token": token}
        values |= {"name": name, "role": role, "expires": expires, "ca": self.house.authority.pem.decode()}
        return Invitation.model_validate(values | changed)

    def enrol(self, invitation: Invitation | None = None, lose: int = 0, client=None, **changed) -> Credentials:
        self.asked: list[tuple[str, bytes]] = []

        def connect(address: str, ca: bytes):
            self.asked.append((address, ca))
            return client or Client(self.house, lose=lose)

        given = {"site_file": self.site, "now": self.house.clock.now, **changed}
        return enrol(invitation or self.invitation(), self.home, connect=connect, **given)

    def renew(self, lose: int = 0, ask=None) -> Credentials:
        return renew(self.home, lambda _a, _ca, _key, own: Client(self.house, own, lose), ask)

    def kept(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.home / "pki").iterdir()}


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def test_a_hospital_enrols(hospital: Hospital):
    found = hospital.enrol()
    assert hospital.asked == [("fl:8444", hospital.house.authority.pem)]
    peer = hospital.house.register.admit(found.certificate)
    assert (peer.name, peer.role, peer.identity) == ("north", "site", found.identity.public.hex())
    assert found.expires == hospital.house.clock.now + timedelta(days=90)
    assert found.connection.address == "fl:8443" and read_connection(hospital.home) == found.connection
    assert (hospital.home / "site.yaml").read_text() == "name: north\n"
    assert set(hospital.kept()) == {"site.key", "site.pem", "ca.pem", "identity.key"}
    for path in (hospital.home, *hospital.home.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    records = [json.loads(line) for line in (hospital.home / "audit.log").read_text().splitlines()]
    assert records[-1]["kind"] == "enrolled" and records[-1]["body"]["coordinator"] == "lead"


def test_the_private_keys_and_the_token_stay_where_they_are(hospital: Hospital):
    invitation = hospital.invitation()
    found = hospital.enrol(invitation)
    private = [load_tls_key(hospital.home / "pki" / "site.key").private_numbers().private_value.to_bytes(32, "big")]
    private.append(found.identity.private)
    seen = repr(found).encode() + hospital.house.path.read_bytes()
    seen += b"".join(path.read_bytes() for path in hospital.home.glob("*") if path.is_file())
    assert not any(secret in seen or secret.hex().encode() in seen for secret in private)
    assert invitation.token.encode() not in seen and b"PRIVATE KEY" not in seen


def test_a_lost_answer_is_asked_for_again(hospital: Hospital):
    invitation = hospital.invitation()
    with pytest.raises(RunError, match="line went dead"):
        hospital.enrol(invitation, lose=1)
    keys = hospital.kept()
    found = hospital.enrol(invitation)
    assert hospital.house.register.admit(found.certificate).name == "north"
    assert hospital.kept()["site.key"] == keys["site.key"] and hospital.kept()["identity.key"] == keys["identity.key"]
    assert [kind for kind, _ in hospital.house.notes] == ["invited", "enrolled", "taken-again"]


def test_forgetting_the_key_would_not_do(hospital: Hospital):
    """The fake: a home that makes its keys anew each time is refused."""
    invitation = hospital.invitation()
    with pytest.raises(RunError):
        hospital.enrol(invitation, lose=1)
    (hospital.home / "pki" / "site.key").unlink()
    with pytest.raises(AdmissionError):
        hospital.enrol(invitation)


def breaks(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> int:
    """Act, break off at the first write; act again, break off at the second; until it comes through."""
    whole, count = enrolment.rewrite, 0
    while True:
        left = count

        def rewrite(path: Path, content: bytes) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            whole(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(enrolment, "rewrite", rewrite)
            try:
                act()
            except KeyboardInterrupt:
                count += 1
            else:
                return count


def test_enrolment_comes_through_wherever_it_breaks_off(hospital: Hospital, monkeypatch: pytest.MonkeyPatch):
    invitation = hospital.invitation()
    assert breaks(monkeypatch, lambda: hospital.enrol(invitation)) >= 3
    assert hospital.house.register.admit(load_credentials(hospital.home).certificate).name == "north"


def test_a_renewal_changes_the_key_and_keeps_the_identity(hospital: Hospital):
    old = hospital.enrol()
    hospital.house.clock.pass_(days=61)
    assert old.renewal_due(hospital.house.clock.now) and not old.renewal_due(old.begins)
    new = hospital.renew()
    assert new.key != old.key and new.certificate != old.certificate
    assert new.identity.public == old.identity.public and not new.renewal_due(hospital.house.clock.now)
    for found in (old, new):
        assert hospital.house.register.admit(found.certificate).name == "north"
    assert set(hospital.kept()) == {"site.key", "site.pem", "ca.pem", "identity.key"}


def test_a_renewal_whose_answer_was_lost_leaves_the_old_one_in_use(hospital: Hospital):
    old = hospital.enrol()
    with pytest.raises(RunError):
        hospital.renew(lose=1)
    assert load_credentials(hospital.home).key == old.key
    assert hospital.house.register.admit(load_credentials(hospital.home).certificate)
    assert hospital.renew().certificate != old.certificate


@pytest.mark.parametrize("moved", [0, 1])
def test_a_renewal_goes_on_from_the_middle_of_its_end(hospital: Hospital, monkeypatch: pytest.MonkeyPatch, moved: int):
    old = hospital.enrol()

    def broken(self) -> None:
        if moved:
            self.next_key.replace(self.key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(enrolment._Files, "swap", broken)
        with pytest.raises(KeyboardInterrupt):
            hospital.renew()
    new = load_credentials(hospital.home)
    assert new.certificate != old.certificate and hospital.house.register.admit(new.certificate)
    assert set(hospital.kept()) == {"site.key", "site.pem", "ca.pem", "identity.key"}


def test_a_revoked_hospital_comes_back_under_its_old_identity(hospital: Hospital):
    old = hospital.enrol()
    hospital.house.register.revoke("north")
    with pytest.raises(AdmissionError):
        hospital.renew()
    new = hospital.enrol()
    assert new.identity.public == old.identity.public
    assert hospital.house.register.admit(new.certificate).name == "north"


def test_keys_with_a_passphrase(hospital: Hospital):
    calls: list[Path] = []

    def ask(path: Path) -> bytes:
        calls.append(path)
        return b"open sesame"

    hospital.enrol(ask=ask, protect=True)
    for name in ("site.key", "identity.key"):
        assert b"ENCRYPTED" in hospital.kept()[name]
    assert b"BEGIN PRIVATE KEY" in load_credentials(hospital.home, ask).key
    hospital.renew(ask=ask)
    assert b"ENCRYPTED" in hospital.kept()["site.key"]
    for wrong in (None, lambda _: b"wrong"):
        with pytest.raises(InputError, match="passphrase"):
            load_credentials(hospital.home, wrong)


def test_a_key_that_others_can_read_is_refused(hospital: Hospital):
    hospital.enrol()
    (hospital.home / "pki" / "identity.key").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        load_credentials(hospital.home)


def test_a_key_holder_needs_no_site_file(hospital: Hospital):
    found = hospital.enrol(hospital.invitation("escrow", "key-holder"), site_file=None)
    assert (found.name, found.role) == ("escrow", "key-holder") and not (hospital.home / "site.yaml").exists()


def wrong(hospital: Hospital, match: str, error: type[MedflError] = InputError, **changed) -> None:
    invitation = changed.pop("invitation", None) or hospital.invitation()
    with pytest.raises(error, match=match):
        hospital.enrol(invitation, **changed)


def test_what_is_wrong_is_said_before_anything_is_asked(hospital: Hospital):
    other = hospital.folder / "south.yaml"
    other.write_text("name: south\n")
    wrong(hospital, "is of south, the invitation is for north", site_file=other)
    wrong(hospital, "--site: is missing", site_file=None)
    wrong(hospital, "expired", now=hospital.house.clock.now + timedelta(hours=72))
    wrong(hospital, "not a certificate", invitation=hospital.invitation(ca="x"))
    assert hospital.asked == [] and not hospital.home.exists()


def test_a_home_belongs_to_one_federation_and_one_name(hospital: Hospital):
    old = hospital.enrol()
    kept = hospital.kept()
    stranger = hospital.invitation(ca=Authority.create("lead").pem.decode())
    wrong(hospital, "authority is another", invitation=stranger)
    wrong(hospital, "is that of the site north", invitation=hospital.invitation("south"))
    assert hospital.kept() == kept and load_credentials(hospital.home).certificate == old.certificate


class Liar:
    """A coordinator that answers with something else than was asked for."""

    def __init__(self, answer: Callable[[bytes, str], bytes]) -> None:
        self._answer = answer

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        return self._answer(request, identity)


def test_an_answer_of_something_else_is_not_kept(hospital: Hospital):
    authority, stranger = hospital.house.authority, Authority.create("lead", Clock())

    def issued(by: Authority, name: str = "north", role: str = "site", key=None, identity: str = ""):
        def answer(request: bytes, own: str) -> bytes:
            subject = Subject(name, role, identity or own)
            return by.issue(key or requested_key(request), subject).public_bytes(Encoding.PEM)

        return answer

    cases = {
        "another key": issued(authority, key=stranger.key.public_key()),
        "for the site south": issued(authority, name="south"),
        "for the auditor north": issued(authority, role="auditor"),
        "not the site": issued(authority, identity="00" * 32),
        "not signed by": issued(stranger),
        "not a certificate": lambda *_: b"hello",
        "not a peer's": lambda *_: authority.pem,
    }
    for match, answer in cases.items():
        wrong(hospital, match, RunError, client=Liar(answer))
        assert not (hospital.home / "connection.json").exists() and "site.pem" not in hospital.kept()
    with pytest.raises(InputError, match="is not enrolled"):
        load_credentials(hospital.home)


def test_files_that_do_not_belong_together(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory):
    hospital.enrol()
    other = Hospital(tmp_path_factory.mktemp("other"))
    other.enrol()
    for name in ("site.key", "site.pem", "ca.pem", "identity.key"):
        whole = hospital.kept()[name]
        (hospital.home / "pki" / name).write_bytes(other.kept()[name])
        with pytest.raises(InputError):
            load_credentials(hospital.home)
        (hospital.home / "pki" / name).write_bytes(whole)
    assert x509.load_pem_x509_certificate(load_credentials(hospital.home).certificate)
