"""Broken and hostile sites on real chest X-rays: with the regulator the model is as good as without that site."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.data.cache import default_folder
from medfl.data.importers import find_datalist
from medfl.data.manifest import save_datalist
from medfl.errors import RunError
from medfl.study.load import load_sites, load_study
from medfl.study.sources import RunInputs, adapt_to_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEDFL_TEST_DATA", ROOT.parent / "shared" / "data")) / "pneumonia_mnist"
REGULATOR = "federation.regulator=[finite, norm_history, validation]"
NONE = "federation.regulator=[]"
POINTS = 0.02
FLIPPED = {"kind": "flip_labels", "share": 0.4}


class Trial:
    """Short runs over site1..site4, site1 with a fault; the common images are public. few: cases of each class and
    split that the other sites keep, so that site1 is by far the largest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, fault: dict[str, Any] | None, *overrides: str, leave_out: str = "", few: int = 10**6) -> Any:
        """The final model's metrics on the common test images."""
        folder = self.folder / f"run{len(list(self.folder.iterdir()))}"
        sites = folder / "sites"
        sites.mkdir(parents=True)
        for site in ("site1", "site2", "site3", "site4", "common"):
            if site != leave_out:
                content = {"name": site, **({"fault": fault} if fault and site == "site1" else {})}
                (sites / f"{site}.yaml").write_text(yaml.safe_dump(content))
        datalist = find_datalist(DATA)
        kept, counts = [], Counter[Any]()
        for case in datalist.cases:
            counts[case.site, case.split, case.label] += 1
            whole = case.site in ("site1", "common") or counts[case.site, case.split, case.label] <= few
            if case.site != leave_out and whole:
                kept.append(case)
        save_datalist(replace(datalist, cases=tuple(kept)), folder / "datalist.json")
        public = ["evaluation.unseen=[common]", "evaluation.public=common"]
        study = load_study(ROOT / "configs" / "public" / "pneumonia_mnist.yaml", [*public, *overrides])
        given = RunInputs(
            study=study, data=folder / "datalist.json", sites=tuple(load_sites(sites)), cache=default_folder()
        )
        summary = simulate(adapt_to_images(given)[0], folder / "run", Observer())
        return summary["metrics"]["unseen"]["common"]

    def auroc(self, fault: dict[str, Any] | None, *overrides: str, leave_out: str = "") -> float:
        short = ("stop.rounds=6", "local.max_steps=40")
        return float(self.run(fault, *short, *overrides, leave_out=leave_out)["auroc"]["value"])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    if not DATA.exists():
        pytest.skip("the public data set pneumonia_mnist is not there")
    return Trial(tmp_path_factory.mktemp("regulator"))


@pytest.fixture(scope="module")
def without_the_site(trial: Trial) -> float:
    return trial.auroc(None, REGULATOR, leave_out="site1")


def test_updates_that_are_not_numbers_are_refused(trial: Trial, without_the_site: float) -> None:
    assert trial.auroc({"kind": "nan"}, REGULATOR) >= without_the_site - POINTS
    with pytest.raises(RunError, match="round 1: the combined update is not finite"):
        trial.auroc({"kind": "nan"}, NONE)


def test_a_hundredfold_update_is_refused(trial: Trial, without_the_site: float) -> None:
    fault = {"kind": "scale", "factor": 100}
    assert trial.auroc(fault, REGULATOR) >= without_the_site - POINTS
    assert trial.auroc(fault, NONE) < without_the_site - POINTS


def test_flipped_labels_do_no_harm(trial: Trial, without_the_site: float) -> None:
    assert trial.auroc(FLIPPED, REGULATOR) >= without_the_site - POINTS


def test_flipped_labels_at_the_largest_site(trial: Trial) -> None:
    """Four fifths of all training images are at the site that is wrong: it drags the global model with it, and only the
    other sites show that it does."""
    long = ("stop.rounds=10", "local.epochs=3")
    screened = "federation.regulator=[finite, norm_history, validation_median]"
    without = trial.run(None, *long, screened, leave_out="site1", few=60)["accuracy"]["value"]
    assert trial.run(FLIPPED, *long, screened, few=60)["accuracy"]["value"] >= without - POINTS
    assert trial.run(FLIPPED, *long, NONE, few=60)["accuracy"]["value"] < without - POINTS
