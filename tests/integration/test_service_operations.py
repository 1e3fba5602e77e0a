"""What supervisors and study leads rely on: status while the run goes on, health, SIGTERM, logs as JSON."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from toys.federations import SITES, Federation, call, environment, medfl, until
from toys.ports import free_port

ROUNDS = 12
SLOW = {"epochs": 20, "learning_rate": 0.003, "batch_size": 2, "rules": ["sgd"]}


def status(federation: Federation) -> dict[str, Any]:
    return dict(json.loads(call("coordinator", "status", federation.home, "--json")))


def health(port: int) -> tuple[int, str]:
    done = subprocess.run(medfl("health", port), capture_output=True, text=True, env=environment(), check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.slow
def test_a_run_that_is_stopped_by_sigterm_goes_on_and_says_where_it_is(tmp_path: Path) -> None:
    lead_port, site_port = free_port(), free_port()
    with Federation(tmp_path, local=SLOW, stop={"rounds": ROUNDS}).set_up() as federation:
        before = status(federation)
        assert (before["service"], before["run"], before["completed"]) == (None, None, 0)
        assert [site["register"] for site in before["sites"]] == ["enrolled"] * 3

        options = ("--health", lead_port, "--log", "json")
        lead = federation.coordinator(*options)
        until(lambda: health(lead_port) == (0, "SERVING"), why=lead.text)
        first = federation._start(
            SITES[0], "site", "start", "--home", federation.site_home(SITES[0]), "--health", site_port
        )
        sites = [first, *(federation.site(site) for site in SITES[1:])]
        until(lambda: health(site_port) == (0, "SERVING"), why=first.text)
        until(lambda: federation.rounds(), why=lead.text)
        seen = list[Any]()
        until(lambda: seen.append(status(federation)) or seen[-1]["service"]["alive"], why=lead.text)
        during = seen[-1]
        assert during["completed"] >= 1
        assert during["stopped_by"] == ""
        assert {site["now"] for site in during["sites"]} <= {"ready", "training", "connected"}
        assert all(site["admitted"] >= 1 for site in during["sites"])
        assert during["events"]

        lead.process.send_signal(signal.SIGTERM)
        assert lead.end() == 128 + signal.SIGTERM, lead.text
        after = status(federation)
        assert not after["service"]["alive"]
        assert after["stopped_by"] == ""
        # the sites wait; without a line a site does not serve
        until(lambda: health(site_port) == (1, "NOT_SERVING"), why=first.text)
        assert all(site.process.poll() is None for site in sites)

        again = federation.coordinator(*options)
        assert again.end() == 0, again.text
        assert [site.end() for site in sites] == [0, 0, 0], first.text
        ended = status(federation)
        assert (ended["stopped_by"], ended["completed"]) == ("rounds", ROUNDS)
        assert ended["run"] == during["run"]
        assert federation.model() == federation.simulated()
        check_log(lead.log)


def check_log(path: Path) -> None:
    """All that was said is one JSON object a line, the progress and the end too."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all({"at", "level", "logger", "message"} == line.keys() - {"exception"} for line in lines)
    assert {"medfl.service", "medfl.progress"} <= {line["logger"] for line in lines}
    told = [line["message"] for line in lines if line["logger"] == "medfl.progress"]
    assert any(text.startswith(f"round 1/{ROUNDS}") for text in told)
    assert lines[-1]["message"].startswith("the run is over, by rounds: ")
