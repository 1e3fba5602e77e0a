"""Flower's two quickstarts, as their users have them, over medfl's rounds."""

import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from toys.federations import until
from toys.flower_env import APP, Flower, flower_bin


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "needs", "tensors"), [("quickstart", "torch", 10), ("transformers", "transformers", 41)]
)
def test_a_quickstart_runs_over_medfl(tmp_path: Path, app: str, needs: str, tensors: int) -> None:
    python = flower_bin() / "python"
    if subprocess.run([python, "-c", f"import {needs}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{needs} is not installed in Flower's environment")
    out = tmp_path / "model.safetensors"
    with Flower(tmp_path / "flower") as flower:
        flower.superlink()
        for number in range(2):
            flower.node(f"node-{number}", f"partition-id={number}")
        run = flower.run(APP / app, f'out="{out}" num-server-rounds=2')
        until(lambda: out.exists() or flower.over(run), 400, flower.text)
        until(lambda: flower.over(run), 120, flower.text)
        assert flower.status(run) == "finished:completed", flower.text()
        log = flower.flwr("log", str(run), "here", "--show")
    assert len(load_file(out)) == tensors
    said = log.stdout + log.stderr
    # both clients counted in both rounds
    assert said.count("outcome='admit'") == 4, said
    assert "'accuracy':" in said, said
