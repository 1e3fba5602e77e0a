"""Flower carries the bytes: the model is that of a simulation, bit for bit, whatever the channel."""

from pathlib import Path

import pytest
from toys.flower_env import Flower, FlowerFederation

MASKED = {"channel": "masks", "clip": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["clear", "masks", "he"])
def test_flower_gives_the_model_of_the_simulation(short_path: Path, channel: str) -> None:
    if channel == "he":
        pytest.importorskip("tenseal")
    update = {} if channel == "clear" else {**MASKED, "channel": channel}
    with Flower(short_path / "flower") as flower, FlowerFederation(short_path, update=update).set_up() as federation:
        status = federation.over_flower(flower)
        assert status == "finished:completed", flower.text()
        assert federation.summary()["rounds_completed"] == 3
        assert federation.summary()["regulator"]["outcomes"] == {"admit": 9}
        assert federation.model() == federation.simulated()
