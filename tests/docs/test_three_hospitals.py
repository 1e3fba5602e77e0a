"""The tutorial of three hospitals, typed as it stands."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorials" / "three-hospitals.md"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORTS = (18443, 18444, 18445)


def blocks() -> list[str]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def script() -> str:
    """All blocks in one shell, with a mark between their outputs; the first command that fails ends it."""
    return "set -eo pipefail\n" + "".join(f"echo '@@ {number}'\n{block}" for number, block in enumerate(blocks()))


def typed(folder: Path, seconds: float) -> list[str]:
    """What each block printed, from a folder with nothing but the studies in it."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = subprocess.Popen(
        ["bash", "-c", script()],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "110"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        printed = ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    logs = "".join(f"\n{log}:\n{log.read_text()}" for log in sorted(folder.rglob("*.log")) if log.name != "audit.log")
    assert shell.returncode == 0, f"{printed}{logs}"
    return re.split(r"^@@ \d+\n", printed, flags=re.MULTILINE)[1:]


def taken() -> list[int]:
    found = []
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(port)
    return found


def test_the_tutorial_has_its_blocks() -> None:
    text = script()
    for word in ("init", "invite", "enrol", "start", "show", "approve", "status", "audit", "withdraw", "kill -9"):
        assert word in text
    # a placeholder that nobody filled in
    assert not re.search(r"^@\w+@$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_can_be_typed(tmp_path: Path) -> None:
    if taken():
        pytest.skip(f"ports are in use: {taken()}")
    outputs = typed(tmp_path, 1400)
    assert len(outputs) == len(blocks())
    here = tmp_path / "runs" / "three"
    run = here / "coordinator" / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("rounds", 12)
    assert summary["metrics"]["global"]["auroc"]["value"] > 0.8
    assert (run / "model" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()
    printed = "".join(outputs)
    assert printed.count("the log of") == 3
    assert "was in run" in outputs[-1]
    for owner, folder in [
        ("coordinator", here / "coordinator"),
        *((f"site hospital-{n}", here / f"hospital-{n}/home") for n in "abc"),
    ]:
        log = whole(folder / "audit.log")
        assert log.owner == owner
        assert log.count > 5


def whole(path: Path):  # type: ignore[no-untyped-def]
    """The log, verified."""
    from medfl.audit.log import read_log

    return read_log(path)[0]
