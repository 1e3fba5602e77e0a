"""Patient-level differential privacy with noise shares that only add up in the sum (distributed DP-SGD).

    site k:  G_k = sum over patients p drawn with probability q of clip_C(g_p),   + N(0, z^2 C^2 / (n - t))
    w <- w - lr * (sum_k G_k) / (q N_pub)

n sites of which up to t may drop out or collude. The sum carries the noise of `alive` shares, of which a coalition of c
sites knows its own c: it is charged with z * min(1, sqrt((alive - c) / (n - t))), for what was really there.
"""

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from medfl.errors import StudyError
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.channels.base import MINIMUM_SITES
from medfl.privacy.ledger.base import Unit
from medfl.privacy.mechanisms.base import Facts, Mechanism, MechanismConfig, NoisePlan


class PatientSamplingConfig(MechanismConfig):
    """How a site draws its patients. sampling_rate: q of the Poisson draw. images, views: at most so many images of a
    patient, and augmented views of each, are averaged before the clip."""

    sampling_rate: float = Field(0.1, gt=0, le=1)
    images: int = Field(4, ge=1)
    views: int = Field(1, ge=1)
    engine: Literal["auto", "loop", "opacus", "vmap"] = "auto"
    patients: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="public number of training patients of each site; null: the cases that the sites declare"
    )

    def public(self, facts: Facts) -> dict[str, int]:
        """The public number of patients of each site; StudyError naming the sites that have none."""
        known = facts.patients if self.patients is None else self.patients
        if missing := sorted(facts.patients.keys() - known.keys()):
            raise StudyError.at("privacy.patients", f"says nothing of {', '.join(missing)}", "add a public number each")
        return {site: known[site] for site in sorted(facts.patients)}


class PatientNoiseConfig(PatientSamplingConfig):
    kind: Literal["patient"] = "patient"
    tolerated: int = Field(1, ge=0, description="t: sites that may drop out or collude without costing more")
    colluders: int = Field(1, ge=0, description="c: sites that pool what they know; 1 for each site by itself")

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.colluders > self.tolerated:
            raise ValueError(f"colluders {self.colluders} is above tolerated {self.tolerated}")
        return self

    def traits(self) -> frozenset[str]:
        return frozenset({"unit-patient", "sums", "gradients", "per-patient"})


class PatientNoise(Mechanism):
    Config = PatientNoiseConfig
    config: PatientNoiseConfig
    unit: ClassVar[Unit] = "patient"
    describes: ClassVar[str] = "discrete Gaussian noise shares of the sites on sums of clipped patient gradients"

    def _plan(self, facts: Facts, noise_multiplier: float) -> NoisePlan:
        sites, config = tuple(sorted(facts.patients)), self.config
        if len(sites) < MINIMUM_SITES:
            raise StudyError.at(
                "privacy.kind",
                f"{len(sites)} sites cannot share noise: each could take its own off the sum",
                f"take in {MINIMUM_SITES} sites or more, or use privacy.kind: local",
            )
        if len(sites) - config.tolerated < 2:
            raise StudyError.at(
                "privacy.tolerated",
                f"{len(sites)} sites cannot do without {config.tolerated}: the sum must hold two honest sites or more",
                "lower it, or take in more sites",
            )
        public = config.public(facts)
        expected = config.sampling_rate * sum(public.values())
        return replace(
            self._common(facts, noise_multiplier, expected),
            sampling_rate=config.sampling_rate,
            denominator=expected,
            shares=len(sites) - config.tolerated,
            colluders=config.colluders,
            patients=public,
        )

    def event(self, plan: NoisePlan, alive: int | None = None) -> GaussianEvent:
        unknown = plan.shares if alive is None else max(0, alive - plan.colluders)
        there = min(1.0, math.sqrt(unknown / plan.shares))
        return GaussianEvent(plan.noise_multiplier * there, plan.sampling_rate, plan.steps)

    def trust(self, channel: str) -> dict[str, str]:
        updates = {
            "clear": "the coordinator sees each site's sum with that site's share of the noise only",
            "masks": "nobody; the coordinator sees the sum with all shares of the noise",
            "he": "nobody; the key holder sees the sum with all shares of the noise",
        }
        against = "everyone, and coalitions of the coordinator with up to `colluders` sites"
        if channel == "he":
            against = "everyone by himself; not against the coordinator together with a party that has the round's key"
        if channel == "clear":
            against = "sites and everyone who gets the model; not against the coordinator, who sees single sites' sums"
        return {
            "updates": updates.get(channel, f"as the channel {channel} says"),
            "noise": "every site knows its own share",
            "model": "every site and the coordinator",
            "holds against": against,
        }
