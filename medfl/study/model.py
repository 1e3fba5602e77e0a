"""A Study: one YAML that names every part of a federation. Validated whole before anything runs."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from medfl.data.augment.base import AugmentConfig
from medfl.data.partition.base import PARTITIONS
from medfl.data.plans.base import PLANS
from medfl.data.preprocess import PreprocessConfig
from medfl.data.synthetic.config import SiteShift, SyntheticSpec
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS, HyperparameterConfig, at_least
from medfl.hyperparameters.constant import ConstantConfig
from medfl.learning.optimizers import AdamOptimizer, OptimizerConfig
from medfl.learning.rules.base import RULES
from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import CHANNELS, hides
from medfl.privacy.mechanisms.base import MECHANISMS, MechanismConfig
from medfl.study.reserved import RESERVED
from medfl.tasks.base import TASKS, TaskConfig
from medfl.update.codecs.base import CODECS
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.submodels.base import SUBMODELS

Chosen = SerializeAsAny[PluginConfig]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SyntheticSource(SyntheticSpec):
    """Images that medfl makes itself, as real files, once."""

    kind: Literal["synthetic"] = "synthetic"


class DatalistSource(Section):
    """Images that are there: a datalist.json, or a folder or file that `medfl data import` understands."""

    kind: Literal["datalist"] = "datalist"
    path: Path | None = Field(None, description="relative to the study file; `--data` replaces it")


class DataSection(Section):
    source: SyntheticSource | DatalistSource = Field(discriminator="kind")
    partition: Annotated[Chosen, PARTITIONS] | None = Field(
        None,
        description="null keeps the sites that the images name, and deals them out evenly (iid) where they name none",
    )
    split: tuple[float, float, float] = Field((6, 2, 2), description="train : val : test, by patient")
    preprocess: PreprocessConfig
    augment: AugmentConfig | None = None
    minimum_cases: int = Field(1, ge=1, description="a site with fewer readable training cases refuses")


class LocalSection(Section):
    epochs: Annotated[SerializeAsAny[HyperparameterConfig], HYPERPARAMETERS] = ConstantConfig(value=1)
    learning_rate: Annotated[SerializeAsAny[HyperparameterConfig], HYPERPARAMETERS] = ConstantConfig(value=0.001)
    batch_size: int = Field(16, ge=1)
    optimizer: OptimizerConfig = AdamOptimizer()
    gradient_clip: float | None = Field(5.0, gt=0, description="Euclidean norm; null for none")
    steps: Annotated[SerializeAsAny[HyperparameterConfig], HYPERPARAMETERS] | None = Field(
        None, description="local steps of a round in place of epochs: the same number at every site"
    )
    max_steps: int | None = Field(None, ge=1, description="upper bound of a round's local steps")
    plan: Annotated[Chosen, PLANS] = Field(default={"kind": "shards"}, validate_default=True)
    rules: tuple[Annotated[Chosen, RULES], ...] = Field(default=({"kind": "sgd"},), validate_default=True)

    @field_validator("epochs")
    @classmethod
    def _whole_epochs(cls, epochs: HyperparameterConfig) -> HyperparameterConfig:
        if isinstance(epochs, ConstantConfig) and not epochs.value.is_integer():
            raise ValueError("must be a whole number")
        return at_least(epochs, 1)

    @field_validator("steps")
    @classmethod
    def _whole_steps(cls, steps: HyperparameterConfig | None) -> HyperparameterConfig | None:
        return None if steps is None else cls._whole_epochs(steps)

    @field_validator("learning_rate")
    @classmethod
    def _not_negative(cls, learning_rate: HyperparameterConfig) -> HyperparameterConfig:
        return at_least(learning_rate, 0)


class UpdateSection(Section):
    submodel: Annotated[Chosen, SUBMODELS] = Field(default={"kind": "full"}, validate_default=True)
    gate: Annotated[Chosen, GATES] = Field(default={"kind": "always"}, validate_default=True)
    memory: Annotated[Chosen, MEMORIES] = Field(default={"kind": "none"}, validate_default=True)
    codec_up: Annotated[Chosen, CODECS] = Field(default={"kind": "fp32"}, validate_default=True)
    codec_down: Annotated[Chosen, CODECS] = Field(default={"kind": "fp32"}, validate_default=True)
    down: Literal["model", "change"] = Field(
        "model", description="what codec_down codes: each round's model, or what changed since a site saw it last"
    )
    channel: Annotated[Chosen, CHANNELS] = Field(default={"kind": "clear"}, validate_default=True)
    clip: float | None = Field(
        None,
        gt=0,
        description="Euclidean norm that updates are clipped to; they are then only added, as integers. Needed by "
        "channels that open nothing but the sum",
    )


class FederationSection(Section):
    sites: int = Field(4, ge=1, description="how many sites a partition makes, where the data do not say")
    schedule: Annotated[Chosen, SCHEDULES] = Field(default={"kind": "all"}, validate_default=True)
    regulator: tuple[Annotated[Chosen, REGULATORS], ...] = Field(
        default=({"kind": "finite"}, {"kind": "norm_history"}), validate_default=True
    )
    quorum: int = Field(1, ge=1, description="updates that a round needs; with fewer the model stays as it is")
    deadline: float | None = Field(
        None, gt=0, description="seconds from a round's orders to its end, with whoever answered; null waits for all"
    )
    prune_after: int = Field(
        3, ge=1, description="failed rounds in a row after which a site is not asked until it shows up again"
    )
    aggregator: Annotated[Chosen, AGGREGATORS] = Field(default={"kind": "weighted_mean"}, validate_default=True)
    server: Annotated[Chosen, SERVER_STEPS] = Field(default={"kind": "sgd"}, validate_default=True)


class EvaluationSection(Section):
    every: int = Field(1, ge=1, description="rounds between two evaluations on the validation splits")
    unseen: tuple[str, ...] = Field((), description="sites that never train and only evaluate the model")
    public: str | None = Field(None, description="the site whose validation images the coordinator holds")


class Target(Section):
    metric: str
    value: float


class StopSection(Section):
    rounds: int = Field(10, ge=1)
    target: Target | None = Field(None, description="stop when the validation metric reaches this value")
    patience: int | None = Field(None, ge=1, description="stop after this many evaluations without a better one")


class Study(Section):
    """The whole study. `seed` is the experiment's: it never reaches protective randomness."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    task: Annotated[SerializeAsAny[TaskConfig], TASKS]
    data: DataSection
    local: LocalSection = LocalSection()
    update: UpdateSection = UpdateSection()
    federation: FederationSection = FederationSection()
    evaluation: EvaluationSection = EvaluationSection()
    stop: StopSection = StopSection()
    privacy: Annotated[SerializeAsAny[MechanismConfig], MECHANISMS] | None = Field(
        None, description="differential privacy: site, patient or local; null for none"
    )

    @model_validator(mode="after")
    def _fitting_regulator(self) -> Self:
        """Where nobody can look at single updates, the regulator that nobody chose keeps to what a site can say."""
        blind = hides(self.update.channel) or self.sums_later
        blind = blind or (self.privacy is not None and "gradients" in self.privacy.traits())
        if blind and "regulator" not in self.federation.model_fields_set:
            fitting = self.federation.model_copy(update={"regulator": (REGULATORS.default("finite"),)})
            object.__setattr__(self, "federation", fitting)
        return self

    @property
    def sums_later(self) -> bool:
        """Whether sites keep their updates until a sum of enough of them is made: sums without rounds."""
        return self.update.clip is not None and "event-driven" in self.federation.schedule.traits()

    @property
    def tells_places(self) -> bool:
        """Whether sites say beside a sealed update which coordinates they would send: where the study has a sub-model
        that asks for it, and no differential privacy, which would not cover it."""
        return self.privacy is None and "tells-places" in self.update.submodel.traits()

    @property
    def sends_prototypes(self) -> bool:
        """Whether gradients of single images leave the sites."""
        return any("sends-prototypes" in rule.traits() for rule in self.local.rules)

    @property
    def sends_snapshots(self) -> bool:
        """Whether a second vector leaves with each update: the change of the model up to a step of the round."""
        return "snapshots" in self.federation.schedule.traits()

    @property
    def tells_losses(self) -> bool:
        """Whether the coordinator may ask sites for the loss of its models on their training images."""
        return "reads-losses" in self.federation.schedule.traits()

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class SimulatedFault(Section):
    """What `medfl simulate` lets a site do wrong, to try the regulator: never available to a real site.

    nan: sends NaN. scale: sends its update times `factor`. flip_labels: trains on wrong labels for `share` of its
    cases.
    """

    kind: Literal["nan", "scale", "flip_labels"]
    factor: float = 100.0
    share: float = Field(0.4, gt=0, le=1)
    from_round: int = Field(1, ge=1)


class Policy(Section):
    """What a hospital allows; wins over the study."""

    tasks: tuple[str, ...] = Field(
        ("classification", "detection", "segmentation"),
        description="tasks that the images may be used for, also to evaluate",
    )
    minimum_cases: int = Field(1, ge=1, description="refuse to train on fewer cases")
    units: tuple[Literal["site", "patient"], ...] | None = Field(
        None, description="take part only under differential privacy of one of these units; null asks for none"
    )
    max_epsilon: float | None = Field(
        None,
        gt=0,
        description="ceiling for each unit over all studies on the same patients, kept by the site's own ledger; a "
        "study without a bound is refused",
    )
    max_delta: float | None = Field(
        None, gt=0, lt=1, description="largest delta of a study; null: one over the number of training cases"
    )
    channels: tuple[str, ...] | None = Field(None, description="channels that updates may leave by; null allows all")
    places_may_leave: bool = Field(
        False,
        description="where `channels` lets no update leave in the clear: whether a study may have the site say all the "
        "same which values of its update are the largest (sub-model union)",
    )
    metrics_may_leave: bool = Field(True, description="whether the model's metrics on the site's images may leave")
    prototypes_may_leave: bool | None = Field(
        None,
        description="whether gradients of single perturbed images may leave (rule glfc with old_model: proxy): they "
        "give classes away, and images can be rebuilt from them. null: only in simulations; a hospital must say so",
    )
    approve: Literal["ask", "allowed"] = Field(
        "ask", description="ask: the data steward approves each study; allowed: what the policy allows is approved"
    )

    @property
    def restricts(self) -> bool:
        """Whether the policy asks for anything of how updates and metrics leave."""
        asked = (self.units, self.max_epsilon, self.channels)
        kept = not self.metrics_may_leave or self.prototypes_may_leave is False
        return kept or any(value is not None for value in asked)

    def in_service(self) -> "Policy":
        """As it counts at a hospital, where what nobody consented to is refused."""
        return self.model_copy(update={"prototypes_may_leave": self.prototypes_may_leave is True})


class SharedImages(Section):
    """Images that a site may train on beside its own, and by whose word."""

    manifest: Path = Field(description="a datalist.json or a folder to import")
    consent: str = Field(
        min_length=1, max_length=200, description="what allows it: agreement, ethics vote, licence of a public set"
    )


class Storage(Section):
    """What a site's agent may keep in HOME/work, and for how long."""

    quota_gib: float = Field(20, gt=0, description="GiB that HOME/work may take; above it nothing more is received")
    keep_days: float = Field(
        90, gt=0, description="days that answers and private arrays of a run are kept after they were written last"
    )
    keep_ended_days: float = Field(7, ge=0, description="the same, of a run that its coordinator said is over")


class Site(Section):
    """One hospital's file, `sites/<name>.yaml`."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name!r} has a meaning of its own; give the site another name")
        return name

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)
    data: Path | None = Field(None, description="this site's images: a datalist.json or a folder to import")
    shared: tuple[SharedImages, ...] = Field(
        (),
        max_length=16,
        description="images beside its own that studies with the data plan `overlap` may train on, told with their "
        "consent; no other study opens them",
    )
    synthetic: SiteShift = SiteShift()
    policy: Policy = Policy()
    storage: Storage = Storage()
    fault: SimulatedFault | None = None
