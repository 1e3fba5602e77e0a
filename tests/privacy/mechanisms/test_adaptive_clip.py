"""The adaptive clip: its sign, its price, and who may use it."""

import math

import numpy as np
import pytest

from medfl.errors import StudyError
from medfl.privacy.mechanisms.adaptive_clip import AdaptiveClip, AdaptiveClipConfig, SplitNoise
from medfl.privacy.mechanisms.base import MECHANISMS, Facts, Mechanism
from medfl.privacy.mechanisms.site import SiteNoiseConfig

NORMS = np.random.default_rng(0).lognormal(0.0, 0.4, 400)


def followed(clip: AdaptiveClip, rounds: int = 150) -> float:
    for _ in range(rounds):
        clip.update(float(np.mean(clip.clip >= NORMS)))
    return clip.clip / float(np.quantile(NORMS, clip.config.quantile))


class Inverted(AdaptiveClip):
    """The fake: the sign that makes the clip run away."""

    def update(self, unclipped: float) -> None:
        self.clip *= math.exp(self.config.rate * (unclipped - self.config.quantile))


@pytest.mark.parametrize("start", [0.05, 1.0, 40.0])
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_clip_finds_the_quantile_from_both_sides(start: float, quantile: float) -> None:
    assert 0.9 < followed(AdaptiveClip(AdaptiveClipConfig(quantile=quantile), start)) < 1.1


@pytest.mark.parametrize("start", [0.05, 40.0])
def test_the_inverted_sign_runs_away(start: float) -> None:
    assert not 0.1 < followed(Inverted(AdaptiveClipConfig(), start)) < 10


@pytest.mark.parametrize(("noise", "sites"), [(1.0, 20), (5.0, 20), (10.0, 100), (0.5, 1000)])
def test_update_and_bit_together_cost_what_is_charged(noise: float, sites: int) -> None:
    split = SplitNoise.of(noise, sites)
    assert split.update**-2 + (2 * split.bit) ** -2 == pytest.approx(noise**-2)
    assert 1 < split.update / noise < 1.05


def mechanism(**settings: object) -> Mechanism:
    config = SiteNoiseConfig.model_validate(
        {"delta": 1e-3, "noise_multiplier": 2, "accept_low_utility": True, **settings}
    )
    made: Mechanism = MECHANISMS.build(config)
    return made


def facts(sites: int) -> Facts:
    return Facts({f"s{number:02d}": 10 for number in range(sites)}, 100, 5)


def test_few_sites_are_refused_unless_forced() -> None:
    with pytest.raises(StudyError, match="it takes 20"):
        mechanism(adaptive={}).plan(facts(19))
    assert mechanism(adaptive={}).plan(facts(20)).bit_noise > 0
    assert mechanism(adaptive={"forced": True}).plan(facts(4)).bit_noise > 0
    assert mechanism().plan(facts(4)).bit_noise == 0
