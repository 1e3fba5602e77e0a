"""`medfl coordinator init, invite, revoke, peers` and `medfl site enrol, renew`, as study lead and data steward call
them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfl.audit.log import AuditLog
from medfl.cli import enrol as command
from medfl.cli.main import app
from medfl.coordinator.settings import CoordinatorHome
from medfl.errors import InputError
from medfl.transport.invitation import read_invitation
from medfl.transport.peers import AdmissionError

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "configs" / "pneumonia.yaml"


def call(*arguments: object, **given):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **given)


def done(*arguments: object, **given) -> str:
    found = call(*arguments, **given)
    assert found.exit_code == 0, found.output + repr(found.exception)
    return found.stdout


def faults(*arguments: object, **given) -> list:
    """The faults that `medfl` prints."""
    found = call(*arguments, **given)
    assert isinstance(found.exception, InputError), found.output + repr(found.exception)
    return list(found.exception.faults)


class Service:
    """The running coordinator, without a network."""

    def __init__(self, folder: Path) -> None:
        self.home = CoordinatorHome.open(folder)
        log = AuditLog.open(self.home.audit, "coordinator")
        self.register = self.home.register(self.home.authority(), log.append)
        self.called: list[str] = []

    def connect(self, address: str, ca: bytes, key: bytes = b"", own: bytes = b""):
        assert ca == self.home.ca_certificate.read_bytes() and bool(key) == bool(own)
        self.called.append(address)
        self.own = own
        return self

    def enrol(self, *given) -> bytes:
        return self.register.enrol(*given)

    def renew(self, request: bytes) -> bytes:
        return self.register.renew(self.register.admit(self.own), request)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MEDFL_PASSPHRASE_FILE", "MEDFL_SITE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    done("coordinator", "init", STUDY, "--out", "c", "--address", "fl.example.org:9443", "--site", "hospital-a")
    return tmp_path


@pytest.fixture
def service(place: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service(place / "c")
    monkeypatch.setattr(command, "_connector", lambda *_: found.connect)
    return found


def peers() -> dict[str, str]:
    return {peer["name"]: peer["state"] for peer in json.loads(done("coordinator", "peers", "c", "--json"))["peers"]}


def test_from_the_invitation_to_the_revocation(service: Service, place: Path):
    assert peers() == {"hospital-a": "expected"}
    invited = done("coordinator", "invite", "c", "hospital-a")
    assert "hospital-a.invitation" in invited and peers() == {"hospital-a": "invited"}
    token = read_invitation(Path("hospital-a.invitation")).token
    site = ROOT / "sites" / "hospital-a.yaml"
    enrolled = done("site", "enrol", "hospital-a.invitation", "--home", "h", "--site", site)
    assert "next: medfl site start --home h" in enrolled and peers() == {"hospital-a": "enrolled"}
    first = (place / "h/pki/site.pem").read_bytes()
    renewed = json.loads(done("site", "renew", "--home", "h", "--json"))
    second = (place / "h/pki/site.pem").read_bytes()
    assert first != second and renewed["name"] == "hospital-a" and renewed["role"] == "site"
    assert service.called == ["fl.example.org:8444", "fl.example.org:9443"]
    assert datetime.fromisoformat(renewed["expires"]) > datetime.now(UTC)
    table = done("coordinator", "peers", "c")
    assert "enrolled" in table and renewed["identity"][:16] in table and renewed["identity"] not in table
    assert "2 certificates revoked" in done("coordinator", "revoke", "c", "hospital-a")
    assert peers() == {"hospital-a": "revoked"}
    for pem in (first, second):
        with pytest.raises(AdmissionError, match="revoked"):
            service.register.admit(pem)
    kinds = [record.kind for record in AuditLog.open(place / "c/audit.log", "coordinator").entries()]
    assert kinds == ["open", "set-up", "invited", "enrolled", "renewed", "revoked", "refused", "refused"]
    AuditLog.verify(place / "c/audit.log")
    left = b"".join(path.read_bytes() for path in (place / "c").rglob("*") if path.is_file())
    assert b"hospital-a" in left and token.encode() not in left
    assert token not in invited + enrolled + table


def test_both_sides_say_the_same_authority(service: Service):
    del service
    mark = json.loads(done("coordinator", "invite", "c", "hospital-a", "--json"))["ca_sha256"]
    done("coordinator", "invite", "c", "escrow", "--role", "key-holder", "--out", "e.json", "--hours", "1")
    assert mark in done("site", "enrol", "e.json", "--home", "e") and len(mark) == 64
    assert peers() == {"escrow": "enrolled", "hospital-a": "invited"}


def test_keys_under_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    address = ("--address", "localhost", "--local")
    assert (
        "chmod 600"
        in faults("coordinator", "init", STUDY, "--out", "c", *address, "--passphrase-file", secret)[0].remedy
    )
    secret.chmod(0o600)
    done("coordinator", "init", STUDY, "--out", "c", *address, env={"MEDFL_PASSPHRASE_FILE": str(secret)})
    home = CoordinatorHome.open(tmp_path / "c")
    assert b"ENCRYPTED" in home.ca_key.read_bytes() and home.settings.addresses == ("localhost", "127.0.0.1")
    assert home.authority(lambda _: b"open sesame")
    done("coordinator", "invite", "c", "north")  # needs no key
    (fault,) = faults("coordinator", "init", STUDY, "--out", "d", *address, "--protect")
    assert "nobody to ask" in fault.what and not (tmp_path / "d").exists()


def test_a_passphrase_is_asked_for_twice_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medfl.cli.passphrase.sys.stdin.isatty", lambda: True, raising=False)
    from medfl.cli import passphrase

    asked: list[dict] = []

    def prompt(_: str, **how: object) -> str:
        asked.append(how)
        return "open sesame"

    monkeypatch.setattr(passphrase.typer, "prompt", prompt)
    ask = passphrase.asking(None, new=True)
    assert ask(Path("a")) == ask(Path("b")) == b"open sesame"
    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]


def test_inputs_that_are_wrong(place: Path):
    cases = {
        ("coordinator", "invite", "c", "hospital-b"): ("does not expect", "hospital-a"),
        ("coordinator", "invite", "c", "a/b", "--role", "auditor"): ("is not a name", "the hospital's file"),
        ("coordinator", "invite", "x", "hospital-a"): ("not a coordinator's folder", "medfl coordinator init"),
        ("coordinator", "revoke", "c", "hospital-a"): ("no certificate and no invitation", "peers"),
        ("coordinator", "init", STUDY, "--out", "c", "--address", "a"): ("not empty", "--out"),
        ("coordinator", "init", STUDY, "--out", "d", "--address", "a b"): ("HOST", "--address"),
        ("coordinator", "init", STUDY, "--out", "d", "--address", "a:1", "--address", "b:2"): ("more than one", "port"),
        ("coordinator", "init", STUDY, "--out", "d", "--address", "a:8444"): ("also the port", "another"),
        ("site", "enrol", "none.invitation", "--home", "h"): ("does not exist", "path"),
        ("site", "renew", "--home", "h"): ("is not enrolled", "medfl site enrol"),
    }
    for words, (what, remedy) in cases.items():
        (fault,) = faults(*words)
        assert what in fault.what and remedy in fault.remedy, words
    assert not (place / "d").exists() and not (place / "h").exists() and peers() == {"hospital-a": "expected"}


def test_an_invitation_is_not_written_over(place: Path):
    (place / "hospital-a.invitation").touch()
    (fault,) = faults("coordinator", "invite", "c", "hospital-a")
    assert "exists already" in fault.what and peers() == {"hospital-a": "expected"}


@pytest.mark.parametrize(
    "words",
    ["coordinator init", "coordinator invite", "coordinator revoke", "coordinator peers", "site enrol", "site renew"],
)
def test_help_has_an_example(words: str):
    assert f"Example: medfl {words}" in " ".join(done(*words.split(), "--help").split())
