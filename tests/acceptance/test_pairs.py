"""Every pair of settings of different plug-in points: a reason why it is refused, or rounds that end well.

The settings are made from the registries, so that a new plug-in is among them by itself. The other half of the whole
matrix is in `test_pairs_further.py`, for two processes to share it.
"""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from toys.combined import Played, Refused, Stage
from toys.pairs import Setting, neutral, pairs, settings, troubles, written

SETTINGS = settings()
SAMPLE = random.Random(7).sample(pairs(SETTINGS), 60)
NEUTRAL = neutral()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        yield Stage(tmp_path_factory.mktemp("stage"), patch)


def kept(one: Played, base: Played) -> bool:
    """Whether a run with neutral settings came to the base study's model, but for the digits of its codes."""
    change = np.linalg.norm(base.model - base.initial)
    return bool(np.linalg.norm(one.model - base.model) < 2e-3 * change)


@pytest.fixture(scope="module")
def base(stage: Stage) -> Played:
    return stage.play(written())


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.point != "codec_down"], ids=str)
def test_each_setting_works_alone(stage: Stage, setting: Setting) -> None:
    assert stage.play(written(setting)).wrong() == ""


@pytest.mark.parametrize(("one", "other"), SAMPLE, ids=str)
def test_a_pair_is_refused_or_works(stage: Stage, one: Setting, other: Setting) -> None:
    assert stage.trouble(written(one, other)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(0, len(SETTINGS), 2), ids=lambda number: str(SETTINGS[number]))
def test_all_pairs_are_refused_or_work(stage: Stage, number: int) -> None:
    assert troubles(stage, SETTINGS, number) == {}


@pytest.mark.parametrize(
    "names",
    [
        # what the codec gets wrong grows in the coordinator's picture
        ("gate=laq", "codec_up=random_k"),
        # tensors of which only a part is there
        ("submodel=afd", "codec_up=powersgd"),
    ],
    ids=" + ".join,
)
def test_what_the_rules_refuse_goes_wrong_without_them(stage: Stage, names: tuple[str, str]) -> None:
    chosen = [setting for setting in SETTINGS if str(setting) in names]
    with pytest.raises(Refused, match="rule"):
        stage.play(written(*chosen))
    assert stage.trouble(written(*chosen), rules=False)


@pytest.mark.parametrize("setting", NEUTRAL, ids=str)
def test_a_neutral_setting_loses_nothing(stage: Stage, base: Played, setting: Setting) -> None:
    assert kept(stage.play(written(setting)), base)


@pytest.mark.slow
@pytest.mark.parametrize("setting", NEUTRAL, ids=str)
def test_neutral_settings_lose_nothing_together(stage: Stage, base: Played, setting: Setting) -> None:
    lost = []
    for one, other in pairs(NEUTRAL):
        if one is setting:
            try:
                if not kept(stage.play(written(one, other)), base):
                    lost.append(str(other))
            except Refused:
                continue
    assert lost == []


def test_a_loss_is_seen(stage: Stage, base: Played) -> None:
    eighth = Setting("codec_up", "topk of an eighth", {"update.codec_up": {"kind": "topk", "density": 0.125}})
    assert not kept(stage.play(written(eighth)), base)
