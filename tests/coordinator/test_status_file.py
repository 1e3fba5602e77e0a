"""status.json: what a coordinator says of itself, by whoever reads it meanwhile."""

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from toys.federations import until

from medfl.audit.file import utc_now
from medfl.coordinator.status import StatusFile, read_status
from medfl.errors import RunError


def test_hooks_reach_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    told = StatusFile(path)
    told.start()
    try:
        told.presence("hospital-a", "held", "waits\nfor \x1b[31mapproval")
        found = until(lambda: (seen := read_status(path)) and seen.sites and seen, 10)
        assert (found.alive, found.phase) == (True, "listening")
        assert found.sites["hospital-a"].state == "held"
        # a site's words steer no terminal
        assert found.sites["hospital-a"].detail == "waits for  [31mapproval"
    finally:
        told.stop()
    ended = read_status(path)
    assert ended is not None
    assert (ended.alive, ended.phase, dict(ended.sites)) == (False, "stopped", {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_sign_of_life_for_a_while_counts_as_gone(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    told = StatusFile(path)
    told.start()
    try:
        assert read_status(path, utc_now() + timedelta(seconds=15)).alive  # type: ignore[union-attr]
        assert not read_status(path, utc_now() + timedelta(seconds=30)).alive  # type: ignore[union-attr]
    finally:
        told.stop()


def test_one_that_never_started_says_nothing(tmp_path: Path) -> None:
    StatusFile(tmp_path / "status.json").stop()
    assert read_status(tmp_path / "status.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at": 1, "sites": {}}', json.dumps({"at": "x", "sites": []})])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        read_status(tmp_path / "status.json")
