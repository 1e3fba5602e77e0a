"""From a Study to the parts that run. The only place that turns configurations into plug-ins."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medfl.data.plans.base import PLANS
from medfl.errors import StudyError
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.parts import FederationParts
from medfl.federation.proxy import ProxyServer
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.federation.summing import Summation
from medfl.hyperparameters.base import HYPERPARAMETERS, Hyperparameter
from medfl.hyperparameters.constant import ConstantConfig
from medfl.learning.messages import OLD_MODELS, SNAPSHOT, STEPS, planned_steps
from medfl.learning.rules.base import RULES
from medfl.learning.rules.glfc import GlfcConfig
from medfl.privacy.channels.base import CHANNELS, Channel
from medfl.privacy.mechanisms.base import MECHANISMS, Facts, Mechanism, NoisePlan
from medfl.study.model import Study
from medfl.study.rules import values
from medfl.tasks.base import TASKS, Task
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.down import Changes
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.pipeline import UploadPipeline
from medfl.update.submodels.base import SUBMODELS, SubModel
from medfl.update.vector import Layout

if TYPE_CHECKING:
    import torch

    from medfl.learning.executor import LocalParts


def build_task(study: Study) -> Task:
    task: Task = TASKS.build(study.task)
    return task


def build_codec_down(study: Study) -> Codec:
    """The codec of whole models: where changes are sent down, models to be evaluated travel without loss."""
    changes = study.update.down == "change"
    codec: Codec = CODECS.build(CODECS.default("fp32") if changes else study.update.codec_down)
    return codec


def build_codec_changes(study: Study) -> Codec | None:
    """The codec of changes that are sent down in place of the model; None where the model is sent."""
    return CODECS.build(study.update.codec_down) if study.update.down == "change" else None


def build_submodel(study: Study) -> SubModel | None:
    """None where all of the vector travels."""
    return None if study.update.submodel.kind == "full" else SUBMODELS.build(study.update.submodel)


def build_local(study: Study) -> "LocalParts":
    """What happens at a site. Imports torch."""
    from medfl.learning.executor import LocalParts

    local, update = study.local, study.update
    return LocalParts(
        task=build_task(study),
        plan=PLANS.build(local.plan),
        rules=[RULES.build(rule) for rule in local.rules],
        optimizer=local.optimizer,
        submodel=SUBMODELS.build(update.submodel),
        pipeline=UploadPipeline(
            gate=GATES.build(update.gate),
            memory=MEMORIES.build(update.memory),
            codec=CODECS.build(update.codec_up),
        ),
        batch_size=local.batch_size,
        gradient_clip=local.gradient_clip,
        max_steps=local.max_steps,
        seed=study.seed,
        asked=_asked(study),
    )


def _asked(study: Study) -> frozenset[str]:
    """What orders of the study may hold beside its hyper-parameters."""
    found = set() if study.local.steps is None else {STEPS}
    if study.sends_snapshots:
        found.add(SNAPSHOT)
    if study.sends_prototypes:
        found.add(OLD_MODELS)
    return frozenset(found)


def _proxied(study: Study) -> GlfcConfig | None:
    """The rule whose old models the coordinator chooses; None without one."""
    rules = (rule for rule in study.local.rules if isinstance(rule, GlfcConfig))
    return next((rule for rule in rules if rule.old_model == "proxy"), None)


def build_proxy(study: Study) -> ProxyServer | None:
    """Who chooses old models at the coordinator; None where each site chooses its own."""
    rule = _proxied(study)
    return None if rule is None else ProxyServer(len(study.task.classes), rule.rebuilt_images)


def build_federation(study: Study, noise: NoisePlan | None = None) -> FederationParts:
    """What happens at the coordinator, with the run's noise. Does not import torch."""
    federation, changes = study.federation, build_codec_changes(study)
    return FederationParts(
        schedule=SCHEDULES.build(federation.schedule),
        codec=CODECS.build(study.update.codec_up),
        regulator=[REGULATORS.build(rule) for rule in federation.regulator],
        aggregator=AGGREGATORS.build(federation.aggregator),
        server=SERVER_STEPS.build(federation.server),
        values=build_values(study),
        summation=build_summation(study, noise),
        quorum=federation.quorum,
        stand_in=GATES.build(study.update.gate).stand_in(),
        submodel=build_submodel(study),
        down=None if changes is None else Changes(changes),
        proxy=build_proxy(study),
    )


def bind_federation(parts: FederationParts, study: Study, layout: Layout) -> None:
    """Tell the coordinator's parts of the network. Imports torch where a part wants to see it."""
    parts.codec.bind(layout)
    if parts.down is not None:
        parts.down.codec.bind(layout)
    if parts.submodel is not None:
        from medfl.learning.partial import setup_of

        parts.submodel.bind(setup_of(build_task(study), study.seed, layout))
    if parts.proxy is not None and (rule := _proxied(study)) is not None:
        from medfl.learning.rebuilding import Rebuilder

        size, iterations = study.data.preprocess.size, rule.rebuild_iterations
        parts.proxy.bind(Rebuilder(build_task(study), study.seed, rule.prototype_size, iterations, size))


def steps_of(study: Study, cases: int, values: Mapping[str, float]) -> int:
    """Local steps of an order to a site with so many training cases, as far as the coordinator can tell."""
    return planned_steps(values, math.ceil(cases / study.local.batch_size), study.local.max_steps)


def build_channel(study: Study) -> Channel:
    channel: Channel = CHANNELS.build(study.update.channel)
    return channel


def build_mechanism(study: Study) -> Mechanism | None:
    return None if study.privacy is None else MECHANISMS.build(study.privacy)


def build_summation(study: Study, noise: NoisePlan | None) -> Summation | None:
    """How updates are added, for a study in which they are only added."""
    if noise is not None and study.privacy is not None and "sums" in study.privacy.traits():
        return Summation(build_channel(study), noise.clip, build_mechanism(study), noise)
    return None if study.update.clip is None else Summation(build_channel(study), study.update.clip)


def sum_later_values(study: Study) -> dict[str, float]:
    """What every order of a study with such sums says of clip, grid and weight; {} of another."""
    how = build_summation(study, None) if study.sums_later else None
    return {} if how is None else how.later(SCHEDULES.build(study.federation.schedule).size)


def build_noise_plan(study: Study, cases: Mapping[str, int], parameters: int) -> NoisePlan | None:
    """The noise of a run over sites with so many training cases; StudyError when it cannot be."""
    mechanism = build_mechanism(study)
    if mechanism is None:
        return None
    return mechanism.plan(Facts(cases, parameters, study.stop.rounds, planned_epochs(study)))


def planned_epochs(study: Study) -> int:
    """Local epochs of a round where they do not move, as far as noise is calibrated for them."""
    epochs = study.local.epochs
    return int(epochs.value) if isinstance(epochs, ConstantConfig) else 1


def build_values(study: Study) -> dict[str, Hyperparameter]:
    """Every hyper-parameter of the study by dotted name."""
    return {name: HYPERPARAMETERS.build(config) for name, config in values(study).items()}


def choose_device(study: Study) -> "torch.device":
    """The study's device; `auto` is CUDA, then Apple's MPS, then the CPU. StudyError when it is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in there if there[name]) if study.device == "auto" else study.device
    if not there[name]:
        raise StudyError.at("device", f"{name} is not available on this machine", "--set device=auto")
    return torch.device(name)
