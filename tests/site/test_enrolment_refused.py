"""An enrolment that comes to nothing leaves nothing behind, and the next one works."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from toys.https_lines import Lead
from toys.ports import free_port

from medfl.errors import InputError, MedflError, RunError
from medfl.site import enrolment
from medfl.site.enrolment import Credentials, enrol
from medfl.transport.grpc.enrolment import EnrolmentServer
from medfl.transport.https import Fallback
from medfl.transport.https.enrolment import connector
from medfl.transport.invitation import Invitation, read_invitation
from medfl.transport.limits import RateLimit
from medfl.transport.reception import Reception


class Hospital:
    """A hospital and its coordinator, with the real lines between them. limit: attempts at once."""

    def __init__(self, folder: Path, limit: int = 20) -> None:
        self.lead = Lead(folder)
        self.folder, self.home = folder, folder / "home"
        self.site = folder / "north.yaml"
        self.site.write_text("name: north\n")
        self.server = EnrolmentServer(Reception(self.lead.register, self.lead.house.note, RateLimit(0.01, limit)))
        self.port = self.server.start("127.0.0.1:0", self.lead.key, self.lead.certificate)

    def invitation(self, name: str = "north", **changed: object) -> Invitation:
        token, expires = self.lead.register.invite(name, "site", timedelta(hours=1))
        values = {"coordinator": "lead", "address": "127.0.0.1:8443", "enrol_address": f"127.0.0.1:{self.port}"}
        values |= {"name": name, "role": "site", "expires": expires, "ca": self.lead.ca.decode(), "token": token}
        return Invitation.model_validate(values | changed)

    def enrol(self, invitation: Invitation, **changed: object) -> Credentials:
        given = {"site_file": self.site, "connect": connector(None, Fallback.NEVER), **changed}
        return enrol(invitation, self.home, **given)


@pytest.fixture
def hospital(tmp_path: Path):
    found = Hospital(tmp_path)
    yield found
    found.server.stop()


def refused(hospital: Hospital, match: str, invitation: Invitation, error: type[MedflError] = RunError, **changed):
    with pytest.raises(error, match=match):
        hospital.enrol(invitation, **changed)


def test_every_refusal_leaves_nothing_and_the_next_attempt_works(hospital: Hospital, tmp_path: Path):
    used = hospital.invitation()
    elsewhere = tmp_path / "elsewhere"
    enrol(used, elsewhere, hospital.site, connector(None, Fallback.NEVER))
    hospital.lead.register.revoke("north")
    withdrawn, good = hospital.invitation(), hospital.invitation()
    refused(hospital, "ask the study lead for a new invitation", used)
    assert not hospital.home.exists()
    refused(hospital, "ask the study lead for a new invitation", withdrawn)
    assert not hospital.home.exists()
    refused(hospital, "ask the study lead", good.model_copy(update={"token": "x" * 43}))
    assert not hospital.home.exists()
    refused(hospital, "127.0.0.1", good.model_copy(update={"enrol_address": f"127.0.0.1:{free_port()}"}))
    assert not hospital.home.exists()
    hospital.enrol(good)
    assert hospital.lead.register.admit((hospital.home / "pki" / "site.pem").read_bytes()).name == "north"


def test_somebody_else_than_the_coordinator_gets_no_token(hospital: Hospital, tmp_path: Path):
    (tmp_path / "other").mkdir()
    refused(hospital, "127.0.0.1", hospital.invitation(ca=Lead(tmp_path / "other").ca.decode()))
    assert not hospital.home.exists()
    assert [kind for kind, _ in hospital.lead.house.notes] == ["invited"]


def test_too_many_attempts_leave_nothing(tmp_path: Path):
    hospital = Hospital(tmp_path, limit=1)
    refused(hospital, "ask the study lead", hospital.invitation(token="x" * 43))
    refused(hospital, "too many attempts", hospital.invitation())
    hospital.server.stop()
    assert not hospital.home.exists()


def test_a_wrong_passphrase_file_leaves_nothing(hospital: Hospital):
    refused(hospital, "needs a passphrase", hospital.invitation(), InputError, protect=True)
    assert not hospital.home.exists()


def test_what_was_there_before_stays(hospital: Hospital):
    hospital.home.mkdir(mode=0o700)
    (hospital.home / "notes.txt").write_text("of the steward")
    refused(hospital, "ask the study lead", hospital.invitation(token="x" * 43))
    assert [path.name for path in hospital.home.iterdir()] == ["notes.txt"]
    hospital.enrol(hospital.invitation())
    whole = {path: path.read_bytes() for path in hospital.home.rglob("*") if path.is_file()}
    refused(hospital, "ask the study lead", hospital.invitation(token="x" * 43))
    assert {path: path.read_bytes() for path in hospital.home.rglob("*") if path.is_file()} == whole


class Vanishing:
    """A coordinator that certifies, and whose answer is lost."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital

    def enrol(self, *given) -> bytes:
        self._hospital.lead.register.enrol(*given)
        raise RunError.at("coordinator", "the line went dead")


def test_keys_that_may_have_been_certified_are_kept(hospital: Hospital):
    invitation = hospital.invitation()
    refused(hospital, "went dead", invitation, connect=lambda *_: Vanishing(hospital))
    keys = (hospital.home / "pki" / "site.key").read_bytes()
    hospital.enrol(invitation)
    assert (hospital.home / "pki" / "site.key").read_bytes() == keys


def test_removing_them_would_lose_the_invitation(hospital: Hospital, monkeypatch: pytest.MonkeyPatch):
    """The fake: every failure removes the keys."""
    monkeypatch.setattr(enrolment, "NotCertified", RunError)
    invitation = hospital.invitation()
    refused(hospital, "went dead", invitation, connect=lambda *_: Vanishing(hospital))
    assert not hospital.home.exists()
    refused(hospital, "new invitation", invitation)


# the site's file


def test_a_site_file_that_says_something_else_than_the_homes_is_not_ignored(hospital: Hospital):
    hospital.enrol(hospital.invitation())
    hospital.enrol(hospital.invitation())
    hospital.site.write_text("name: north\npolicy: {minimum_cases: 50}\n")
    refused(hospital, "site.yaml, which counts", hospital.invitation(), InputError)
    assert "minimum_cases" not in (hospital.home / "site.yaml").read_text()
    hospital.enrol(hospital.invitation(), site_file=None)


def test_a_site_file_for_a_key_holder_is_not_ignored(hospital: Hospital):
    refused(hospital, "is for a hospital", hospital.invitation().model_copy(update={"role": "key-holder"}), InputError)
    assert not hospital.home.exists()


def test_a_home_that_is_no_place_for_one(hospital: Hospital):
    hospital.home.write_text("a file")
    refused(hospital, "is not a folder", hospital.invitation(), InputError)
    hospital.home.unlink()
    hospital.home.mkdir(mode=0o755)
    refused(hospital, "open to others", hospital.invitation(), InputError)
    assert list(hospital.home.iterdir()) == []
    hospital.home.chmod(0o700)
    (hospital.home / "coordinator.yaml").touch()
    refused(hospital, "is a coordinator's folder", hospital.invitation(), InputError)
    assert len(list(hospital.home.iterdir())) == 1


# the invitation's file


def test_a_file_that_is_no_invitation(hospital: Hospital, tmp_path: Path):
    whole = hospital.invitation().model_dump_json()
    other = {**json.loads(whole), "version": 0}
    cases = {
        "random": (b"\x00\xff\x10 not JSON", "is not an invitation"),
        "truncated": (whole[:300].encode(), "cut off on its way"),
        "empty": (b"", "cut off on its way"),
        "list": (b"[]", "is not an invitation"),
        "old": (json.dumps(other).encode(), "of this version"),
        "connection": (b'{"version": 1, "ca_sha256": "00"}', "is not an invitation of this version"),
    }
    for name, (content, what) in cases.items():
        path = tmp_path / f"{name}.invitation"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(InputError) as caught:
            read_invitation(path)
        first = caught.value.faults[0]
        assert what in first.what and "as the study lead handed it over" in first.remedy, name
        assert all("x" * 10 not in str(fault) and "not JSON" not in str(fault) for fault in caught.value.faults)
    with pytest.raises(InputError, match="is a folder"):
        read_invitation(tmp_path)
