"""Patient-level differential privacy in which every site adds all the noise it needs (DP-SGD, Abadi et al. 2016).

    y <- y - lr * (sum over patients p drawn with probability q of clip_C(g_p) + N(0, z^2 C^2 I)) / (q N_k)

What leaves a site is private already and whatever is done with it costs nothing more; no trust in anybody is needed.
"""

import math
from typing import ClassVar, Literal

from medfl.privacy.accounting.calibrate import signal_to_noise
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
        sites = tuple(sorted(facts.patients))
        rate = self.config.sampling_rate
        public = self.config.public(facts)
        return NoisePlan(
            kind="local",
            unit="patient",
            sites=sites,
            parameters=facts.parameters,
            noise_multiplier=noise_multiplier,
            sampling_rate=rate,
            steps=facts.epochs * math.ceil(1 / rate),
            rounds=facts.rounds,
            clip=self.config.clip,
            denominator=1.0,
            shares=1,
            colluders=0,
            signal_to_noise=signal_to_noise(rate * max(public.values()), noise_multiplier, facts.parameters),
            patients=public,
        )

    def trust(self, channel: str) -> dict[str, str]:
        return {
            "updates": "the coordinator sees each site's update, noise included",
            "noise": "every site knows its own",
            "model": "every site and the coordinator",
            "holds against": "everyone but the site itself",
        }
