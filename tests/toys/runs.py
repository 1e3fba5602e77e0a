"""Small real runs under differential privacy: the tiny federation of `conftest`, with four training sites."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.data.base import SiteData
from medfl.privacy.ledger.file import FileLedger
from medfl.transport import host

SITES = ("east", "north", "south", "west")
ACCEPTED = {"delta": 1e-5, "accept_low_utility": True}
SITE = {"kind": "site", "epsilon": 8, **ACCEPTED}
PATIENT = {"kind": "patient", "epsilon": 8, "sampling_rate": 0.3, **ACCEPTED}
LOCAL = {"kind": "local", "epsilon": 8, "sampling_rate": 0.5, **ACCEPTED}


class Crash(BaseException):
    """Stands for the death of the process."""


def make_private(
    tiny: Any, privacy: Mapping[str, Any], channel: Any = "clear", rounds: int = 2, /, **sections: Any
) -> None:
    """Make the tiny study private. sections: whole sections of the study instead of its own."""
    raw = yaml.safe_load(tiny.study.read_text())
    raw["task"]["class_balance"] = "none"
    raw |= {"local": {"learning_rate": 0.05, "batch_size": 4}, "evaluation": {}, "stop": {"rounds": rounds}}
    raw |= {"privacy": dict(privacy), "update": {"channel": channel}, **sections}
    tiny.write(raw)


def make_site(tiny: Any, name: str, **keys: Any) -> None:
    """Change a site's file."""
    path = tiny.sites / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))


def play(tiny: Any, run: Path, ledgers: Path | None = None) -> dict[str, Any]:
    """A new run, in this process; the summary."""
    inputs = tiny.inputs().model_copy(update={"ledgers": ledgers or run.parent / "ledgers"})
    return simulate(inputs, run, Observer(), workers=1)


def resume(run: Path) -> dict[str, Any]:
    return simulate(inputs_of(run), run, Observer(), workers=1, resume=True)


def ledger(folder: Path, party: str = "coordinator") -> FileLedger:
    """A party's ledger, verified."""
    return FileLedger.read(folder / f"{party}.ledger")


def charged(folder: Path, party: str = "coordinator", run: str | None = None) -> list[int]:
    """The rounds that were charged, in order."""
    return [charge.round for charge in ledger(folder, party).charges(run)]


def released(folder: Path, run: str | None = None) -> list[int]:
    """The rounds whose release was noted at the coordinator, in order."""
    book = ledger(folder)
    entries = book.entries(run)
    return [entries[entry].round for entry, _ in book.releases(run)]


@contextmanager
def crash(owner: type, method: str, call: int, *, after: bool = False) -> Iterator[None]:
    """Die at the n-th call of a method, before or after it did its work; the block must end so."""
    real, calls = getattr(owner, method), 0

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Crash
        found = real(self, *args, **kwargs)
        if calls == call:
            raise Crash
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, dying)
        with pytest.raises(Crash):
            yield


class BrokenImages:
    """A site's samples whose pixels are not a number."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Any) -> Mapping[str, Any]:
        found = dict(self._samples.batch(indices))
        return {**found, "image": found["image"] * np.float32(np.nan)}


def break_images(patch: pytest.MonkeyPatch, site: str) -> None:
    """Let one site train on images that are not a number."""
    real: Callable[..., SiteData] = host.load_site_data

    def load(inputs: Any, name: str, cases: Any) -> SiteData:
        found = real(inputs, name, cases)
        if name != site:
            return found
        return replace(found, splits={**found.splits, "train": BrokenImages(found.splits["train"])})

    patch.setattr(host, "load_site_data", load)
