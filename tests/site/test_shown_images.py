"""A coordinator that asks for a round again, with one model after the other, sees one image of each class."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.proxied import PROXIED

from medfl.learning import prototypes
from medfl.learning.messages import Beginning, TrainOrder, TrainReply
from medfl.learning.randomness import generator
from medfl.privacy.channels.base import Identity
from medfl.privacy.identity import Ed25519Identity
from medfl.site.memory import DiskMemory
from medfl.study.build import build_codec_down
from medfl.study.sources import RunInputs, assign_cases
from medfl.transport.host import SiteHost
from medfl.update.base import Update

ORDERS = 12
VALUES = {"local.learning_rate": 0.01, "local.epochs": 1}


class Rewinds(DiskMemory):
    """The fake: which image was shown follows the round, as all private arrays do."""

    def _lasting(self) -> Mapping[str, Any]:
        return {}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Class and sample of every image whose gradient was made."""
    found, real = list[tuple[int, int]](), prototypes.perturbed

    def watched(context: Any, index: int, label: int, *rest: Any) -> Any:
        found.append((label, index))
        return real(context, index, label, *rest)

    monkeypatch.setattr(prototypes, "perturbed", watched)
    return found


def process(inputs: RunInputs, memory: DiskMemory, identity: Identity) -> SiteHost:
    """The site's, as it starts and takes up the run."""
    host = SiteHost(inputs, {"east": assign_cases(inputs).cases["east"]}, {"east": memory}, {"east": identity})
    host.open()
    host.begin(Beginning("run1", {"east": identity.public.hex()}))
    return host


def ask(host: SiteHost, inputs: RunInputs, attempt: int, round_: int = 1) -> TrainReply:
    """The reply to an order that comes with a model of its own."""
    vector, _ = host.initial_model()
    vector = vector + np.random.default_rng(attempt).normal(0, 0.3, vector.size).astype(np.float32)
    model = build_codec_down(inputs.study).encode(Update(vector, vector.size), generator(1, "codec-down", 1))
    reply, _ = host.train(TrainOrder("east", round_, VALUES), model)
    assert isinstance(reply, TrainReply), reply
    return reply


@pytest.mark.parametrize(("kind", "good"), [(DiskMemory, True), (Rewinds, False)])
def test_whatever_is_asked_one_image_of_a_class_is_shown_in_a_run(
    tiny: Any, tmp_path: Path, shown: Sequence[tuple[int, int]], kind: type[DiskMemory], good: bool
) -> None:
    inputs, identity = tiny.inputs(*PROXIED), Ed25519Identity.generate("east")
    begun = partial(process, inputs, identity=identity)
    host = begun(kind(tmp_path / "runs"))
    for attempt in range(ORDERS):
        if attempt == ORDERS // 2:
            # the site is killed and comes back
            host = begun(kind(tmp_path / "runs"))
        assert ask(host, inputs, attempt).prototypes is not None
    assert len(shown) == ORDERS and {label for label, _ in shown} == {0}
    assert (len(set(shown)) == 1) == good


def test_of_an_image_that_is_gone_nothing_is_shown_and_no_other(
    tiny: Any, tmp_path: Path, shown: Sequence[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    inputs, identity = tiny.inputs(*PROXIED), Ed25519Identity.generate("east")
    host = process(inputs, DiskMemory(tmp_path / "runs"), identity)
    ask(host, inputs, 0)
    samples = host._data["east"].splits["train"]
    _, index = shown[0]
    key = samples.info(index).key
    rest = [case for case in assign_cases(inputs).cases["east"] if case.key != key]
    later = SiteHost(inputs, {"east": rest}, {"east": DiskMemory(tmp_path / "runs")}, {"east": identity})
    later.open()
    later.begin(Beginning("run1", {"east": identity.public.hex()}))
    assert ask(later, inputs, 1).prototypes is None and len(shown) == 1
    assert "shows no other" in caplog.text and key not in caplog.text
