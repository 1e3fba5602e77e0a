"""What all tests share: one thread a process, a cache of their own, and a tiny federation."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# how fast a machine is decides nothing
settings.register_profile(
    "medfl",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.load_profile("medfl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first: no process waits at the end for another that began it last."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tests never read or fill the user's cache."""
    before = os.environ.get("MEDFL_CACHE")
    os.environ["MEDFL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["MEDFL_CACHE"]
    else:
        os.environ["MEDFL_CACHE"] = before


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As tmp_path, for what has a Unix socket in it: their paths may have a hundred characters only."""
    with TemporaryDirectory(prefix="medfl-") as folder:
        yield Path(folder)


def tiny_classification() -> dict[str, Any]:
    """A study that trains in a second: three hospitals, 24-pixel chests, a network of some thousand parameters."""
    return {
        "name": "tiny",
        "seed": 3,
        "task": {
            "kind": "classification",
            "classes": ["normal", "pneumonia"],
            "network": {"layers": [1, 1], "width": 4, "stem": "small"},
        },
        "data": {
            "source": {"kind": "synthetic", "generator": "chest", "size": [24, 24], "cases": 15},
            "preprocess": {"size": [24, 24], "channels": 1},
        },
        "local": {"learning_rate": 0.005, "batch_size": 4, "rules": [{"kind": "fedprox", "mu": 0.1}]},
        "evaluation": {"unseen": ["north"]},
        "stop": {"rounds": 3},
    }


def tiny_segmentation() -> dict[str, Any]:
    """Teacher and student on 24-pixel slices: the study whose sites keep a private state."""
    study = tiny_classification()
    study["task"] = {
        "kind": "segmentation",
        "classes": ["background", "liver"],
        "network": {"width": 4, "depth": 1},
        "teacher": {"width": 16, "depth": 1},
    }
    study["data"]["source"] |= {"generator": "ct", "task": "segmentation", "organs": "liver"}
    study["local"]["rules"] = ["distillation", "fedprox"]
    study["local"]["epochs"] = {"kind": "adacomm", "start": 2, "block": 1}
    study["update"] = {"codec_up": "fp16", "memory": "error_feedback"}
    study["federation"] = {"server": "momentum"}
    return study


class TinyFederation:
    """A study file and its site files in a folder of their own."""

    def __init__(self, folder: Path, study: dict[str, Any]) -> None:
        self.folder = folder
        self.sites = folder / "sites"
        self.sites.mkdir(parents=True)
        for number, name in enumerate(("east", "north", "south", "west")):
            shift = {"noise": 0.01 * (number + 1), "prevalence": 0.6}
            (self.sites / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "synthetic": shift}))
        self.write(study)

    def write(self, study: dict[str, Any]) -> None:
        self.study = self.folder / "study.yaml"
        self.study.write_text(yaml.safe_dump(study))

    def inputs(self, *overrides: str) -> Any:
        from medfl.data.cache import default_folder
        from medfl.study.load import load_sites, load_study
        from medfl.study.sources import RunInputs

        return RunInputs(
            study=load_study(self.study, overrides),
            sites=tuple(load_sites(self.sites)),
            cache=default_folder(),
            ledgers=self.folder / "ledgers",
        )


@pytest.fixture
def tiny(tmp_path: Path) -> TinyFederation:
    return TinyFederation(tmp_path / "federation", tiny_classification())


@pytest.fixture
def tiny_with_teacher(tmp_path: Path) -> TinyFederation:
    return TinyFederation(tmp_path / "federation", tiny_segmentation())
