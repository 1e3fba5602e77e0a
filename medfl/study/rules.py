"""Which parts of a study may be combined: one table, checked before anything runs, all conflicts at once.

Each part declares traits ("channel:reveals-sum"); a rule names the traits that must not meet, says why, and
names the nearest combination that works.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medfl.errors import Fault
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HyperparameterConfig, found_in
from medfl.plugins import PluginConfig
from medfl.study.model import Study


@dataclass(frozen=True, slots=True)
class Rule:
    """`together`: traits, each "<point>:<trait>" or "<point>=<kind>", that are refused when all are present."""

    name: str
    together: frozenset[str]
    why: str
    instead: str


RULES = (
    Rule(
        "C1",
        frozenset({"codec_up:support-own", "channel:reveals-sum"}),
        "each site chooses its own coordinates, which a sum cannot tell apart",
        "use a dense codec or a shared support, or channel: clear",
    ),
    Rule(
        "C15",
        frozenset({"channel:reveals-sum", "regulator:needs-each-update"}),
        "the regulator must look at each update, and the channel opens only the sum",
        "use the rule finite, which a site can prove about itself, or channel: clear",
    ),
    Rule(
        "sum-bound",
        frozenset({"channel:reveals-sum", "update:unbounded"}),
        "only integers within a known bound can be added unseen, and nothing bounds the updates",
        "set update.clip to a norm that updates rarely pass, or switch privacy on (privacy.kind: site or patient)",
    ),
    Rule(
        "sum-codec",
        frozenset({"update:sums", "codec_up:other"}),
        "updates that are only added travel as integers on one grid",
        "leave update.codec_up out",
    ),
    Rule(
        "sum-compares",
        frozenset({"update:sums", "regulator:compares-sites"}),
        "the rule needs all updates side by side, and these are only added",
        "use the rules finite, norm_limit, norm_history or validation",
    ),
    Rule(
        "dp-clip",
        frozenset({"privacy:sums", "update:own-clip"}),
        "under privacy the clip is privacy.clip, which the noise follows",
        "leave update.clip out",
    ),
    Rule(
        "dp-compares",
        frozenset({"privacy:on", "regulator:compares-sites"}),
        "one site could decide whether others enter, which multiplies what it can change (and so epsilon)",
        "use rules that judge an update by itself: finite, norm_limit, norm_history, validation",
    ),
    Rule(
        "dp-gradients",
        frozenset({"privacy:gradients", "regulator:needs-each-update"}),
        "what a site sends is a sum of gradients with a share of the noise, which says little about the site",
        "use the rule finite",
    ),
    Rule(
        "dp-loss",
        frozenset({"privacy:on", "values:by-loss"}),
        "a hyper-parameter that follows the sites' losses releases them, and nothing charges for that",
        "use a constant or cosine",
    ),
    Rule(
        "dp-stop",
        frozenset({"privacy:on", "stop:by-metric"}),
        "stopping by the sites' metrics is a decision on data that nothing charges for",
        "leave stop.target and stop.patience out",
    ),
    Rule(
        "dp-weights",
        frozenset({"privacy:per-patient", "task:weights-from-labels"}),
        "class balance makes a patient's loss depend on the labels of all others, past the clip",
        "set task.class_balance: none",
    ),
    Rule(
        "dp-teacher",
        frozenset({"privacy:per-patient", "rules:own-loss"}),
        "a teacher that learned from all patients reaches into each patient's gradient, past the clip",
        "drop the rule, or use site-level privacy",
    ),
    Rule(
        "dp-one-step",
        frozenset({"privacy:gradients", "rules:drift"}),
        "sites send the gradient at the global model, so there is no drift to hold back",
        "leave local.rules out",
    ),
    Rule(
        "dp-memory",
        frozenset({"privacy:gradients", "memory:remembers"}),
        "a memory would carry a patient's gradient into later rounds, past the clip",
        "leave update.memory out",
    ),
    Rule(
        "dp-cohort",
        frozenset({"privacy:gradients", "schedule:samples-sites"}),
        "every site's share of the noise is counted on",
        "use federation.schedule: all",
    ),
    Rule(
        "dp-gate",
        frozenset({"privacy:on", "gate:depends-on-update"}),
        "whether a site uploads would tell something about its update",
        "use update.gate: always",
    ),
    Rule(
        "dp-epochs",
        frozenset({"privacy:local-noise", "epochs:moving"}),
        "the noise is calibrated for a number of local steps that is known beforehand",
        "give local.epochs a number",
    ),
    Rule(
        "C12",
        frozenset({"rules:client-momentum", "server:server-momentum"}),
        "momentum kept at the sites and at the coordinator multiply and blow up",
        "keep one of them: server: sgd",
    ),
    Rule(
        "rule-twice",
        frozenset({"rules:same-kind-twice"}),
        "local.rules names a rule twice, and its hyper-parameters have one name",
        "keep one of them",
    ),
    Rule(
        "regulator-twice",
        frozenset({"regulator:same-kind-twice"}),
        "federation.regulator names a rule twice, and its state has one name",
        "keep the stricter of them",
    ),
    Rule(
        "one-loss",
        frozenset({"rules:own-loss-twice"}),
        "two local rules replace the loss",
        "keep one of them",
    ),
    Rule(
        "teacher",
        frozenset({"rules:needs-teacher", "task:no-teacher"}),
        "distillation needs a network that stays at the site, and the task has none",
        "set task.teacher (segmentation), or drop the rule distillation",
    ),
    Rule(
        "public-data",
        frozenset({"regulator:needs-public-data", "evaluation:no-public"}),
        "the rule scores each update on public images, and the study names none",
        "set evaluation.public to a site whose validation images the coordinator may use, or drop the rule",
    ),
    Rule(
        "public-trains",
        frozenset({"evaluation:public-trains"}),
        "the public site must not train: its images judge the others' updates",
        "add it to evaluation.unseen",
    ),
    Rule(
        "dimensions",
        frozenset({"data:other-dimensions"}),
        "task.spatial_dims differs from the number of axes of data.preprocess.size or spacing",
        "give one number for each space axis",
    ),
    Rule(
        "channels",
        frozenset({"data:other-channels"}),
        "data.preprocess.channels differs from task.in_channels, which is what the network takes",
        "give both the same number",
    ),
    Rule(
        "patch-dimensions",
        frozenset({"data:patch-dimensions"}),
        "task.spatial_dims differs from the number of axes of data.augment.patch",
        "give one number of pixels for each space axis",
    ),
    Rule(
        "patch-label",
        frozenset({"data:patches", "task=classification"}),
        "the label of a whole image need not hold for a patch of it",
        "leave data.augment.patch out, and set data.preprocess.size",
    ),
    Rule(
        "synthetic-task",
        frozenset({"data:other-task"}),
        "data.source makes images for another task than task.kind",
        "set data.source.task to the study's task",
    ),
    Rule(
        "C16",
        frozenset({"schedule:event-driven", "channel:reveals-sum"}),
        "updates arrive one by one, and there is no cohort whose masks cancel or whose sum may be opened",
        "use channel: clear, or federation.schedule: all",
    ),
    Rule(
        "async-clip",
        frozenset({"schedule:event-driven", "update:own-clip", "channel:reveals-each"}),
        "updates that are only added, as integers on a round's grid, cannot be weighted by their staleness",
        "bound them with the regulator's rule norm_limit, or use federation.schedule: all",
    ),
    Rule(
        "async-privacy",
        frozenset({"schedule:event-driven", "privacy:on"}),
        "the noise is calibrated for a cohort and a number of rounds that are known beforehand, and a site that is "
        "faster would be charged for more",
        "use federation.schedule: all with federation.deadline, which goes on without slow sites",
    ),
    Rule(
        "async-compares",
        frozenset({"schedule:event-driven", "regulator:compares-sites"}),
        "the rule needs the updates of a round side by side, and these started from different models",
        "use the rules finite, norm_limit, norm_history or validation",
    ),
    Rule(
        "async-loss",
        frozenset({"schedule:event-driven", "values:by-loss"}),
        "a step's loss is that of the few sites that it is made of, so it moves with who arrives",
        "use a constant or cosine",
    ),
    Rule(
        "async-aggregator",
        frozenset({"schedule:event-driven", "aggregator:other"}),
        "the schedule itself weighs each update on arrival",
        "leave federation.aggregator out, or use federation.schedule: all",
    ),
    Rule(
        "async-server",
        frozenset({"schedule:mixes", "server:other"}),
        "mixing is the server step: momentum or Adam on top would count an update twice",
        "leave federation.server out, or use federation.schedule: buffered",
    ),
    Rule(
        "C8",
        frozenset({"schedule:event-driven", "parts:sync-only"}),
        "a part needs the mean of the same cohort in every round, which an asynchronous federation does not have",
        "choose another (the rule fedprox holds back drift without a cohort), or federation.schedule: all",
    ),
)


def conflicts(study: Study) -> Iterator[Fault]:
    """A fault for every rule that the study breaks."""
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
    return frozenset(found | set(_of_the_whole(study)) | set(_of_privacy(study)))


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
    if study.update.codec_up.kind != "fp32":
        yield "codec_up:other"
    if study.update.memory.kind != "none":
        yield "memory:remembers"
    if study.update.gate.kind != "always":
        yield "gate:depends-on-update"
    if study.federation.aggregator.kind != "weighted_mean":
        yield "aggregator:other"
    if study.federation.server != SERVER_STEPS.default("sgd"):
        yield "server:other"
    if study.federation.schedule.kind != "all":
        yield "schedule:samples-sites"
    if any(rule.kind != "sgd" for rule in study.local.rules):
        yield "rules:drift"
    if any("by-loss" in config.traits() for config in values(study).values()):
        yield "values:by-loss"
    if study.local.epochs.kind != "constant":
        yield "epochs:moving"
    if study.stop.target is not None or study.stop.patience is not None:
        yield "stop:by-metric"


def _of_the_whole(study: Study) -> Iterator[str]:
    if _twice(study.local.rules):
        yield "rules:same-kind-twice"
    if _twice(study.federation.regulator):
        yield "regulator:same-kind-twice"
    if sum("own-loss" in rule.traits() for rule in study.local.rules) > 1:
        yield "rules:own-loss-twice"
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
    for rule in study.local.rules:
        configs |= found_in(rule.kind, rule)
    return configs


def _twice(configs: Sequence[PluginConfig]) -> bool:
    return len({config.kind for config in configs}) < len(configs)
