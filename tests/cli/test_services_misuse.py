"""Wrong input to the services: one sentence, a remedy and an exit code; no traceback."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toys.federations import Federation, environment
from toys.ports import free_port

from medfl.cli.coordinator_start import over
from medfl.cli.main import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its exit code, and all that it printed on one line."""

    def call(*arguments: object) -> tuple[int, str]:
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, " ".join((out + err).split())

    return call


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(tmp_path, sites=("hospital-a",), cases=8)
    made.images()
    (tmp_path / "homes").mkdir()
    made.admit()
    return made


def test_folders_that_are_none(run: Run, tmp_path: Path) -> None:
    for words in (("start",), ("status",)):
        code, text = run("coordinator", *words, tmp_path / "none")
        assert (code, "medfl coordinator init" in text) == (2, True), text
    code, text = run("site", "start", "--home", tmp_path / "none")
    assert (code, "medfl site enrol" in text) == (2, True), text


@pytest.mark.parametrize("port", ["abc", "70000", "127.0.0.1"])
def test_a_health_port_that_is_none(run: Run, federation: Federation, port: str) -> None:
    for words in (("coordinator", "start", federation.home), ("site", "start", "--home", "x")):
        code, text = run(*words, "--health", port)
        assert (code, "HOST:PORT" in text) == (2, True), text


def test_nobody_answers_at_the_health_port(run: Run) -> None:
    code, text = run("health", free_port())
    assert (code, "--health" in text) == (1, True), text


def test_an_unknown_form_of_logs(run: Run, federation: Federation) -> None:
    code, text = run("coordinator", "start", federation.home, "--log", "yaml")
    assert (code, "text or json" in text) == (2, True), text


def test_a_port_in_use(run: Run, federation: Federation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", federation.port))
        taken.listen()
        code, text = run("coordinator", "start", federation.home)
    assert (code, "choose a free port" in text) == (1, True), text
    # nothing is said of a coordinator that never listened
    assert not (federation.home / "status.json").exists()


def test_a_folder_that_others_can_read(run: Run, federation: Federation) -> None:
    federation.home.chmod(0o755)
    for words in ("start", "status"):
        code, text = run("coordinator", words, federation.home)
        assert (code, "chmod 700" in text) == (2, True), text


@pytest.mark.parametrize("words", [["coordinator", "start"], ["site", "start", "--home"], ["health"]])
def test_without_the_extra_the_command_that_installs_it_is_said(federation: Federation, words: list[str]) -> None:
    place = {"coordinator": federation.home, "site": federation.site_home("hospital-a"), "health": "8446"}[words[0]]
    absent = "import sys; sys.modules['grpc'] = None; from medfl.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", absent, *words, str(place)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 2, text
    assert "pip install 'medfl[grpc]'" in text
    assert "Traceback" not in text


def test_a_run_that_has_ended_is_known_before_anybody_is_waited_for(tmp_path):
    assert not over(tmp_path), "nothing ran"
    for reason, ended in (("rounds", True), ("budget", True), ("operator", False), (None, False)):
        (tmp_path / "summary.json").write_text(json.dumps({"stopped_by": reason}))
        assert over(tmp_path) is ended
    (tmp_path / "summary.json").write_text("{")
    assert not over(tmp_path)
