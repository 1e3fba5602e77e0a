"""Every setting of every plug-in point, made from the registries, and every pair of settings of different points.

A plug-in that is new is in the pairs by itself; one that has settings without defaults needs a line in `SETTINGS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.plugins import PluginPoint
from medfl.study import model as study_model
from toys.combined import PUBLIC, Stage

Changes = Mapping[str, Any]
"""Keys of a study by dotted path, and what stands there."""

CLASSIFICATION: dict[str, Any] = {
    "kind": "classification",
    "classes": ["plain", "square"],
    "network": {"layers": [1], "width": 8, "stem": "small"},
    "class_balance": "none",
}
SEGMENTATION: dict[str, Any] = {
    "kind": "segmentation",
    "classes": ["background", "square"],
    "network": {"width": 4, "depth": 1},
    "teacher": {"width": 16, "depth": 1},
}
BASE: Changes = {
    "name": "pair",
    "device": "cpu",
    "task": CLASSIFICATION,
    "data.source": {"kind": "datalist"},
    "data.preprocess": {"size": [8, 8]},
    "local.epochs": 1,
    "local.learning_rate": 0.2,
    "local.batch_size": 5,
    "local.optimizer": {"kind": "sgd"},
    "local.gradient_clip": None,
    "federation.regulator": ["finite"],
    "evaluation": {"unseen": [PUBLIC], "public": PUBLIC, "every": 100},
    "stop.rounds": 4,
}
"""Plain federated SGD, with which as much as may be goes together."""

STEPS = {"local.steps": 2}
PARTS = {"federation.aggregator": "masked_mean"}
BOUND = {"update.clip": 5.0}
REMEMBERED = {"update.memory": "error_feedback"}
NOISE = {"noise_multiplier": 0.01, "delta": 1e-5, "clip": 0.5, "accept_low_utility": True}

PROXIED = {
    "kind": "glfc",
    "old_model": "proxy",
    "prototype_size": 4,
    "rebuilt_images": 2,
    "rebuild_iterations": 20,
}

SPARSE: Mapping[str, Changes] = {
    kind: {"density": 0.3} for kind in ("topk", "personal_topk", "random_k", "stc", "sparse_binary")
}
SETTINGS: Mapping[str, Mapping[str, Changes]] = {
    "plan": {"class_stream": {"rounds_per_task": 2}},
    "codec_up": SPARSE,
    "change": {**SPARSE, "random_k": {"density": 0.3, "scaled": False}},
    "memory": {"dgc": {"momentum": 0.5}},
    "submodel": {
        "afd": {"drop": 0.5},
        "seeded_mask": {"share": 0.5},
        "low_rank": {"rank": 3},
        "union": {"share": 0.3, "limit": 0.8},
    },
    "schedule": {"drfa": {"sites": 3}},
    "regulator": {"norm_limit": {"limit": 100.0}},
    "server": {"momentum": {"beta": 0.5}},
    "mechanism": {
        "site": NOISE,
        "patient": NOISE | {"sampling_rate": 0.5, "engine": "loop"},
        "local": NOISE | {"sampling_rate": 0.5, "engine": "loop"},
    },
    "epochs": {
        "cosine": {"start": 2, "end": 1, "rounds": 3},
        "growing": {"start": 1, "total": 8, "syncs": 4},
        "warmup": {"values": [1, 2]},
        "adacomm": {"start": 2},
        "loss_driven": {"start": 2},
    },
    "rate": {"cosine": {"start": 0.1, "rounds": 8}, "warmup": {"values": [0.02, 0.1]}},
}
"""Settings of kinds beside their defaults, by point."""

NEEDS: Mapping[str, Changes] = {
    "rules=distillation": {"task": SEGMENTATION},
    "rules=fedcomgate": STEPS,
    "rules=glfc": {"local.plan": {"kind": "class_stream", "rounds_per_task": 2}},
    "submodel=afd": PARTS,
    "submodel=seeded_mask": PARTS,
    "submodel=lottery": PARTS,
    "submodel=last_aggregate": REMEMBERED,
    "submodel=union": REMEMBERED,
    "channel=masks": BOUND,
    "channel=he": BOUND,
}
"""What else a study with a setting has, unless the other setting of a pair says otherwise."""


@dataclass(frozen=True)
class Setting:
    """One choice at one point. needs: defaults that go with it."""

    point: str
    name: str
    changes: Changes
    needs: Changes = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.point}={self.name}"


POINTS: Mapping[str, tuple[str, PluginPoint]] = {
    "plan": ("local.plan", study_model.PLANS),
    "rules": ("local.rules", study_model.RULES),
    "submodel": ("update.submodel", study_model.SUBMODELS),
    "gate": ("update.gate", study_model.GATES),
    "memory": ("update.memory", study_model.MEMORIES),
    "codec_up": ("update.codec_up", study_model.CODECS),
    "codec_down": ("update.codec_down", study_model.CODECS),
    "change": ("update.codec_down", study_model.CODECS),
    "channel": ("update.channel", study_model.CHANNELS),
    "schedule": ("federation.schedule", study_model.SCHEDULES),
    "regulator": ("federation.regulator", study_model.REGULATORS),
    "aggregator": ("federation.aggregator", study_model.AGGREGATORS),
    "server": ("federation.server", study_model.SERVER_STEPS),
    "mechanism": ("privacy", study_model.MECHANISMS),
    "epochs": ("local.epochs", HYPERPARAMETERS),
    "rate": ("local.learning_rate", HYPERPARAMETERS),
}
"""The key and the registry of each point. `change`: what changed is sent down."""

VARIANTS = (
    Setting("rules", "svrg+fedcomgate", {"local.rules": ["svrg", "fedcomgate"]}, STEPS),
    Setting("rules", "momentum+fedcomgate", {"local.rules": ["local_momentum", "fedcomgate"]}, STEPS),
    Setting("rules", "svrg+fedprox", {"local.rules": ["svrg", "fedprox"]}),
    Setting("submodel", "afd-single", {"update.submodel": {"kind": "afd", "drop": 0.5, "mode": "single"}}, PARTS),
    Setting(
        "submodel",
        "seeded_mask-shared",
        {"update.submodel": {"kind": "seeded_mask", "share": 0.5, "shared": True, "trains": False}},
        REMEMBERED,
    ),
    Setting("submodel", "low_rank-shared", {"update.submodel": {"kind": "low_rank", "rank": 3, "shared": True}}),
    Setting(
        "rules", "fedprox-adaptive", {"local.rules": [{"kind": "fedprox", "mu": {"kind": "adaptive_mu", "start": 0.1}}]}
    ),
    Setting(
        "rules",
        "glfc-proxy",
        {"local.rules": [PROXIED]},
        {"local.plan": {"kind": "class_stream", "rounds_per_task": 2}},
    ),
    Setting("codec_up", "int8-stochastic", {"update.codec_up": {"kind": "int8", "rounding": "stochastic"}}),
    Setting(
        "codec_up", "random_k-contracting", {"update.codec_up": {"kind": "random_k", "density": 0.3, "scaled": False}}
    ),
    Setting("clip", "5", BOUND),
    Setting("steps", "2", STEPS),
    Setting("optimizer", "adam", {"local.optimizer": {"kind": "adam"}}, {"local.learning_rate": 0.01}),
)


def settings() -> list[Setting]:
    """Every setting that is not the base study's."""
    found = []
    for point, (key, registry) in POINTS.items():
        for kind in registry.targets:
            if kind not in LEFT_OUT.get(point, ()):
                found.append(_setting(point, key, kind))
    return found + list(VARIANTS)


LEFT_OUT = {
    "plan": {"shards"},
    "rules": {"sgd"},
    "submodel": {"full"},
    "gate": {"always"},
    "memory": {"none"},
    "codec_up": {"fp32"},
    "codec_down": {"fp32"},
    "channel": {"clear"},
    "schedule": {"all"},
    "regulator": {"finite"},
    "aggregator": {"weighted_mean"},
    "server": {"sgd"},
    "epochs": {"constant", "adaptive_mu"},
    "rate": {"constant", "adacomm", "loss_driven", "growing"},
}
"""Kinds that are the base study's, and those that are no number of epochs, or no learning rate."""


def _setting(point: str, key: str, kind: str) -> Setting:
    config = {"kind": kind, **SETTINGS.get(point, {}).get(kind, {})}
    changes: dict[str, Any] = {key: [config] if point in ("rules", "regulator") else config}
    if point == "change":
        changes["update.down"] = "change"
    return Setting(point, kind, changes, NEEDS.get(f"{point}={kind}", {}))


def pairs(chosen: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """All pairs of settings of different points."""
    return [(one, other) for one, other in combinations(chosen, 2) if apart(one, other)]


def apart(one: Setting, other: Setting) -> bool:
    """Whether a study can have both."""
    return one.point != other.point and not one.changes.keys() & other.changes.keys()


def troubles(stage: Stage, chosen: Sequence[Setting], number: int) -> dict[str, str]:
    """What goes wrong with the pairs of one setting and those after it."""
    one, found = chosen[number], {}
    for other in chosen[number + 1 :]:
        if apart(one, other) and (trouble := stage.trouble(written(one, other))):
            found[str(other)] = trouble
    return found


def written(*chosen: Setting) -> dict[str, Any]:
    """The study of the base, what the settings need and the settings themselves, each above the one before."""
    flat = dict(BASE)
    for setting in chosen:
        flat |= setting.needs
    for setting in chosen:
        flat |= setting.changes
    made: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, last = path.split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return made


def neutral() -> list[Setting]:
    """Settings that change nothing but the last digits of the base study's model: what they do is lossless here."""
    whole = {"density": 1, "values": "fp32"}
    chosen: list[tuple[str, str, Changes]] = [
        ("plan", "ring of none", {"local.plan": {"kind": "ring", "redundancy": 0}}),
        ("rules", "fedprox 0", {"local.rules": [{"kind": "fedprox", "mu": 0}]}),
        ("rules", "local_momentum 0", {"local.rules": [{"kind": "local_momentum", "beta": 0}]}),
        ("submodel", "seeded_mask of all", {"update.submodel": {"kind": "seeded_mask", "share": 1, "shared": True}}),
        ("memory", "error_feedback", {"update.memory": "error_feedback"}),
        ("memory", "dgc 0", {"update.memory": {"kind": "dgc", "momentum": 0}}),
        ("codec_up", "fp16", {"update.codec_up": "fp16"}),
        *(("codec_up", f"{kind} of all", {"update.codec_up": {"kind": kind} | whole}) for kind in ("topk", "random_k")),
        ("codec_up", "powersgd of all", {"update.codec_up": {"kind": "powersgd", "rank": 64}}),
        ("codec_down", "fp16", {"update.codec_down": "fp16"}),
        ("codec_down", "changes", {"update.down": "change"}),
        ("codec_down", "topk of all changes", {"update.codec_down": {"kind": "topk"} | whole, "update.down": "change"}),
        ("channel", "sum", BOUND),
        ("channel", "masks", {"update.channel": "masks"} | BOUND),
        ("channel", "he", {"update.channel": "he"} | BOUND),
        ("schedule", "uniform of all", {"federation.schedule": {"kind": "uniform", "fraction": 1}}),
        ("regulator", "norm_limit", {"federation.regulator": [{"kind": "norm_limit", "limit": 100}]}),
        (
            "regulator",
            "norm_history",
            {"federation.regulator": [{"kind": "norm_history", "factor": 100, "first": 100}]},
        ),
        ("aggregator", "masked_mean", {"federation.aggregator": "masked_mean"}),
        ("server", "momentum 0", {"federation.server": {"kind": "momentum", "beta": 0}}),
        ("steps", "2", STEPS),
        ("epochs", "cosine at 1", {"local.epochs": {"kind": "cosine", "start": 1, "end": 1, "rounds": 4}}),
        ("rate", "cosine at 0.2", {"local.learning_rate": {"kind": "cosine", "start": 0.2, "end": 0.2, "rounds": 4}}),
    ]
    places = [
        Setting(
            "submodel", "last_aggregate of all", {"update.submodel": {"kind": "last_aggregate", "share": 1}}, REMEMBERED
        ),
        Setting("submodel", "union of all", {"update.submodel": {"kind": "union", "share": 1, "limit": 1}}, REMEMBERED),
    ]
    found = [Setting(point, name, changes) for point, name, changes in chosen]
    return found + places
