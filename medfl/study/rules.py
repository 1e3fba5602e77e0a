"""Which parts of a study may be combined: one table, checked before anything runs, all conflicts at once.

Each part declares traits ("channel:reveals-sum"); a rule names the traits that must not meet, says why, and
names the nearest combination that works.
"""

from collections.abc import Iterator, Sequence
from itertools import dropwhile

from medfl.data.plans.class_stream import ClassStreamConfig
from medfl.errors import Fault
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HyperparameterConfig, found_in
from medfl.plugins import PluginConfig
from medfl.study.combinations import RULES
from medfl.study.model import Study
from medfl.update.codecs.base import CODECS, Codec

_MANY = 1 << 20
"""Values of a vector, where a codec's loss depends on them."""


def conflicts(study: Study) -> Iterator[Fault]:
    """A fault for every rule that the study breaks."""
    if isinstance(study.local.plan, ClassStreamConfig):
        yield from study.local.plan.faults(study.task.classes)
    present = traits(study)
    for rule in RULES:
        if rule.together <= present:
            where = " + ".join(sorted(trait.split(":")[0].split("=")[0] for trait in rule.together))
            yield Fault(f"study {study.name}: {where} (rule {rule.name})", rule.why, rule.instead)


def traits(study: Study) -> frozenset[str]:
    """Everything that the study's parts say about themselves."""
    update, federation = study.update, study.federation
    points: dict[str, tuple[PluginConfig, ...]] = {
        "task": (study.task,),
        "plan": (study.local.plan,),
        "rules": study.local.rules,
        "submodel": (update.submodel,),
        "gate": (update.gate,),
        "memory": (update.memory,),
        "codec_up": (update.codec_up,),
        "codec_down": (update.codec_down,),
        "channel": (update.channel,),
        "schedule": (federation.schedule,),
        "regulator": federation.regulator,
        "aggregator": (federation.aggregator,),
        "server": (federation.server,),
    }
    found = {f"{point}={config.kind}" for point, configs in points.items() for config in configs}
    found |= {
        f"{point}:{trait}" for point, configs in points.items() for config in configs for trait in config.traits()
    }
    if any(trait.endswith(":sync-only") for trait in found):
        found.add("parts:sync-only")
    return frozenset(found | set(_of_the_whole(study)) | set(_of_privacy(study)) | set(_of_the_way(study)))


def _of_privacy(study: Study) -> Iterator[str]:
    """What decides whether updates are only added, and what differential privacy forbids."""
    mechanism = study.privacy
    sums = study.update.clip is not None
    if mechanism is not None:
        yield "privacy:on"
        yield from (f"privacy:{trait}" for trait in mechanism.traits())
        sums = sums or "sums" in mechanism.traits()
    yield "update:sums" if sums else "update:unbounded"
    if study.update.clip is not None:
        yield "update:own-clip"
    if study.update.codec_up.kind != "fp32" and "scale-adaptive" not in study.update.codec_up.traits():
        yield "codec_up:own-codes"
    if study.update.memory.kind != "none":
        yield "memory:remembers"
    if study.update.gate.kind != "always":
        yield "gate:depends-on-update"
    if study.federation.aggregator.kind != "weighted_mean":
        yield "aggregator:other"
    if study.federation.aggregator.kind != "masked_mean":
        yield "aggregator:not-masked"
    if study.federation.server != SERVER_STEPS.default("sgd"):
        yield "server:other"
    if study.federation.schedule.kind != "all" and "event-driven" not in study.federation.schedule.traits():
        yield "schedule:samples-sites"
    if any(rule.kind != "sgd" for rule in study.local.rules):
        yield "rules:drift"
    if any("by-loss" in config.traits() for config in values(study).values()):
        yield "values:by-loss"
    if study.local.epochs.kind != "constant":
        yield "epochs:moving"
    if study.stop.target is not None or study.stop.patience is not None:
        yield "stop:by-metric"


def _of_the_way(study: Study) -> Iterator[str]:
    """What travels, in which coordinates and from which steps."""
    update, local = study.update, study.local
    yield f"down:{update.down}"
    yield from (f"{way}:enlarges" for way in ("codec_up", "codec_down") if _enlarges(getattr(update, way)))
    if update.submodel.kind != "full":
        yield "submodel:other"
        if "trains-all" not in update.submodel.traits():
            yield "submodel:trains-part"
    if update.codec_down.kind != "fp32" or update.down != "model":
        yield "codec_down:not-exact"
    if "lossy" in update.codec_down.traits() and update.codec_down.kind != "int8":
        yield "codec_down:coarse"
    if update.memory.kind != "none" and getattr(update.memory, "decay", 1.0) == 1.0:
        yield "memory:keeps-all"
    if any(config.kind != "constant" for config in found_in("down", update.codec_down).values()):
        yield "codec_down:moving"
    if getattr(study.federation.schedule, "fraction", 1.0) < 0.5 or study.federation.schedule.kind == "drfa":
        yield "schedule:few-sites"
    after = dropwhile(lambda rule: "tracks" not in rule.traits(), local.rules)
    if any("client-momentum" in rule.traits() for rule in after):
        yield "rules:momentum-after-tracker"
    yield "local:no-steps" if local.steps is None else "local:steps"
    if local.optimizer.kind != "sgd":
        yield "local:not-linear"
    if local.optimizer.kind != "sgd" or local.optimizer.momentum:
        yield "local:own-momentum"
    plain = local.optimizer.kind == "sgd" and not local.optimizer.momentum and not local.optimizer.weight_decay
    if not plain or local.gradient_clip is not None:
        yield "local:other-optimizer"
    alpha = max((getattr(rule, "alpha", None) or 0.0 for rule in local.rules if "tracks" in rule.traits()), default=0.0)
    if alpha and alpha > 1 / (1 + _worst(update.codec_up)):
        yield "rules:alpha-too-large"


def _worst(config: PluginConfig) -> float:
    """What a codec loses at most (`Codec.omega`), where its density moves."""
    lowest = {name: moving.lowest() for name, moving in found_in(config.kind, config).items()}
    codec: Codec = CODECS.build(config)
    return codec.at({name: value for name, value in lowest.items() if value}).omega(_MANY)


def _enlarges(codec: PluginConfig) -> bool:
    """Whether a codec that is right on average may be off by more than the vector's length."""
    right_on_average = codec.traits() & {"unbiased", "scaled-up"}
    return bool(right_on_average) and CODECS.build(codec).omega(_MANY) >= 1


def _of_the_whole(study: Study) -> Iterator[str]:
    if _twice(study.local.rules):
        yield "rules:same-kind-twice"
    if _twice(study.federation.regulator):
        yield "regulator:same-kind-twice"
    schedule = study.federation.schedule
    if "event-driven" in schedule.traits() and study.federation.quorum > getattr(schedule, "size", 1):
        yield "schedule:short-of-quorum"
    if sum("own-loss" in rule.traits() for rule in study.local.rules) > 1:
        yield "rules:own-loss-twice"
    if "streams-classes" not in study.local.plan.traits():
        yield "plan:no-stream"
    if study.task.kind != "classification":
        yield "task:no-class-an-image"
    if getattr(study.task, "teacher", None) is None:
        yield "task:no-teacher"
    if study.evaluation.public is None:
        yield "evaluation:no-public"
    elif study.evaluation.public not in study.evaluation.unseen:
        yield "evaluation:public-trains"
    preprocess = study.data.preprocess
    # size and spacing have the same number of axes
    axes = preprocess.size or preprocess.spacing
    if axes is not None and len(axes) != study.task.spatial_dims:
        yield "data:other-dimensions"
    if preprocess.channels != study.task.in_channels:
        yield "data:other-channels"
    patch = None if study.data.augment is None else study.data.augment.patch
    if patch is not None:
        yield "data:patches"
        if len(patch) != study.task.spatial_dims:
            yield "data:patch-dimensions"
    source = study.data.source
    if source.kind == "synthetic" and source.task != study.task.kind:
        yield "data:other-task"


def values(study: Study) -> dict[str, HyperparameterConfig]:
    """The configuration of every hyper-parameter of the study by dotted name."""
    configs = found_in("local", study.local)
    for part in (*study.local.rules, study.update.codec_up, study.update.memory):
        configs |= found_in(part.kind, part)
    return configs


def _twice(configs: Sequence[PluginConfig]) -> bool:
    return len({config.kind for config in configs}) < len(configs)
