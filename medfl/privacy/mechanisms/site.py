"""Site-level differential privacy with central Gaussian noise (Geyer et al. 2017, McMahan et al. 2018).

    w <- w + server step of (sum_k a_k clip_C(D_k) + N(0, z^2 C^2 I)) / D_pub,   0 <= a_k <= 1

The denominator is fixed and public: a refused or lost site counts as 0 while denominator, noise and charge stay, so
the sensitivity to adding or removing a site is C. Sampling sites buys nothing: everybody can know who took part.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from medfl.errors import StudyError
from medfl.privacy.ledger.base import Unit
from medfl.privacy.mechanisms.adaptive_clip import FEWEST_SITES, AdaptiveClipConfig, SplitNoise
from medfl.privacy.mechanisms.base import Facts, Mechanism, MechanismConfig, NoisePlan


class SiteNoiseConfig(MechanismConfig):
    kind: Literal["site"] = "site"
    cap: int | None = Field(
        None, ge=1, description="weights min(cases / cap, 1); null: every site weighs 1, and its size plays no part"
    )
    denominator: float | None = Field(
        None, gt=0, description="public; null: the number of planned sites, which no sum of weights passes"
    )

    adaptive: AdaptiveClipConfig | None = Field(
        None, description="let the clip follow a quantile of the norms; null: it stays as it is"
    )

    def traits(self) -> frozenset[str]:
        return frozenset({"unit-site", "sums", "central-noise"})


class SiteNoise(Mechanism):
    Config = SiteNoiseConfig
    config: SiteNoiseConfig
    unit: ClassVar[Unit] = "site"
    describes: ClassVar[str] = "discrete Gaussian noise on the sum of clipped site updates, drawn by the coordinator"

    def _plan(self, facts: Facts, noise_multiplier: float) -> NoisePlan:
        sites = tuple(sorted(facts.patients))
        adaptive = self.config.adaptive
        if adaptive is not None and len(sites) < FEWEST_SITES and not adaptive.forced:
            raise StudyError.at(
                "privacy.adaptive",
                f"with {len(sites)} sites the clip would mostly follow the noise; it takes {FEWEST_SITES}",
                "leave it out and set privacy.clip, or set privacy.adaptive.forced: true",
            )
        return replace(
            self._common(facts, noise_multiplier, len(sites)),
            denominator=self.config.denominator or float(len(sites)),
            shares=len(sites),
            cap=self.config.cap or 0,
            bit_noise=0.0 if adaptive is None else SplitNoise.of(noise_multiplier, len(sites)).bit,
        )

    def trust(self, channel: str) -> dict[str, str]:
        updates = {
            "clear": "the coordinator sees each clipped update before the noise",
            "masks": "nobody; the coordinator sees the sum before the noise",
            "he": "nobody; the key holder sees the sum with the noise",
        }
        return {
            "updates": updates.get(channel, f"as the channel {channel} says"),
            "noise": "the coordinator draws it and could take it off again",
            "model": "every site and the coordinator",
            "holds against": "sites and everyone who gets the model; not against the coordinator",
        }
