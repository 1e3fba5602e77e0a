"""Mechanism contract: what is clipped, who adds the noise, and what a round is charged.

A study chooses one of three: `site` (site-level: the coordinator adds noise to the sum of clipped updates), `patient`
(patient-level: every site adds its share of the noise, only the sum is opened) and `local` (patient-level: every site
adds all the noise it needs). A plan is fixed before the first round; the noise follows from the clip and the plan,
never from a "sensitivity" that somebody states.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from medfl.errors import StudyError
from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.accounting.calibrate import LOW_SIGNAL, signal_to_noise
from medfl.privacy.ledger.base import Charge, Randomness, Unit
from medfl.privacy.mechanisms.adaptive_clip import SplitNoise


class MechanismConfig(PluginConfig):
    """What every mechanism needs. Either `epsilon` (the noise is then calibrated for the study's rounds) or
    `noise_multiplier`, or both (the run then stops before the round that would pass epsilon)."""

    epsilon: float | None = Field(None, gt=0, description="budget of the run")
    delta: float | None = Field(None, gt=0, lt=1)
    noise_multiplier: float | None = Field(
        None, gt=0, description="noise over clip norm; null: calibrated from epsilon, delta and stop.rounds"
    )
    clip: float = Field(1.0, gt=0, description="Euclidean norm that a unit's contribution is clipped to")
    site_metrics: Literal["listed", "withheld"] = Field(
        "listed",
        description="listed: sites' metrics leave without noise and are named as not covered; withheld: only unseen "
        "sites are evaluated",
    )
    accept_low_utility: bool = Field(False, description=f"start although signal-to-noise is below {LOW_SIGNAL}")

    @model_validator(mode="before")
    @classmethod
    def _no_seed(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (seeds := sorted(key for key in value if "seed" in str(key))):
            raise ValueError(f"{', '.join(seeds)}: privacy noise has no seed, whoever knows it could remove the noise")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.delta is None:
            raise ValueError("delta is missing: an epsilon means nothing without it; use at most 1 / patients, as 1e-5")
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("give epsilon (the budget), or noise_multiplier, or both")
        return self

    @property
    def budget(self) -> Budget | None:
        return None if self.epsilon is None or self.delta is None else Budget(self.epsilon, self.delta)


@dataclass(frozen=True, slots=True)
class Facts:
    """Public facts that a plan is made from. patients: declared training cases of each site; parameters: values of the
    shared vector; rounds: the study's; epochs: local epochs of a round."""

    patients: Mapping[str, int]
    parameters: int
    rounds: int
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """Everything about the noise that is fixed before the first round, JSON-able.

    noise_multiplier: noise of the whole sum (`site`), of the sum of the shares counted on (`patient`) or of each site
    (`local`), over the clip. rounds: how many were planned, of `steps` noisy steps each. signal_to_noise: predicted
    norm of the largest signal over the expected norm of the noise. denominator: what a sum is divided by. shares:
    noise shares counted on (`patient`). patients: public number of each site. cap: cases with which a site weighs 1, 0
    when all do. bit_noise: of the clip bit of an adaptive clip, 0 without one.
    """

    kind: str
    unit: Unit
    sites: tuple[str, ...]
    parameters: int
    noise_multiplier: float
    rounds: int
    clip: float
    signal_to_noise: float
    sampling_rate: float = 1.0
    steps: int = 1
    denominator: float = 1.0
    shares: int = 1
    colluders: int = 0
    patients: Mapping[str, int] = field(default_factory=dict)
    cap: int = 0
    bit_noise: float = 0.0

    @property
    def update_noise(self) -> float:
        """Noise of the sum over the clip; more than is charged where a clip bit takes its part of the charge."""
        return SplitNoise.of(self.noise_multiplier, len(self.sites)).update if self.bit_noise else self.noise_multiplier

    @property
    def whole(self) -> GaussianEvent:
        """All rounds' events as one, for the accountants of a fixed plan."""
        return GaussianEvent(self.noise_multiplier, self.sampling_rate, self.steps * self.rounds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sites": list(self.sites)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NoisePlan":
        return cls(**{**value, "sites": tuple(value["sites"])})


@dataclass(frozen=True, slots=True)
class Release:
    """Which release of which run, about whose data, as the owner of a ledger knows it."""

    study: str
    run: str
    round: int
    dataset: str
    randomness: Randomness = "system"


class Mechanism(Plugin[MechanismConfig], ABC):
    unit: ClassVar[Unit]
    describes: ClassVar[str]
    """The mechanism in words, for statements."""

    def plan(self, facts: Facts) -> NoisePlan:
        """The plan of a run; StudyError when its parts do not fit, or when it would drown the signal in noise."""
        plan = self._plan(facts, 1.0)
        plan = self._plan(facts, self._noise_multiplier(plan))
        if plan.signal_to_noise < LOW_SIGNAL and not self.config.accept_low_utility:
            raise StudyError.at(
                "privacy",
                f"the predicted signal-to-noise is {plan.signal_to_noise:.2g}: noise multiplier "
                f"{plan.noise_multiplier:.3g} over {plan.parameters} parameters leaves next to nothing to learn from",
                "use the unit patient (privacy.kind: patient), train fewer parameters, use more sites or a larger "
                "epsilon; or set privacy.accept_low_utility: true",
            )
        return plan

    def agrees(self, plan: NoisePlan, epochs: int, rounds: int) -> bool:
        """Whether a plan that somebody sent is one that this study makes, whatever its noise: how much noise is needed
        is for the ledger to judge."""
        facts = Facts(plan.patients or dict.fromkeys(plan.sites, 1), plan.parameters, rounds, epochs)
        return self._plan(facts, plan.noise_multiplier) == plan

    @abstractmethod
    def _plan(self, facts: Facts, noise_multiplier: float) -> NoisePlan:
        """The plan with this noise."""

    def _common(self, facts: Facts, noise_multiplier: float, units: float) -> NoisePlan:
        """What all plans say. units: sites or patients that may pull the same way in a step."""
        return NoisePlan(
            kind=self.config.kind,
            unit=self.unit,
            sites=tuple(sorted(facts.patients)),
            parameters=facts.parameters,
            noise_multiplier=noise_multiplier,
            rounds=facts.rounds,
            clip=self.config.clip,
            signal_to_noise=signal_to_noise(units, noise_multiplier, facts.parameters),
        )

    def _noise_multiplier(self, plan: NoisePlan) -> float:
        """As the study says, or the least that keeps all planned rounds within the budget."""
        if self.config.noise_multiplier is not None:
            return self.config.noise_multiplier
        from medfl.privacy.accounting.calibrate import noise_multiplier

        budget = self.config.budget
        if budget is None:
            raise StudyError.at("privacy", "has neither epsilon nor noise_multiplier", "give one of them")
        return noise_multiplier(budget, plan.steps * plan.rounds, plan.sampling_rate)

    def event(self, plan: NoisePlan, alive: int | None = None) -> GaussianEvent:
        """What a round costs with `alive` sites in the sum, or as planned."""
        return GaussianEvent(plan.noise_multiplier, plan.sampling_rate, plan.steps)

    def charge(self, plan: NoisePlan, release: Release, alive: int | None = None) -> Charge:
        """What a ledger is to be charged for a round with `alive` sites in the sum, or as planned."""
        return Charge(
            study=release.study,
            run=release.run,
            round=release.round,
            release="model",
            unit=plan.unit,
            dataset=release.dataset,
            mechanism=plan.kind,
            event=self.event(plan, alive),
            clip=plan.clip,
            sensitivity=plan.clip,
            sites=len(plan.sites),
            shares=float(plan.shares if alive is None or "gradients" not in self.config.traits() else alive),
            plan=plan.whole,
            randomness=release.randomness,
        )

    def not_covered(self) -> list[str]:
        """What leaves a site or the coordinator without noise."""
        listed = [
            "how many training cases each site declares",
            "the names of images that a site skipped, and why",
            "who took part, who failed or was refused, and by which rule",
            "the time that training took",
        ]
        if self.config.site_metrics == "listed":
            listed.append("metrics of the model on the sites' validation and test images")
        return listed

    @abstractmethod
    def trust(self, channel: str) -> dict[str, str]:
        """Who sees updates, noise, key and model, and against whom epsilon holds; `channel` is its kind."""


MECHANISMS = PluginPoint(
    "privacy mechanism",
    "medfl.mechanisms",
    {
        "site": "medfl.privacy.mechanisms.site:SiteNoise",
        "patient": "medfl.privacy.mechanisms.patient:PatientNoise",
        "local": "medfl.privacy.mechanisms.local:LocalNoise",
    },
)
