"""A site's process is killed in the middle of local training; another one ends the round with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyFederation, tiny_classification, tiny_segmentation
from toys.killed import EPOCHS, HANGING, SITE, train
from toys.resuming import same

from medfl.data.cache import CachedSamples
from medfl.learning.checkpoint import FileEpochStore
from medfl.study.sources import RunInputs, assign_cases, load_site_data

PATIENCE = 120.0


def tiny_detection() -> dict[str, Any]:
    study = tiny_classification()
    study["task"] = {
        "kind": "detection",
        "classes": ["lung nodule", "liver lesion"],
        "backbone": {"layers": [1, 1], "width": 8},
        "pyramid_channels": 16,
        "class_loss": "bce_hard_negative",
    }
    study["data"]["source"] |= {"generator": "ct", "task": "detection"}
    return study


def tiny_volumes() -> dict[str, Any]:
    study = tiny_segmentation()
    study["task"] |= {"spatial_dims": 3}
    size = [24, 24, 16]
    study["data"]["source"] |= {"size": size, "format": "nifti", "cases": 6}
    study["data"]["preprocess"]["size"] = size
    study["data"]["augment"] = {"factor": 2, "patch": [16, 16, 16]}
    return study


STUDIES = {
    "classification": tiny_classification,
    "detection": tiny_detection,
    "segmentation": tiny_segmentation,
    "volumes": tiny_volumes,
}


def inputs(kind: str, folder: Path) -> RunInputs:
    study = STUDIES[kind]()
    study["data"].setdefault("augment", {"factor": 2})
    made: RunInputs = TinyFederation(folder / "federation", study).inputs("device=cpu")
    return made.model_copy(update={"cache": folder / "cache"})


def child(given: RunInputs, folder: Path, how: str) -> subprocess.Popen[bytes]:
    (folder / "inputs.json").write_text(given.model_dump_json())
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "toys.killed", str(folder / "inputs.json"), str(folder / "epoch"), how]
    return subprocess.Popen(command, cwd=tests, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_another_process_ends_what_one_that_vanished_began(kind: str, tmp_path: Path) -> None:
    given = inputs(kind, tmp_path)
    assert child(given, tmp_path, "exit").wait(PATIENCE) == 9
    done: list[int] = []
    found = train(
        given, FileEpochStore(tmp_path / "epoch", "run", 0), step_done=lambda step, steps: done.append(steps - step)
    )
    assert len(done) == found[0].steps * (EPOCHS - 1) / EPOCHS
    assert same(found, train(given, None))


def test_a_process_killed_in_the_middle_of_an_epoch_costs_that_epoch(tmp_path: Path) -> None:
    given = inputs("classification", tmp_path)
    process = child(given, tmp_path, "hang")
    try:
        end = time.monotonic() + PATIENCE
        while not (tmp_path / f"epoch{HANGING}").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    done: list[int] = []
    found = train(given, FileEpochStore(tmp_path / "epoch", "run", 0), step_done=lambda step, _: done.append(step))
    assert done[0] == found[0].steps * 2 // EPOCHS + 1
    assert same(found, train(given, None))


@pytest.mark.parametrize("kind", STUDIES)
def test_reading_images_moves_no_generator_that_training_uses(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when a damaged pack is made anew while a site trains."""

    def generators() -> list[Any]:
        return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]

    given = inputs(kind, tmp_path)
    cases = assign_cases(given).cases[SITE]
    before = generators()
    samples = load_site_data(given, SITE, cases).splits["train"]
    assert isinstance(samples, CachedSamples)
    first = samples.batch([0, len(samples) - 1])
    for pack in (tmp_path / "cache" / "packs").glob("*/data.bin"):
        content = bytearray(pack.read_bytes())
        content[64:-64] = bytes(len(content) - 128)
        with pack.open("r+b") as file:
            file.write(content)
    again = load_site_data(given, SITE, cases).splits["train"].batch([0, len(samples) - 1])
    assert all(np.array_equal(np.asarray(first[name][0]), np.asarray(again[name][0])) for name in first)
    assert "rebuilt" in caplog.text
    assert generators() == before
