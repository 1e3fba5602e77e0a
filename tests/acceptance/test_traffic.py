"""What may be left unsent on real chest X-rays: small payloads of the right values, and of the wrong ones.

Needs the public data set in $MEDFL_TEST_DATA or in `../shared/data` beside the repository.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.data.cache import default_folder
from medfl.study.load import load_study
from medfl.study.sources import RunInputs, adapt_to_images
from medfl.update.codecs import personal_topk
from medfl.update.codecs.indices import Indices
from medfl.update.vector import FloatVector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEDFL_TEST_DATA", ROOT.parent / "shared" / "data")) / "pneumonia_mnist"
ROUNDS = 30
MEMORY = "update.memory=error_feedback"
PERSONAL = "update.codec_up={kind: personal_topk, density: 0.08, values: fp16}"
TERNARY = ("update.codec_up={kind: stc, density: 0.01}", "update.codec_down={kind: stc, density: 0.01}")


class Trial:
    """Short runs over the four skewed sites, with the same seed and as many rounds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *overrides: str) -> "Outcome":
        short = (f"stop.rounds={ROUNDS}", f"local.learning_rate.rounds={ROUNDS}", f"evaluation.every={ROUNDS}")
        study = load_study(ROOT / "configs" / "public" / "pneumonia_mnist_traffic.yaml", [*short, *overrides])
        inputs = adapt_to_images(RunInputs(study=study, data=DATA, cache=default_folder()))[0]
        # one worker is this very process, so that a fake of this process counts
        return Outcome(simulate(inputs, self.folder / str(len(list(self.folder.iterdir()))), Observer(), workers=1))


class Outcome:
    def __init__(self, summary: dict[str, Any]) -> None:
        self.up = int(summary["traffic"]["up_bytes"])
        self.down = int(summary["traffic"]["down_bytes"])
        self.auroc = float(summary["metrics"]["global"]["auroc"]["value"])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    if not DATA.exists():
        pytest.skip("the public data set pneumonia_mnist is not there")
    return Trial(tmp_path_factory.mktemp("traffic"))


@pytest.fixture(scope="module")
def whole(trial: Trial) -> Outcome:
    return trial.run()


def test_a_tenth_of_the_bytes_up(trial: Trial, whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest values are enough, the first ones are not: the same bytes, and a model that has hardly learned."""
    chosen = trial.run(PERSONAL, MEMORY)
    assert chosen.up <= whole.up / 10
    assert chosen.auroc >= whole.auroc - 0.02
    monkeypatch.setattr(personal_topk, "largest", _first)
    first = trial.run(PERSONAL, MEMORY)
    assert chosen.up / 3 <= first.up <= whole.up / 10
    assert first.auroc < whole.auroc - 0.02


def test_a_fortieth_both_ways(trial: Trial, whole: Outcome) -> None:
    """Signs of 1 % both ways, the whole model of the first round counted; without a memory they do not do."""
    both = trial.run(*TERNARY, MEMORY, "update.down=change")
    assert both.up + both.down <= (whole.up + whole.down) / 40
    assert both.auroc >= whole.auroc - 0.03
    forgetful = trial.run(*TERNARY, "update.down=change")
    assert forgetful.up >= both.up / 2
    assert forgetful.auroc < whole.auroc - 0.03


def _first(values: FloatVector, count: int) -> Indices:
    return np.arange(min(count, values.size))
