"""The combinations of a study's parts that are refused: one table.

The names C1 to C20 are those of the notes on how federated algorithms compose; they appear in error messages and in the
documentation.
"""

from dataclasses import dataclass


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
        "use update.submodel: {kind: seeded_mask, shared: true, trains: false} with a memory, or channel: clear",
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
        "C2",
        frozenset({"update:sums", "codec_up:scale-adaptive"}),
        "codes of sites that each chose a scale of their own cannot be added",
        "leave update.codec_up out: updates then travel as integers on the round's grid",
    ),
    Rule(
        "C3",
        frozenset({"update:sums", "codec_up:own-codes"}),
        "updates that are only added travel as integers on one grid, whose sum fits the ring for any number of sites",
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
        "C5",
        frozenset({"privacy:sums", "codec_up:support-own"}),
        "which coordinates a site chose tells of its data, and no noise covers that",
        "leave update.codec_up out, or use privacy.kind: local, where updates are private before they are coded",
    ),
    Rule(
        "C4",
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
        "dp-one-epoch",
        frozenset({"privacy:gradients", "epochs:moving"}),
        "sites send one gradient a round, and have no local epochs that could move",
        "give local.epochs a number",
    ),
    Rule(
        "C6",
        frozenset({"rules:tracks", "codec_up:scale-static"}),
        "the error of a fixed grid does not shrink with the update, and the tracker follows it",
        "use a codec whose scale follows the update: int8 with rounding: stochastic, qsgd or sketch",
    ),
    Rule(
        "C7",
        frozenset({"rules:alpha-too-large"}),
        "a tracker whose alpha is above 1 / (1 + omega) of the codec may diverge",
        "leave alpha out, which takes just that",
    ),
    Rule(
        "C10",
        frozenset({"rules:tracks", "submodel:other"}),
        "the tracker needs what all sites did at every coordinate",
        "use update.submodel: full (a memory keeps its residual in the whole vector, so it goes with any sub-model)",
    ),
    Rule(
        "C11",
        frozenset({"submodel:per-client", "update:sums"}),
        "a sum of parts that differ from site to site does not tell how many sites own a coordinate",
        "use update.submodel: {kind: seeded_mask, shared: true}, or channel: clear without update.clip",
    ),
    Rule(
        "masked-mean",
        frozenset({"aggregator:needs-support", "codec_up:support-own", "submodel:fixed"}),
        "what a site did not choose to send would count as not its own, and the others' values as the mean",
        "leave federation.aggregator out",
    ),
    Rule(
        "submodel-momentum",
        frozenset({"memory:client-momentum", "submodel:trains-part"}),
        "momentum of coordinates that a site does not have this round would go on without a gradient",
        "use update.memory: error_feedback, or update.submodel: full",
    ),
    Rule(
        "submodel-tensors",
        frozenset({"submodel:other", "codec_up:by-tensor"}),
        "the codec works on whole matrices of the network, of which only some values travel",
        "use update.submodel: full, or another codec (int8, topk)",
    ),
    Rule(
        "submodel-mean",
        frozenset({"submodel:per-client", "aggregator:not-masked"}),
        "coordinates that a site does not have would count as if it had not moved them",
        "use federation.aggregator: masked_mean",
    ),
    Rule(
        "submodel-privacy",
        frozenset({"submodel:other", "privacy:on"}),
        "the accounting knows only updates of the whole vector",
        "use update.submodel: full",
    ),
    Rule(
        "submodel-changes",
        frozenset({"submodel:other", "down:change"}),
        "changes of the whole model are of no use to a site that has a part of it",
        "leave update.down out",
    ),
    Rule(
        "submodel-async",
        frozenset({"submodel:other", "schedule:event-driven"}),
        "the parts are chosen for a round and its cohort",
        "use update.submodel: full, or federation.schedule: all",
    ),
    Rule(
        "submodel-snapshot",
        frozenset({"submodel:other", "schedule:snapshots"}),
        "a site's snapshot is of the whole vector",
        "use update.submodel: full, or federation.schedule: all",
    ),
    Rule(
        "C12",
        frozenset({"rules:client-momentum", "server:server-momentum"}),
        "momentum kept at the sites and at the coordinator multiply and blow up",
        "keep one of them: server: sgd",
    ),
    Rule(
        "C18",
        frozenset({"memory:client-momentum", "server:server-momentum"}),
        "DGC's memory keeps momentum already, masked where it was sent; a second one at the coordinator is not masked",
        "use federation.server: sgd",
    ),
    Rule(
        "momentum-twice",
        frozenset({"memory:client-momentum", "rules:client-momentum"}),
        "momentum of the local steps and of the memory multiply and blow up",
        "keep one of them",
    ),
    Rule(
        "memory-enlarges",
        frozenset({"memory:remembers", "codec_up:enlarges"}),
        "what the codec gets wrong may be longer than what it was given, so that what is kept grows without end",
        "leave update.memory out, or use a codec whose error is the shorter: topk, random_k with scaled: false, int8",
    ),
    Rule(
        "C13",
        frozenset({"gate:mirrors-site", "update:sums"}),
        "the coordinator must know whose news is in the sum, or what stands in for the others would be wrong",
        "use update.gate: always, or channel: clear without update.clip",
    ),
    Rule(
        "gate-enlarges",
        frozenset({"gate:mirrors-site", "codec_up:enlarges"}),
        "what the codec gets wrong may be longer than the news, so that the coordinator's picture gets worse each time",
        "use a codec whose error is the shorter: topk, random_k with scaled: false, int8, shrinking_grid",
    ),
    Rule(
        "gate-memory",
        frozenset({"gate:mirrors-site", "memory:remembers"}),
        "what was not sent is in the next news already: a memory would send it twice",
        "leave update.memory out",
    ),
    Rule(
        "gate-aggregator",
        frozenset({"gate:mirrors-site", "aggregator:other"}),
        "what stands in for silent sites is a mean, to which news is added",
        "leave federation.aggregator out, or use update.gate: always",
    ),
    Rule(
        "gate-submodel",
        frozenset({"gate:mirrors-site", "submodel:other"}),
        "the coordinator's picture of a site is of the whole vector",
        "use update.submodel: full, or update.gate: always",
    ),
    Rule(
        "gate-changes",
        frozenset({"gate:mirrors-site", "down:change"}),
        "site and coordinator reckon from the same model, and changes come down with loss",
        "leave update.down out, or use update.gate: always",
    ),
    Rule(
        "gate-weights",
        frozenset({"gate:mirrors-site", "schedule:own-weights"}),
        "the shares that stand in for silent sites are those of their cases",
        "use federation.schedule: all or uniform",
    ),
    Rule(
        "gate-async",
        frozenset({"gate:depends-on-update", "schedule:event-driven"}),
        "a site that sends nothing would be waited for in vain",
        "use update.gate: always, or federation.schedule: all",
    ),
    Rule(
        "C14",
        frozenset({"schedule:reads-losses", "privacy:on"}),
        "single sites' losses decide who trains, and nothing charges for that; nor does drawing sites make noise count "
        "for more",
        "use federation.schedule: all",
    ),
    Rule(
        "drfa-sum",
        frozenset({"schedule:snapshots", "update:sums"}),
        "snapshots travel beside the sum, where each could be read",
        "use channel: clear without update.clip, or federation.schedule: all",
    ),
    Rule(
        "drfa-aggregator",
        frozenset({"schedule:own-weights", "aggregator:other"}),
        "the schedule's draws are the weights of a plain mean",
        "leave federation.aggregator out",
    ),
    Rule(
        "drfa-compares",
        frozenset({"schedule:snapshots", "regulator:compares-sites"}),
        "a site's snapshot is taken in before the sites are compared",
        "use the rules finite, norm_limit, norm_history or validation",
    ),
    Rule(
        "drfa-changes",
        frozenset({"schedule:snapshots", "down:change"}),
        "the snapshot counts from the exact model, and changes come down with loss",
        "leave update.down out",
    ),
    Rule(
        "sum-aggregator",
        frozenset({"update:sums", "aggregator:other"}),
        "of updates that are only added there is no more than the sum",
        "leave federation.aggregator out, or use channel: clear without update.clip",
    ),
    Rule(
        "C17",
        frozenset({"memory:keeps-all", "schedule:few-sites"}),
        "at low participation a residual is stale by the time it is sent",
        "use update.memory: {kind: error_feedback, decay: 0.9}, or draw half of the sites or more",
    ),
    Rule(
        "C19",
        frozenset({"rules:own-loss", "submodel:trains-part"}),
        "teacher and student must both be whole",
        "use update.submodel: full, or drop the rule distillation",
    ),
    Rule(
        "stream",
        frozenset({"rules:needs-stream", "plan:no-stream"}),
        "the rule keeps exemplars of classes that go, and in this study none goes",
        "use local.plan: class_stream, or drop the rule glfc",
    ),
    Rule(
        "stream-task",
        frozenset({"plan:streams-classes", "task:no-class-an-image"}),
        "an image has no one class by which it could come and go",
        "use local.plan: shards",
    ),
    Rule(
        "dp-stream",
        frozenset({"plan:streams-classes", "privacy:per-patient"}),
        "patients are drawn from all that a site has, whatever classes the round is about",
        "use local.plan: shards, or site-level privacy",
    ),
    Rule(
        "C20",
        frozenset({"plan:shares-data", "privacy:on"}),
        "a patient whose images are at two sites is protected by neither site's noise alone",
        "use local.plan: shards",
    ),
    Rule(
        "tracker-steps",
        frozenset({"rules:common-steps", "local:no-steps"}),
        "the trackers' sum stays zero only if all sites take the same number of steps",
        "set local.steps in place of local.epochs",
    ),
    Rule(
        "tracker-optimizer",
        frozenset({"rules:plain-sgd", "local:other-optimizer"}),
        "the tracker reads gradients off the steps, which it can for plain SGD alone",
        "set local.optimizer: {kind: sgd} without momentum, and local.gradient_clip: null",
    ),
    Rule(
        "tracker-momentum",
        frozenset({"rules:momentum-after-tracker"}),
        "momentum of the corrected gradient adds the correction up, which then overshoots and diverges",
        "list the rule local_momentum before fedcomgate",
    ),
    Rule(
        "tracker-mean",
        frozenset({"rules:reads-mean", "server:other"}),
        "sites read the mean update off two models in a row, which the server step must not bend",
        "leave federation.server out",
    ),
    Rule(
        "tracker-aggregator",
        frozenset({"rules:reads-mean", "aggregator:other"}),
        "sites correct towards the mean of all updates, and the model moves by something else",
        "leave federation.aggregator out",
    ),
    Rule(
        "tracker-down",
        frozenset({"rules:reads-mean", "codec_down:not-exact"}),
        "sites read the mean update off two models in a row, which must come down without loss",
        "leave update.codec_down and update.down out",
    ),
    Rule(
        "tracker-cohort",
        frozenset({"rules:sync-only", "schedule:samples-sites"}),
        "the tracker needs every site in every round",
        "use federation.schedule: all, or the rule fedprox",
    ),
    Rule(
        "tracker-gate",
        frozenset({"rules:tracks", "gate:depends-on-update"}),
        "the tracker needs every site's update in every round",
        "use update.gate: always",
    ),
    Rule(
        "tracker-privacy",
        frozenset({"rules:tracks", "privacy:on"}),
        "a tracker would follow the noise from round to round",
        "use the rule fedprox",
    ),
    Rule(
        "svrg-loss",
        frozenset({"rules:extra-gradients", "rules:own-loss"}),
        "variance reduction asks for the loss more than once a step, and distillation trains its teacher each time",
        "drop one of them",
    ),
    Rule(
        "svrg-patients",
        frozenset({"rules:extra-gradients", "privacy:per-patient"}),
        "a gradient over all patients reaches into each patient's, past the clip",
        "drop the rule svrg",
    ),
    Rule(
        "dp-steps",
        frozenset({"local:steps", "privacy:per-patient"}),
        "the noise is calibrated for local.epochs",
        "leave local.steps out",
    ),
    Rule(
        "steps-epochs",
        frozenset({"local:steps", "epochs:moving"}),
        "local.steps stands in place of local.epochs, whose movement would then mean nothing",
        "give local.steps the moving number, or leave local.steps out",
    ),
    Rule(
        "down-model",
        frozenset({"codec_down:coarse", "down:model"}),
        "the codec is meant for changes, and would be applied to the model itself",
        "set update.down: change, or use codec_down: fp16 or int8",
    ),
    Rule(
        "down-enlarges",
        frozenset({"down:change", "codec_down:enlarges"}),
        "what the codec gets wrong may be longer than the change, so that the sites' model leaves the coordinator's",
        "use a codec whose error is the shorter: stc, topk, random_k with scaled: false, int8",
    ),
    Rule(
        "down-async",
        frozenset({"down:change", "schedule:event-driven"}),
        "sites have different versions at any time",
        "leave update.down out, or use federation.schedule: all",
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
