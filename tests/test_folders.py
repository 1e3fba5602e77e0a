"""A command that is given another one's folder says what the folder is, and whose command is for it."""

from pathlib import Path

import pytest
from toys.federations import Federation

from medfl import folders
from medfl.cli.main import app
from medfl.errors import InputError


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(
        tmp_path_factory.mktemp("federation"), sites=("hospital-a",), cases=8, stop={"rounds": 1}
    ).set_up()


def told(*words: object) -> tuple[str, str]:
    """What the only fault of a command says, and its remedy."""
    with pytest.raises(InputError) as caught:
        app([str(word) for word in words], standalone_mode=False)
    (fault,) = caught.value.faults
    return fault.what, fault.remedy


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SITE_COMMANDS = ("start", "status", "audit", "studies", "pause", "renew")
COORDINATOR_COMMANDS = ("start", "status", "audit", "peers")


@pytest.mark.parametrize("words", SITE_COMMANDS)
def test_a_site_command_on_a_coordinators_folder(federation: Federation, words: str):
    before = tree(federation.home)
    what, remedy = told("site", words, "--home", federation.home)
    assert what == "is a coordinator's folder, not a site's home" and "medfl coordinator start" in remedy
    assert str(federation.home) in remedy and tree(federation.home) == before


@pytest.mark.parametrize("words", COORDINATOR_COMMANDS)
def test_a_coordinator_command_on_a_sites_home(federation: Federation, words: str):
    home = federation.site_home("hospital-a")
    before = tree(home)
    what, remedy = told("coordinator", words, home)
    assert what == "is a site's home, not a coordinator's folder" and f"--home {home}" in remedy
    assert tree(home) == before


@pytest.mark.parametrize("command", [("report",), ("privacy", "report"), ("evaluate",), ("coordinator", "replay")])
def test_a_sites_home_and_a_coordinator_that_has_not_run_hold_no_run(federation: Federation, command: tuple[str, ...]):
    home = federation.site_home("hospital-a")
    what, remedy = told(*command, home)
    assert what == "is a site's home, and holds no run" and "the coordinator has the run" in remedy
    what, remedy = told(*command, federation.home)
    assert "has not run yet" in what and remedy == f"medfl coordinator start {federation.home}"


def test_the_run_of_a_coordinators_folder_is_its_run(tmp_path: Path):
    for name in ("coordinator.yaml", "run/journal.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert folders.run_in(tmp_path) == tmp_path / "run" == folders.run_in(tmp_path / "run")
    # whatever is not known is left to the command
    assert folders.run_in(tmp_path / "none") == tmp_path / "none"


def test_a_coordinators_run_is_not_resumed_as_a_simulation(federation: Federation):
    what, remedy = told("simulate", "--resume", federation.home)
    assert "is a coordinator's folder" in what and "medfl coordinator start" in remedy


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: None])
def test_a_folder_of_no_kind(tmp_path: Path, make):
    path = tmp_path / "thing"
    make(path)
    assert "medfl coordinator init" in told("coordinator", "status", path)[1]
    assert "medfl site enrol" in told("site", "status", "--home", path)[1]


def test_an_audit_log_that_was_copied_elsewhere_is_read(federation: Federation, tmp_path: Path, capsys):
    (tmp_path / "audit.log").write_bytes((federation.site_home("hospital-a") / "audit.log").read_bytes())
    (tmp_path / "audit.log").chmod(0o600)
    app(["site", "audit", "--home", str(tmp_path), "--verify"], standalone_mode=False)
    assert "is whole" in capsys.readouterr().out
