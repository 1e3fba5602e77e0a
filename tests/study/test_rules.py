"""Which parts may be combined: each rule's refused combination, and that its nearest neighbour works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import StudyError
from medfl.plugins import PluginConfig
from medfl.study.build import build_federation, build_values, choose_device
from medfl.study.combinations import RULES
from medfl.study.load import load_study, study_from_json
from medfl.study.model import Study
from medfl.study.rules import conflicts, traits
from medfl.tasks.classification.config import ClassificationConfig

CLASSIFICATION: dict[str, Any] = {
    "name": "test",
    "task": {"kind": "classification", "classes": ["a", "b"]},
    "data": {
        "source": {"kind": "synthetic", "generator": "chest", "task": "classification", "size": [32, 32]},
        "preprocess": {"size": [32, 32]},
    },
}
SEGMENTATION: dict[str, Any] = {
    "name": "test",
    "task": {"kind": "segmentation", "classes": ["background", "liver"], "network": {"width": 4, "depth": 2}},
    "data": {
        "source": {"kind": "synthetic", "generator": "ct", "task": "segmentation", "size": [32, 32], "organs": "liver"},
        "preprocess": {"size": [32, 32]},
    },
}


class Marked(PluginConfig):
    """A third party's part with traits of its choice."""

    words: frozenset[str] = frozenset()

    def traits(self) -> frozenset[str]:
        return self.words


class BatchNormed(ClassificationConfig):
    """A third party's network with running statistics."""

    def traits(self) -> frozenset[str]:
        return super().traits() | {"running-statistics"}


PARTLY = {"submodel": "afd"}
MEAN = {"aggregator": "masked_mean"}


def marked(*words: str, kind: str = "third") -> Marked:
    return Marked(kind=kind, words=frozenset(words))


def study(base: dict[str, Any] = CLASSIFICATION, **sections: Any) -> Study:
    return study_from_json({**base, **sections})


def with_parts(section: str, made: Study | None = None, **parts: Any) -> Study:
    """The study with parts that no validation has seen, as a third party's would be."""
    made = study() if made is None else made
    inner = getattr(made, section).model_copy(update=parts)
    return made.model_copy(update={section: inner})


def cut(base: dict[str, Any], patch: list[int] | None) -> Study:
    return study(base | {"data": base["data"] | {"augment": {"factor": 2, "patch": patch}}})


def broken(made: Study) -> set[str]:
    names = set()
    for fault in conflicts(made):
        assert fault.what and fault.remedy and "test" in fault.where
        names.add(fault.where.split("(rule ")[1].rstrip(")"))
    return names


def sum_only(**federation: Any) -> Study:
    hidden = with_parts("update", channel=marked("reveals-sum"), clip=1.0)
    return with_parts("federation", hidden, **federation) if federation else hidden


TEACHER = SEGMENTATION | {"task": SEGMENTATION["task"] | {"teacher": {"width": 16, "depth": 3}}}
DISTILLED = {"rules": ["distillation"]}
PROXIED = {"rules": [{"kind": "glfc", "old_model": "proxy"}], "plan": "class_stream"}
JUDGED = {"regulator": ["finite", "validation"]}

NOISE = {"epsilon": 8, "delta": 1e-5}


def private(kind: str, base: dict[str, Any] = CLASSIFICATION, **sections: Any) -> Study:
    calm = {"federation": {"regulator": ["finite"]}, **sections}
    if base is CLASSIFICATION:
        calm["task"] = {"class_balance": "none", **base["task"]}
    return study(base, privacy={"kind": kind, **NOISE}, **calm)


PLAIN = {"optimizer": {"kind": "sgd"}, "gradient_clip": None}


def descent(**sections: Any) -> Study:
    """Plain SGD at the sites."""
    return study(local=PLAIN, **sections)


REFUSED_AND_ALLOWED: dict[str, tuple[Callable[[], Study], Callable[[], Study]]] = {
    "C1": (
        lambda: with_parts("update", sum_only(regulator=(marked(),)), codec_up=marked("support-own", kind="fp32")),
        lambda: with_parts("update", sum_only(regulator=(marked(),)), codec_up=marked("support-shared", kind="fp32")),
    ),
    "sum-bound": (
        lambda: study(update={"channel": "masks"}),
        lambda: study(update={"channel": "masks", "clip": 1}),
    ),
    "C2": (
        lambda: study(update={"clip": 1, "codec_up": "qsgd"}),
        lambda: study(update={"codec_up": "qsgd"}),
    ),
    "C3": (
        lambda: study(update={"clip": 1, "codec_up": "fp16"}),
        lambda: study(update={"clip": 1}),
    ),
    "sum-compares": (
        lambda: study(update={"clip": 1}, federation={"regulator": ["median_distance"]}),
        lambda: study(update={"clip": 1}, federation={"regulator": ["norm_history"]}),
    ),
    "dp-clip": (
        lambda: private("site", update={"clip": 1}),
        lambda: private("local", update={"clip": 1}),
    ),
    "dp-compares": (
        lambda: private("local", federation={"regulator": ["median_distance"]}),
        lambda: private("local", federation={"regulator": ["norm_history"]}),
    ),
    "dp-gradients": (
        lambda: private("patient", federation={"regulator": ["norm_history"]}),
        lambda: private("patient", federation={"regulator": ["finite"]}),
    ),
    "dp-loss": (
        lambda: private("site", local={"epochs": "adacomm"}),
        lambda: private("site", local={"learning_rate": {"kind": "cosine", "start": 1, "end": 0.1, "rounds": 3}}),
    ),
    "dp-stop": (
        lambda: private("site", stop={"patience": 2}),
        lambda: private("site", stop={"rounds": 2}),
    ),
    "dp-weights": (
        lambda: private("local", CLASSIFICATION | {"task": CLASSIFICATION["task"] | {"class_balance": "inverse"}}),
        lambda: private("site", CLASSIFICATION | {"task": CLASSIFICATION["task"] | {"class_balance": "inverse"}}),
    ),
    "dp-teacher": (
        lambda: private("local", TEACHER, local=DISTILLED),
        lambda: private("site", TEACHER, local=DISTILLED),
    ),
    "dp-one-step": (
        lambda: private("patient", local={"rules": ["fedprox"]}),
        lambda: private("local", local={"rules": ["fedprox"]}),
    ),
    "C4": (
        lambda: private("patient", update={"memory": "error_feedback"}),
        lambda: private("site", update={"memory": "error_feedback"}),
    ),
    "dp-cohort": (
        lambda: private("patient", federation={"schedule": "uniform", "regulator": ["finite"]}),
        lambda: private("site", federation={"schedule": "uniform", "regulator": ["finite"]}),
    ),
    "dp-gate": (
        lambda: with_parts("update", private("site"), gate=marked("depends-on-update", kind="lazy")),
        lambda: with_parts("update", study(), gate=marked("depends-on-update", kind="lazy")),
    ),
    "dp-epochs": (
        lambda: private("local", local={"epochs": {"kind": "cosine", "start": 4, "end": 1, "rounds": 3}}),
        lambda: private("site", local={"epochs": {"kind": "cosine", "start": 4, "end": 1, "rounds": 3}}),
    ),
    "C15": (
        lambda: sum_only(),
        lambda: sum_only(regulator=(marked(),)),
    ),
    "C12": (
        lambda: with_parts("local", descent(federation={"server": "momentum"}), rules=(marked("client-momentum"),)),
        lambda: with_parts("local", descent(federation={"server": "sgd"}), rules=(marked("client-momentum"),)),
    ),
    "rule-twice": (
        lambda: study(local={"rules": ["fedprox", {"kind": "fedprox", "mu": 1}]}),
        lambda: study(local={"rules": ["fedprox", "sgd"]}),
    ),
    "regulator-twice": (
        lambda: study(federation={"regulator": [{"kind": "norm_limit", "limit": n} for n in (1, 2)]}),
        lambda: study(federation={"regulator": ["finite", {"kind": "norm_limit", "limit": 1}]}),
    ),
    "one-loss": (
        lambda: with_parts("local", rules=(marked("own-loss", kind="x"), marked("own-loss", kind="y"))),
        lambda: with_parts("local", rules=(marked("own-loss", kind="x"), marked(kind="y"))),
    ),
    "teacher": (
        lambda: study(SEGMENTATION, local=DISTILLED),
        lambda: study(TEACHER, local=DISTILLED),
    ),
    "public-data": (
        lambda: study(federation=JUDGED),
        lambda: study(federation=JUDGED, evaluation={"unseen": ["e"], "public": "e"}),
    ),
    "public-trains": (
        lambda: study(evaluation={"public": "e"}),
        lambda: study(evaluation={"unseen": ["e"], "public": "e"}),
    ),
    "dimensions": (
        lambda: study(CLASSIFICATION | {"data": CLASSIFICATION["data"] | {"preprocess": {"size": [32, 32, 32]}}}),
        lambda: study(CLASSIFICATION | {"data": CLASSIFICATION["data"] | {"preprocess": {"spacing": [1, 1]}}}),
    ),
    "channels": (
        lambda: study(CLASSIFICATION | {"data": CLASSIFICATION["data"] | {"preprocess": {"channels": 3}}}),
        lambda: study(CLASSIFICATION | {"task": CLASSIFICATION["task"] | {"in_channels": 1}}),
    ),
    "patch-dimensions": (
        lambda: cut(SEGMENTATION, [16, 16, 16]),
        lambda: cut(SEGMENTATION, [16, 16]),
    ),
    "patch-label": (
        lambda: cut(CLASSIFICATION, [16, 16]),
        lambda: cut(CLASSIFICATION, None),
    ),
    "synthetic-task": (
        lambda: study(CLASSIFICATION | {"data": SEGMENTATION["data"]}),
        lambda: study(SEGMENTATION),
    ),
}


TRACKED = PLAIN | {"rules": ["fedcomgate"], "steps": 4}
SPARSE = {"codec_up": "topk", "memory": "error_feedback"}
WARMUP = {"kind": "warmup", "values": [0.2, 0.1], "rounds": 1}
SHARED = {"kind": "seeded_mask", "shared": True}
UNION = {"kind": "union", "share": 0.1}
OWNED = {"aggregator": "masked_mean"}


def tracked(federation: dict[str, Any] | None = None, update: dict[str, Any] | None = None, **local: Any) -> Study:
    """FedCOMGATE as it is to be, but for what is given."""
    return study(local=TRACKED | local, federation=federation or {}, update=update or {})


def partly(update: dict[str, Any], **sections: Any) -> Study:
    """Sites that each train a part, over their owners' mean."""
    federation = OWNED | sections.pop("federation", {})
    return study(update={"submodel": "afd"} | update, federation=federation, **sections)


def low_rank(local: dict[str, Any] | None = None, shared: bool = False, **update: Any) -> Study:
    """Low-rank factors, with plain SGD unless said otherwise."""
    submodel = {"kind": "low_rank", "shared": shared}
    return study(local=PLAIN | (local or {}), update={"submodel": submodel} | update)


def gated(gate: str = "innovation", federation: dict[str, Any] | None = None, **update: Any) -> Study:
    return study(update={"gate": gate} | update, federation=federation or {})


def fair(update: dict[str, Any] | None = None, **federation: Any) -> Study:
    return study(update=update or {}, federation={"schedule": "drfa", **federation})


REFUSED_AND_ALLOWED |= {
    "C5": (
        lambda: with_parts("update", private("site"), codec_up=marked("support-own", kind="fp32")),
        lambda: private("local", update=SPARSE),
    ),
    "places-privacy": (
        lambda: private("site", update={"submodel": UNION, "memory": "error_feedback"}),
        lambda: study(update={"submodel": UNION, "memory": "error_feedback", "channel": "masks", "clip": 1}),
    ),
    "C6": (
        lambda: tracked(update={"codec_up": "shrinking_grid"}),
        lambda: tracked(update={"codec_up": {"kind": "int8", "rounding": "stochastic"}}),
    ),
    "C7": (
        lambda: tracked(update={"codec_up": "qsgd"}, rules=[{"kind": "fedcomgate", "alpha": 1}]),
        lambda: tracked(update={"codec_up": "qsgd"}),
    ),
    "C9": (
        lambda: study(update=PARTLY, federation=MEAN).model_copy(update={"task": BatchNormed(classes=["a", "b"])}),
        lambda: study(update=PARTLY, federation=MEAN),
    ),
    "C10": (
        lambda: tracked(update={"submodel": {"kind": "afd", "mode": "single"}}),
        lambda: tracked(update=SPARSE),
    ),
    "C11": (
        lambda: study(update={"submodel": "seeded_mask", "clip": 1}),
        lambda: study(update={"submodel": SHARED, "clip": 1}),
    ),
    "low-rank-sums": (
        lambda: low_rank(clip=1),
        lambda: low_rank(shared=True, clip=1),
    ),
    "submodel-optimizer": (
        lambda: low_rank({"optimizer": {"kind": "adam"}}),
        lambda: low_rank({"optimizer": {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.1}}),
    ),
    "masked-mean": (
        lambda: study(update=SPARSE, federation=OWNED),
        lambda: partly(SPARSE),
    ),
    "submodel-momentum": (
        lambda: partly({"memory": "dgc"}),
        lambda: partly({"memory": "error_feedback"}),
    ),
    "submodel-mean": (
        lambda: study(update={"submodel": "afd"}),
        lambda: study(update={"submodel": "afd"}, federation=OWNED),
    ),
    "submodel-privacy": (
        lambda: private("site", update={"submodel": SHARED}),
        lambda: private("site", update={"submodel": "full"}),
    ),
    "submodel-changes": (
        lambda: partly({"down": "change"}),
        lambda: partly({"codec_down": "fp16"}),
    ),
    "submodel-async": (
        lambda: study(update={"submodel": SHARED}, federation={"schedule": "buffered"}),
        lambda: study(update={"submodel": SHARED}, federation={"schedule": "uniform"}),
    ),
    "submodel-snapshot": (
        lambda: fair({"submodel": SHARED}),
        lambda: study(update={"submodel": SHARED}),
    ),
    "C18": (
        lambda: study(update={"codec_up": "topk", "memory": "dgc"}, federation={"server": "momentum"}),
        lambda: study(update={"codec_up": "topk", "memory": "dgc"}, federation={"server": "sgd"}),
    ),
    "momentum-twice": (
        lambda: study(update={"memory": "dgc"}, local=PLAIN | {"rules": ["local_momentum"]}),
        lambda: study(update={"memory": "error_feedback"}, local=PLAIN | {"rules": ["local_momentum"]}),
    ),
    "C13": (
        lambda: gated(clip=1),
        lambda: gated(),
    ),
    "gate-memory": (
        lambda: gated(memory="error_feedback", codec_up="int8"),
        lambda: gated(codec_up="int8"),
    ),
    "gate-aggregator": (
        lambda: gated(federation={"aggregator": "median"}),
        lambda: gated("always", federation={"aggregator": "median"}),
    ),
    "gate-submodel": (
        lambda: gated(submodel=SHARED),
        lambda: gated("always", submodel=SHARED),
    ),
    "gate-changes": (
        lambda: gated("laq", down="change"),
        lambda: gated("laq", codec_down="fp16"),
    ),
    "gate-weights": (
        lambda: with_parts("federation", gated(), schedule=marked("own-weights", kind="all")),
        lambda: gated(federation={"schedule": "uniform"}),
    ),
    "gate-public": (
        lambda: study(update={"gate": "laq"}, federation=JUDGED, evaluation={"unseen": ["e"], "public": "e"}),
        lambda: study(update={"gate": "laq"}, evaluation={"unseen": ["e"], "public": "e"}),
    ),
    "gate-compares": (
        lambda: gated(federation={"regulator": ["median_distance"]}),
        lambda: gated(federation={"regulator": ["norm_history"]}),
    ),
    "gate-async": (
        lambda: with_parts("update", study(federation={"schedule": "buffered"}), gate=marked("depends-on-update")),
        lambda: study(update={"gate": "laq"}),
    ),
    "C14": (
        lambda: with_parts("federation", private("site"), schedule=marked("reads-losses", kind="uniform")),
        lambda: private("site", federation={"schedule": "uniform", "regulator": ["finite"]}),
    ),
    "drfa-sum": (
        lambda: fair({"clip": 1}),
        lambda: fair({"codec_up": "int8"}),
    ),
    "drfa-aggregator": (
        lambda: fair(aggregator="median"),
        lambda: fair(server="momentum"),
    ),
    "drfa-compares": (
        lambda: fair(regulator=["median_distance"]),
        lambda: fair(regulator=["norm_history"]),
    ),
    "drfa-sparse": (
        lambda: fair({"codec_up": "topk"}),
        lambda: fair({"codec_up": "int8"}),
    ),
    "drfa-changes": (
        lambda: fair({"down": "change"}),
        lambda: fair({"codec_down": "fp16"}),
    ),
    "drfa-stream": (
        lambda: with_parts("local", fair(), plan=marked("streams-classes", kind="shards")),
        lambda: with_parts("local", fair(), plan=marked("shares-data", kind="shards")),
    ),
    "sum-aggregator": (
        lambda: study(update={"clip": 1}, federation={"aggregator": "trimmed_mean"}),
        lambda: study(update={"clip": 1}, federation={"server": "momentum"}),
    ),
    "C17": (
        lambda: study(update=SPARSE, federation={"schedule": {"kind": "uniform", "fraction": 0.2}}),
        lambda: study(
            update=SPARSE | {"memory": {"kind": "error_feedback", "decay": 0.9}},
            federation={"schedule": {"kind": "uniform", "fraction": 0.2}},
        ),
    ),
    "C19": (
        lambda: study(TEACHER, local=DISTILLED, update={"submodel": SHARED}),
        lambda: study(
            TEACHER, local=DISTILLED, update={"submodel": SHARED | {"trains": False}, "memory": "error_feedback"}
        ),
    ),
    "stream": (
        lambda: study(local={"rules": ["glfc"]}),
        lambda: study(local={"rules": ["glfc"], "plan": "class_stream"}),
    ),
    "proxy-privacy": (
        lambda: with_parts("local", private("local"), rules=(marked("sends-prototypes"),)),
        lambda: private("local"),
    ),
    "proxy-sum": (
        lambda: study(local=PROXIED, update={"clip": 1.0}, federation={"regulator": ["finite"]}),
        lambda: study(local=PROXIED, federation={"regulator": ["finite"]}),
    ),
    "proxy-submodel": (
        lambda: study(local=PROXIED, update={"submodel": SHARED | {"trains": False}, "memory": "error_feedback"}),
        lambda: study(local=PROXIED, update={"memory": "error_feedback"}),
    ),
    "proxy-gate": (
        lambda: study(local=PROXIED, update={"gate": "innovation"}),
        lambda: study(local=PROXIED),
    ),
    "proxy-async": (
        lambda: with_parts("local", eventful("buffered"), rules=(marked("sends-prototypes"),)),
        lambda: with_parts("local", rules=(marked("sends-prototypes"),)),
    ),
    "stream-task": (
        lambda: study(SEGMENTATION, local={"plan": "class_stream"}),
        lambda: study(local={"plan": "class_stream"}),
    ),
    "dp-stream": (
        lambda: private("local", local={"plan": "class_stream"}),
        lambda: private("site", local={"plan": "class_stream"}),
    ),
    "stream-async": (
        lambda: study(local={"plan": "class_stream"}, federation={"schedule": "buffered"}),
        lambda: study(local={"plan": "class_stream"}),
    ),
    "C20": (
        lambda: private("site", local={"plan": "ring"}),
        lambda: study(local={"plan": "ring"}),
    ),
    "tracker-steps": (
        lambda: tracked(steps=None, epochs=2),
        lambda: tracked(),
    ),
    "tracker-optimizer": (
        lambda: tracked(optimizer={"kind": "sgd", "momentum": 0.9}),
        lambda: tracked(rules=["svrg", "fedcomgate"]),
    ),
    "tracker-momentum": (
        lambda: tracked(rules=["fedcomgate", "local_momentum"]),
        lambda: tracked(rules=["local_momentum", "fedcomgate"]),
    ),
    "memory-enlarges": (
        lambda: study(update={"codec_up": "random_k", "memory": "error_feedback"}),
        lambda: study(update={"codec_up": {"kind": "random_k", "scaled": False}, "memory": "error_feedback"}),
    ),
    "gate-enlarges": (
        lambda: gated("laq", codec_up={"kind": "qsgd", "levels": 1}),
        lambda: gated("laq", codec_up="qsgd"),
    ),
    "down-enlarges": (
        lambda: study(update={"codec_down": "random_k", "down": "change"}),
        lambda: study(update={"codec_down": {"kind": "random_k", "scaled": False}, "down": "change"}),
    ),
    "submodel-tensors": (
        lambda: partly({"codec_up": "powersgd"}),
        lambda: study(update={"codec_up": "powersgd"}),
    ),
    "dp-one-epoch": (
        lambda: private("patient", local={"epochs": {"kind": "cosine", "start": 4, "end": 1, "rounds": 3}}),
        lambda: private("patient", local={"epochs": 4}),
    ),
    "steps-epochs": (
        lambda: study(local={"steps": 4, "epochs": "adacomm"}),
        lambda: study(local={"steps": "adacomm"}),
    ),
    "tracker-mean": (
        lambda: tracked({"server": {"kind": "sgd", "learning_rate": 0.5}}),
        lambda: tracked({"server": "sgd"}),
    ),
    "tracker-aggregator": (
        lambda: tracked({"aggregator": "median"}),
        lambda: tracked({"aggregator": "weighted_mean"}),
    ),
    "tracker-down": (
        lambda: tracked(update={"codec_down": "fp16"}),
        lambda: tracked(update={"codec_up": "fp16"}),
    ),
    "tracker-cohort": (
        lambda: tracked({"schedule": "uniform"}),
        lambda: study(local=TRACKED | {"rules": ["fedprox"]}, federation={"schedule": "uniform"}),
    ),
    "tracker-gate": (
        lambda: tracked(update={"gate": "laq"}),
        lambda: study(local=TRACKED | {"rules": ["fedprox"]}, update={"gate": "laq"}),
    ),
    "tracker-memory": (
        lambda: tracked(update={"codec_up": "int8", "memory": "dgc"}),
        lambda: tracked(update={"codec_up": "int8", "memory": "error_feedback"}),
    ),
    "momentum-local": (
        lambda: study(local={"rules": ["local_momentum"], "optimizer": {"kind": "sgd", "momentum": 0.9}}),
        lambda: study(local={"rules": ["local_momentum"], "optimizer": {"kind": "sgd"}}),
    ),
    "submodel-memory": (
        lambda: study(update={"submodel": "last_aggregate"}),
        lambda: study(update={"submodel": "last_aggregate", "memory": "error_feedback"}),
    ),
    "down-moving": (
        lambda: study(update={"down": "change", "codec_down": {"kind": "topk", "density": WARMUP}}),
        lambda: study(update={"down": "change", "codec_down": {"kind": "topk", "density": 0.1}}),
    ),
    "tracker-privacy": (
        lambda: private("site", local=TRACKED),
        lambda: private("site", local=TRACKED | {"rules": ["fedprox"]}),
    ),
    "svrg-loss": (
        lambda: study(TEACHER, local={"rules": ["svrg", "distillation"]}),
        lambda: study(TEACHER, local={"rules": ["fedprox", "distillation"]}),
    ),
    "svrg-patients": (
        lambda: private("local", local={"rules": ["svrg"]}),
        lambda: private("site", local={"rules": ["svrg"]}),
    ),
    "dp-steps": (
        lambda: private("local", local={"steps": 4}),
        lambda: private("site", local={"steps": 4}),
    ),
    "down-model": (
        lambda: study(update={"codec_down": "stc"}),
        lambda: study(update={"codec_down": "stc", "down": "change"}),
    ),
    "down-async": (
        lambda: study(update={"down": "change"}, federation={"schedule": "fedasync"}),
        lambda: study(update={"codec_down": "fp16"}, federation={"schedule": "fedasync"}),
    ),
}


def eventful(kind: str = "fedasync", **federation: Any) -> Study:
    return study(federation={"schedule": kind, **federation})


def summed(channel: str = "masks", **federation: Any) -> Study:
    return study(update={"channel": channel, "clip": 1}, federation=federation)


REFUSED_AND_ALLOWED |= {
    "C16": (
        lambda: summed(schedule="fedasync"),
        lambda: summed(schedule="buffered"),
    ),
    "async-few": (
        lambda: summed(schedule={"kind": "buffered", "size": 2}),
        lambda: study(federation={"schedule": {"kind": "buffered", "size": 2}}),
    ),
    "async-quorum": (
        lambda: eventful("fedasync", quorum=2),
        lambda: eventful("buffered", quorum=3),
    ),
    "async-judges": (
        lambda: summed("clear", schedule="buffered", regulator=["norm_history"]),
        lambda: study(federation={"schedule": "buffered", "regulator": ["norm_history"]}),
    ),
    "async-privacy": (
        lambda: private("local", federation={"schedule": "fedasync", "regulator": ["finite"]}),
        lambda: private("local", federation={"schedule": "all", "deadline": 60, "regulator": ["finite"]}),
    ),
    "async-compares": (
        lambda: eventful("buffered", regulator=["median_distance"]),
        lambda: eventful("buffered", regulator=["norm_history"]),
    ),
    "async-loss": (
        lambda: study(local={"epochs": "adacomm"}, federation={"schedule": "fedasync"}),
        lambda: study(
            local={"epochs": {"kind": "cosine", "start": 4, "end": 1, "rounds": 3}}, federation={"schedule": "fedasync"}
        ),
    ),
    "async-aggregator": (
        lambda: with_parts("federation", eventful(), aggregator=marked(kind="median")),
        lambda: with_parts("federation", study(), aggregator=marked(kind="median")),
    ),
    "async-server": (
        lambda: eventful(server="momentum"),
        lambda: eventful("buffered", server="momentum"),
    ),
    "C8": (
        lambda: tracked({"schedule": "fedasync"}),
        lambda: study(local=TRACKED | {"rules": ["fedprox"]}, federation={"schedule": "fedasync"}),
    ),
}


@pytest.mark.parametrize("mode", ["site", "patient", "local"])
def test_images_that_several_sites_train_on_are_refused_under_every_privacy(mode: str) -> None:
    assert "C20" in broken(private(mode, local={"plan": "overlap"}))
    assert broken(study(local={"plan": "overlap"})) == set()


COMES_WITH = {"C11": {"submodel-mean"}, "places-privacy": {"submodel-privacy"}}
"""Rules that a study which breaks another cannot but break: parts of their own ask for the aggregator `masked_mean`,
which sums do not have; and privacy is for updates of the whole vector."""


@pytest.mark.parametrize("kind", ["masks", "he", "clear"])
def test_an_asynchronous_study_may_open_sums_of_several_and_mix_none(kind: str) -> None:
    assert broken(summed(kind, schedule="fedasync")) == {"C16"}
    assert broken(summed(kind, schedule="buffered")) == broken(summed(kind, schedule="all")) == set()
    assert "sum-bound" in broken(study(update={"channel": "masks"}, federation={"schedule": "buffered"}))


@pytest.mark.parametrize("kind", ["site", "patient", "local"])
def test_an_asynchronous_study_has_no_differential_privacy(kind: str) -> None:
    def made(schedule: str) -> Study:
        return private(kind, federation={"schedule": schedule, "regulator": ["finite"]})

    assert "async-privacy" in broken(made("fedasync"))
    assert broken(made("all")) == set()


@pytest.mark.parametrize("server", ["adam", {"kind": "sgd", "learning_rate": 0.5}])
def test_mixing_is_the_server_step(server: Any) -> None:
    assert broken(eventful(server=server)) == {"async-server"}
    assert broken(eventful("buffered", server=server)) == set()


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_rule_refuses_its_combination_and_not_the_nearest_that_works(name: str) -> None:
    if name not in REFUSED_AND_ALLOWED:
        pytest.fail(f"rule {name} has no refused and no allowed combination in this test")
    refused, allowed = REFUSED_AND_ALLOWED[name]
    assert broken(refused()) == {name} | COMES_WITH.get(name, set())
    assert broken(allowed()) == set()


def test_the_base_studies_are_without_conflict() -> None:
    for base in (CLASSIFICATION, SEGMENTATION):
        assert broken(study(base)) == set()


@pytest.mark.parametrize("axes", [{"spacing": [1, 1, 1]}, {"size": [8, 8, 8], "spacing": [1, 1, 1]}])
def test_the_axes_of_a_spacing_count_like_those_of_a_size(axes: dict[str, Any]) -> None:
    made = study(CLASSIFICATION | {"data": CLASSIFICATION["data"] | {"preprocess": axes}})
    assert broken(made) == {"dimensions"}


def test_all_conflicts_come_at_once(tmp_path: Path) -> None:
    import yaml

    wrong = CLASSIFICATION | {
        "local": DISTILLED,
        "federation": JUDGED,
        "data": SEGMENTATION["data"] | {"preprocess": {"size": [8, 8, 8]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(StudyError) as caught:
        load_study(path)
    assert len(caught.value.faults) == 4
    text = str(caught.value)
    assert all(name in text for name in ("teacher", "public-data", "dimensions", "synthetic-task"))


def test_parts_say_what_they_are() -> None:
    found = traits(study(update={"codec_up": "fp16"}, federation={"server": "adam"}))
    assert {"codec_up=fp16", "codec_up:support-dense", "codec_down=fp32", "server:server-momentum"} <= found
    assert {"channel:reveals-each", "aggregator:linear", "rules=sgd", "task=classification"} <= found


def test_hyper_parameters_are_found_by_name() -> None:
    made = study(local={"epochs": {"kind": "adacomm", "start": 4}, "rules": [{"kind": "fedprox", "mu": 0.2}, "sgd"]})
    values = build_values(made)
    assert set(values) == {"local.epochs", "local.learning_rate", "fedprox.mu"}
    assert values["local.epochs"].value() == 4 and values["fedprox.mu"].value() == 0.2
    assert set(build_federation(made).values) == set(values)


def test_each_run_gets_its_own_moving_parts() -> None:
    made = study(local={"epochs": {"kind": "adacomm"}})
    first, second = build_federation(made), build_federation(made)
    assert first.values["local.epochs"] is not second.values["local.epochs"]
    assert not set(map(id, first.regulator)) & set(map(id, second.regulator))


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device(study(device="auto")).type == choose_device(study(device="cpu")).type == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(StudyError, match=f"device: {name} is not available.*device=auto"):
            choose_device(study(device=name))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device(study(device="auto")).type == "mps"
