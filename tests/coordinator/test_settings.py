"""A coordinator's home."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from toys.admission import Clock

from medfl.coordinator.settings import CoordinatorHome, CoordinatorSettings
from medfl.errors import InputError, StudyError
from medfl.study.load import load_study

STUDY = Path(__file__).resolve().parents[2] / "configs" / "pneumonia.yaml"
SETTINGS = CoordinatorSettings(name="chest", addresses=("fl.example.org", "10.0.0.1"), sites=("hospital-a",))


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome.create(tmp_path / "c", STUDY, SETTINGS, ["stop.rounds=3"])


def test_everything_is_there_and_its_owners_alone(home: CoordinatorHome):
    there = {str(path.relative_to(home.folder)) for path in home.folder.rglob("*")}
    keys = {f"pki/{name}" for name in ("ca.key", "ca.pem", "server.key", "server.pem")}
    assert there == keys | {"pki", "run", "spool", "ledgers", "coordinator.yaml", "study.yaml", "registry.db"}
    for path in (home.folder, *home.folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert not list(home.folder.parent.glob(".c*"))


def test_it_opens_as_it_was_made(home: CoordinatorHome):
    found = CoordinatorHome.open(home.folder)
    assert found.settings == SETTINGS
    assert found.study() == load_study(STUDY, ["stop.rounds=3"]) and found.study().stop.rounds == 3
    assert (SETTINGS.address, SETTINGS.enrol_address) == ("fl.example.org:8443", "fl.example.org:8444")
    forwarded = SETTINGS.model_copy(update={"public_port": 443, "addresses": ("::1",)})
    assert forwarded.address == "[::1]:443" and forwarded.enrol_address == "[::1]:8444"


def test_a_wrong_study_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(StudyError, match="batchsize"):
        CoordinatorHome.create(tmp_path / "c", STUDY, SETTINGS, ["local.batchsize=8"])
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(home: CoordinatorHome):
    key = home.ca_key.read_bytes()
    with pytest.raises(InputError, match="not empty"):
        CoordinatorHome.create(home.folder, STUDY, SETTINGS)
    assert home.ca_key.read_bytes() == key


def test_all_faults_of_the_settings_at_once(home: CoordinatorHome):
    path = home.folder / "coordinator.yaml"
    raw = yaml.safe_load(path.read_text()) | {"port": 99999, "adresses": [], "addresses": ["a:1"]}
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError) as error:
        CoordinatorHome.open(home.folder)
    assert {fault.where for fault in error.value.faults} == {
        f"{path}: {key}" for key in ("port", "adresses", "addresses")
    }
    for text in ("- a\n", "a: [\n", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError):
            CoordinatorHome.open(home.folder)


def test_a_folder_that_others_can_open_or_that_is_none(home: CoordinatorHome, tmp_path: Path):
    home.folder.chmod(0o755)
    with pytest.raises(InputError, match=f"chmod 700 {home.folder}"):
        CoordinatorHome.open(home.folder)
    with pytest.raises(InputError, match="medfl coordinator init"):
        CoordinatorHome.open(tmp_path)


def test_keys_with_a_passphrase(tmp_path: Path):
    home = CoordinatorHome.create(tmp_path / "c", STUDY, SETTINGS, passphrase=b"open sesame")
    for key in (home.ca_key, home.server_key):
        assert b"ENCRYPTED" in key.read_bytes()
    with pytest.raises(InputError, match="passphrase"):
        home.authority()
    with pytest.raises(InputError, match="passphrase"):
        home.authority(lambda _: b"wrong")
    authority = home.authority(lambda _: b"open sesame")
    key, _ = home.server_credentials(authority, lambda _: b"open sesame")
    assert b"BEGIN PRIVATE KEY" in key


def test_the_servers_certificate_is_issued_anew_when_it_must_be(tmp_path: Path):
    clock = Clock(datetime(2030, 1, 1, tzinfo=UTC))
    home = CoordinatorHome.create(tmp_path / "c", STUDY, SETTINGS, clock=clock)
    authority = home.authority(clock=clock)

    def served() -> x509.Certificate:
        return x509.load_pem_x509_certificate(home.server_credentials(authority, clock=clock)[1])

    first = served()
    assert served() == first
    clock.pass_(days=334)
    assert served() == first
    clock.pass_(days=2)
    second = served()
    assert second.not_valid_after_utc > first.not_valid_after_utc + timedelta(days=300)
    assert second.public_key() == first.public_key()
    home.settings = SETTINGS.model_copy(update={"addresses": ("new.example.org",)})
    names = served().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example.org"]
