"""Patient-level differential privacy in which every site adds all the noise it needs (DP-SGD, Abadi et al. 2016).

    y <- y - lr * (sum over patients p drawn with probability q of clip_C(g_p) + N(0, z^2 C^2 I)) / (q N_k)

What leaves a site is private already and whatever is done with it costs nothing more; no trust in anybody is needed.
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

from medfl.privacy.ledger.base import Unit
from medfl.privacy.mechanisms.base import Facts, Mechanism, NoisePlan
from medfl.privacy.mechanisms.patient import PatientSamplingConfig


class LocalNoiseConfig(PatientSamplingConfig):
    kind: Literal["local"] = "local"

    def traits(self) -> frozenset[str]:
        return frozenset({"unit-patient", "per-patient", "local-noise"})


class LocalNoise(Mechanism):
    Config = LocalNoiseConfig
    config: LocalNoiseConfig
    unit: ClassVar[Unit] = "patient"
    describes: ClassVar[str] = "discrete Gaussian noise of each site on each of its steps"

    def _plan(self, facts: Facts, noise_multiplier: float) -> NoisePlan:
        rate = self.config.sampling_rate
        public = self.config.public(facts)
        return replace(
            self._common(facts, noise_multiplier, rate * max(public.values())),
            sampling_rate=rate,
            steps=facts.epochs * math.ceil(1 / rate),
            patients=public,
        )

    def trust(self, channel: str) -> dict[str, str]:
        return {
            "updates": "the coordinator sees each site's update, noise included",
            "noise": "every site knows its own",
            "model": "every site and the coordinator",
            "holds against": "everyone but the site itself",
        }
